//! The names of the calls, as errors and the ledger spell them.

use std::fmt;

/// A method of [`Communicator`](crate::Communicator) that moves bytes or waits for peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Call {
    /// [`all_reduce`](crate::Communicator::all_reduce).
    AllReduce,
    /// [`reduce_scatter`](crate::Communicator::reduce_scatter).
    ReduceScatter,
    /// [`all_gather`](crate::Communicator::all_gather).
    AllGather,
    /// [`all_to_all`](crate::Communicator::all_to_all).
    AllToAll,
    /// [`all_to_all_v`](crate::Communicator::all_to_all_v).
    AllToAllV,
    /// [`broadcast`](crate::Communicator::broadcast).
    Broadcast,
    /// [`send`](crate::Communicator::send).
    Send,
    /// [`receive`](crate::Communicator::receive).
    Receive,
    /// [`barrier`](crate::Communicator::barrier).
    Barrier,
    /// [`split`](crate::Communicator::split).
    Split,
    /// [`start_all_reduce`](crate::Communicator::start_all_reduce).
    StartAllReduce,
    /// [`start_reduce_scatter`](crate::Communicator::start_reduce_scatter).
    StartReduceScatter,
    /// [`start_all_gather`](crate::Communicator::start_all_gather).
    StartAllGather,
    /// [`start_send`](crate::Communicator::start_send).
    StartSend,
    /// [`start_receive`](crate::Communicator::start_receive).
    StartReceive,
    /// [`start_send_receive`](crate::Communicator::start_send_receive).
    StartSendReceive,
}

impl Call {
    /// Returns the method's name.
    pub const fn name(self) -> &'static str {
        match self {
            Call::AllReduce => "all_reduce",
            Call::ReduceScatter => "reduce_scatter",
            Call::AllGather => "all_gather",
            Call::AllToAll => "all_to_all",
            Call::AllToAllV => "all_to_all_v",
            Call::Broadcast => "broadcast",
            Call::Send => "send",
            Call::Receive => "receive",
            Call::Barrier => "barrier",
            Call::Split => "split",
            Call::StartAllReduce => "start_all_reduce",
            Call::StartReduceScatter => "start_reduce_scatter",
            Call::StartAllGather => "start_all_gather",
            Call::StartSend => "start_send",
            Call::StartReceive => "start_receive",
            Call::StartSendReceive => "start_send_receive",
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
