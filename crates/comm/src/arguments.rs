//! Checks of one rank's own arguments, the same for every backend.

use crate::buffer::{Host, HostMut};
use crate::{Buffer, BufferMut, Call, Error, Kind, OwnedBuffer, Place, Rank, ReduceOp, Result};

/// Where a call is made: what its errors name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) call: Call,
    pub(crate) group: &'a str,
    pub(crate) size: usize,
}

impl Site<'_> {
    /// Says that the call cannot reach a device's memory.
    pub(crate) fn out_of_reach(&self, place: Place) -> Error {
        let device = match place {
            Place::Device(index) => index,
            Place::Host => unreachable!("a buffer without a view is on a device"),
        };
        Error::OutOfReach { call: self.call, group: self.group.into(), device }
    }

    /// Checks that a buffer is the host's to read.
    pub(crate) fn host<'b>(&self, buffer: Buffer<'b>) -> Result<Host<'b>> {
        let bytes = buffer.bytes().ok_or_else(|| self.out_of_reach(buffer.place()))?;
        Ok(Host::new(buffer.kind(), bytes))
    }

    /// Checks that a buffer is the host's to overwrite.
    pub(crate) fn host_mut<'b>(&self, buffer: BufferMut<'b>) -> Result<HostMut<'b>> {
        let (kind, place) = (buffer.kind(), buffer.place());
        let bytes = buffer.into_bytes().ok_or_else(|| self.out_of_reach(place))?;
        Ok(HostMut::new(kind, bytes))
    }

    /// Checks that a buffer of a started call is the host's.
    pub(crate) fn owned(&self, buffer: &OwnedBuffer) -> Result<()> {
        match buffer.place() {
            Place::Host => Ok(()),
            place => Err(self.out_of_reach(place)),
        }
    }

    /// Checks that a reduction is defined for a kind.
    pub(crate) fn op(&self, kind: Kind, op: ReduceOp) -> Result<()> {
        let integers = matches!(kind, Kind::I64 | Kind::I32 | Kind::U8);
        if op == ReduceOp::Avg && integers {
            return Err(Error::UnsupportedOp { call: self.call, group: self.group.into(), op, kind });
        }
        Ok(())
    }

    /// Checks that a rank is of this group.
    pub(crate) fn rank(&self, rank: Rank) -> Result<()> {
        if rank.0 < self.size {
            return Ok(());
        }
        Err(Error::NoSuchRank { call: self.call, group: self.group.into(), rank, size: self.size })
    }

    /// Checks that a blocking send goes to somebody else.
    pub(crate) fn peer(&self, own: Rank, to: Rank) -> Result<()> {
        self.rank(to)?;
        if own == to {
            return Err(Error::ToItself { call: self.call, group: self.group.into(), rank: own });
        }
        Ok(())
    }

    /// Checks that a rank which sends to itself is also the one that it receives from.
    pub(crate) fn paired(&self, own: Rank, to: Rank, from: Rank) -> Result<()> {
        self.rank(to)?;
        self.rank(from)?;
        if (to == own) != (from == own) {
            return Err(Error::Unpaired { call: self.call, group: self.group.into(), rank: own, to, from });
        }
        Ok(())
    }

    /// Checks a length.
    pub(crate) fn length(&self, what: &'static str, expected: usize, found: usize) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(Error::Length { call: self.call, group: self.group.into(), what, expected, found })
    }

    /// Checks that two buffers hold the same kind.
    pub(crate) fn kind(&self, expected: Kind, found: Kind) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(Error::Kind { call: self.call, group: self.group.into(), expected, found })
    }

    fn divisible(&self, len: usize) -> Result<usize> {
        if len.is_multiple_of(self.size) {
            return Ok(len / self.size);
        }
        Err(Error::NotDivisible { call: self.call, group: self.group.into(), len, size: self.size })
    }

    /// Checks a reduce-scatter: `size · n` elements in, `n` out.
    pub(crate) fn reduce_scatter(&self, send: Buffer<'_>, receive: Buffer<'_>, op: ReduceOp) -> Result<()> {
        self.kind(send.kind(), receive.kind())?;
        self.op(send.kind(), op)?;
        let run = self.divisible(send.len())?;
        self.length("the receive buffer", run, receive.len())
    }

    /// Checks an all-gather: `n` elements in, `size · n` out.
    pub(crate) fn all_gather(&self, send: Buffer<'_>, receive: Buffer<'_>) -> Result<()> {
        self.kind(send.kind(), receive.kind())?;
        self.length("the receive buffer", send.len() * self.size, receive.len())
    }

    /// Checks an even all-to-all: `size · n` elements in and out.
    pub(crate) fn all_to_all(&self, send: Buffer<'_>, receive: Buffer<'_>) -> Result<()> {
        self.kind(send.kind(), receive.kind())?;
        self.divisible(send.len())?;
        self.length("the receive buffer", send.len(), receive.len())
    }

    /// Checks an uneven all-to-all: one count a rank, which add up to the buffers' lengths.
    pub(crate) fn all_to_all_v(
        &self,
        own: Rank,
        send: (Buffer<'_>, &[usize]),
        receive: (Buffer<'_>, &[usize]),
    ) -> Result<()> {
        self.kind(send.0.kind(), receive.0.kind())?;
        self.length("the list of send counts", self.size, send.1.len())?;
        self.length("the list of receive counts", self.size, receive.1.len())?;
        self.length("the send buffer", send.1.iter().sum(), send.0.len())?;
        self.length("the receive buffer", receive.1.iter().sum(), receive.0.len())?;
        self.length("the run to itself", send.1[own.0], receive.1[own.0])
    }
}
