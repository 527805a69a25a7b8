//! A process group's communicators: one for blocking calls and messages, one for started collectives.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::Mutex;

use mpi::ffi;

use super::engine::Engine;
use super::raw::{self, int, invoke, Handle, What};
use crate::arguments::Site;
use crate::{Call, Rank, Result};

/// What all handles and requests of one group share on this process.
pub(super) struct Group {
    pub(super) name: String,
    pub(super) comm: Handle,
    /// Started collectives have a communicator to themselves: their chunks start as earlier ones complete, which must
    /// not mix with the order of blocking calls.
    pub(super) background: Handle,
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) local_rank: usize,
    pub(super) local_size: usize,
    /// This process's node, as the lowest world rank on it.
    node: i64,
    pub(super) engine: Mutex<Engine>,
}

impl Group {
    /// Makes the group of all processes, apart from what other libraries say on MPI_COMM_WORLD.
    pub(super) fn world(all: Handle) -> Result<Self> {
        let what = naming("world", "MPI_Comm_split_type");
        let mut node = null();
        // SAFETY: a collective over a communicator that every process has.
        invoke(what, || unsafe { raw::mp_comm_split_node(all.0, &mut node) })?;
        let mut rank: c_int = 0;
        // SAFETY: a local query.
        invoke(naming("world", "MPI_Comm_rank"), || unsafe { ffi::MPI_Comm_rank(all.0, &mut rank) })?;
        let mut leader = i64::from(rank);
        // SAFETY: one 64-bit integer, alive during the call, on a communicator made just now.
        invoke(naming("world", "MPI_Bcast"), || unsafe {
            ffi::MPI_Bcast((&raw mut leader).cast(), 1, ffi::RSMPI_INT64_T, 0, node)
        })?;
        // SAFETY: made above, used no more.
        invoke(naming("world", "MPI_Comm_free"), || unsafe { ffi::MPI_Comm_free(&mut node) })?;
        Self::over(duplicate("world", all)?, "world", leader)
    }

    /// Takes a communicator of its own and asks it for ranks and nodes. Collective.
    fn over(comm: Handle, name: &str, node: i64) -> Result<Self> {
        let background = duplicate(name, comm)?;
        let (mut rank, mut size) = (0, 0);
        // SAFETY: local queries.
        invoke(naming(name, "MPI_Comm_rank"), || unsafe {
            match ffi::MPI_Comm_rank(comm.0, &mut rank) {
                0 => ffi::MPI_Comm_size(comm.0, &mut size),
                code => code,
            }
        })?;
        let mut nodes = vec![0i64; size as usize];
        // SAFETY: one integer in and `size` out, alive during the call.
        invoke(naming(name, "MPI_Allgather"), || unsafe {
            let kind = ffi::RSMPI_INT64_T;
            ffi::MPI_Allgather((&raw const node).cast(), 1, kind, nodes.as_mut_ptr().cast(), 1, kind, comm.0)
        })?;
        let here = |nodes: &[i64]| nodes.iter().filter(|n| **n == node).count();
        Ok(Self {
            name: name.into(),
            comm,
            background,
            rank: rank as usize,
            size: size as usize,
            local_rank: here(&nodes[..rank as usize]),
            local_size: here(&nodes),
            node,
            engine: Mutex::default(),
        })
    }

    /// Cuts the group; see [`Communicator::split`](crate::Communicator::split).
    pub(super) fn split(&self, color: Option<u32>, key: u32, name: &str) -> Result<Option<Self>> {
        // The calls below block, and a peer may be waiting for what is queued here before it comes to split.
        super::engine::launch_all();
        // MPI takes non-negative C ints and orders by them; colors and keys are made dense first.
        let (color, key) = self.dense(color, key)?;
        let mut part = null();
        // SAFETY: a collective over this group's own communicator.
        invoke(naming(&self.name, "MPI_Comm_split"), || unsafe {
            ffi::MPI_Comm_split(self.comm.0, color.unwrap_or(raw::mp_comm_undefined()), key, &mut part)
        })?;
        color.map(|_| Self::over(Handle(part), name, self.node)).transpose()
    }

    /// Replaces color and key, which are any `u32`, by their positions among all ranks'.
    fn dense(&self, color: Option<u32>, key: u32) -> Result<(Option<c_int>, c_int)> {
        let mine = [color.map_or(-1, i64::from), i64::from(key)];
        let mut all = vec![[0i64; 2]; self.size];
        // SAFETY: two integers in and `2 · size` out, alive during the call.
        invoke(naming(&self.name, "MPI_Allgather"), || unsafe {
            let kind = ffi::RSMPI_INT64_T;
            ffi::MPI_Allgather(mine.as_ptr().cast(), 2, kind, all.as_mut_ptr().cast(), 2, kind, self.comm.0)
        })?;
        let below = |i: usize| {
            let mut values: Vec<i64> = all.iter().map(|pair| pair[i]).filter(|v| *v >= 0 && *v < mine[i]).collect();
            values.sort_unstable();
            values.dedup();
            int(values.len())
        };
        Ok((color.map(|_| below(0)), below(1)))
    }

    pub(super) fn site(&self, call: Call) -> Site<'_> {
        Site { call, group: &self.name, size: self.size }
    }

    pub(super) fn what(&self, call: Call, function: &'static str, bytes: usize, peer: Option<Rank>) -> What<'_> {
        What { call, group: &self.name, function, bytes, peer }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let engine = self.engine.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !engine.is_idle() {
            // The library still reads and writes these buffers, over communicators that must live on as well; if MPI
            // has ended, a few bytes are kept for nothing.
            std::mem::forget(std::mem::take(engine));
            return;
        }
        for mut comm in [self.background, self.comm] {
            // SAFETY: made by this group, which nobody uses any more. Failing means that MPI has ended.
            _ = invoke(naming(&self.name, "MPI_Comm_free"), || unsafe { ffi::MPI_Comm_free(&mut comm.0) });
        }
    }
}

fn null() -> raw::MPI_Comm {
    // SAFETY: a constant that rsmpi's C file exports.
    unsafe { ffi::RSMPI_COMM_NULL }
}

fn naming<'a>(group: &'a str, function: &'static str) -> What<'a> {
    What { call: Call::Split, group, function, bytes: 0, peer: None }
}

/// Makes a communicator with the same ranks and a context of its own, whose errors are returned. Collective.
fn duplicate(name: &str, comm: Handle) -> Result<Handle> {
    let mut copy = null();
    // SAFETY: a collective over a live communicator; the handler is set on the one just made.
    invoke(naming(name, "MPI_Comm_dup"), || unsafe {
        match ffi::MPI_Comm_dup(comm.0, &mut copy) {
            0 => raw::mp_comm_return_errors(copy),
            code => code,
        }
    })?;
    Ok(Handle(copy))
}
