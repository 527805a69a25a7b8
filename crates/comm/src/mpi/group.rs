//! A process group's communicators: one for blocking calls and messages, one for started collectives.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::Mutex;

use mpi::ffi;

use super::blocking;
use super::engine::{self, Engine};
use super::raw::{self, int, invoke, Handle, What};
use crate::arguments::Site;
use crate::{Call, Rank, Result};

/// What a rank brings to a split; a color of -1 wants no group.
#[derive(Clone, Copy)]
struct Wish {
    color: i64,
    key: i64,
    node: i64,
}

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
        let (mut rank, mut size) = (0, 0);
        // SAFETY: local queries.
        invoke(naming("world", "MPI_Comm_rank"), || unsafe {
            match ffi::MPI_Comm_rank(all.0, &mut rank) {
                0 => ffi::MPI_Comm_size(all.0, &mut size),
                code => code,
            }
        })?;
        let mut leader = i64::from(rank);
        // SAFETY: one 64-bit integer, alive during the call, on a communicator made just now.
        invoke(naming("world", "MPI_Bcast"), || unsafe {
            ffi::MPI_Bcast((&raw mut leader).cast(), 1, ffi::RSMPI_INT64_T, 0, node)
        })?;
        // SAFETY: made above, used no more.
        invoke(naming("world", "MPI_Comm_free"), || unsafe { ffi::MPI_Comm_free(&mut node) })?;
        let mut nodes = vec![0i64; size as usize];
        // SAFETY: one integer in and `size` out, alive during the call.
        invoke(naming("world", "MPI_Allgather"), || unsafe {
            let kind = ffi::RSMPI_INT64_T;
            ffi::MPI_Allgather((&raw const leader).cast(), 1, kind, nodes.as_mut_ptr().cast(), 1, kind, all.0)
        })?;
        Self::over(duplicate("world", all)?, "world", &nodes)
    }

    /// Takes a communicator of its own, whose ranks lie on these nodes. Collective.
    fn over(comm: Handle, name: &str, nodes: &[i64]) -> Result<Self> {
        let background = duplicate(name, comm)?;
        let mut rank: c_int = 0;
        // SAFETY: a local query.
        invoke(naming(name, "MPI_Comm_rank"), || unsafe { ffi::MPI_Comm_rank(comm.0, &mut rank) })?;
        let (rank, size) = (rank as usize, nodes.len());
        let node = nodes[rank];
        let here = |nodes: &[i64]| nodes.iter().filter(|other| **other == node).count();
        let (local_rank, local_size) = (here(&nodes[..rank]), here(nodes));
        Ok(Self {
            name: name.into(),
            comm,
            background,
            rank,
            size,
            local_rank,
            local_size,
            node,
            engine: Mutex::default(),
        })
    }

    /// Cuts the group; see [`Communicator::split`](crate::Communicator::split).
    pub(super) fn split(&self, color: Option<u32>, key: u32, name: &str) -> Result<Option<Self>> {
        let mine = Wish { color: color.map_or(-1, i64::from), key: key.into(), node: self.node };
        let wishes = self.wishes(mine)?;
        // MPI takes non-negative C ints and orders by them; colors and keys are made dense first.
        let below = |of: fn(&Wish) -> i64| {
            let mut values: Vec<i64> = wishes.iter().map(of).filter(|value| (0..of(&mine)).contains(value)).collect();
            values.sort_unstable();
            values.dedup();
            int(values.len())
        };
        let (dense, key) = (color.map(|_| below(|wish| wish.color)), below(|wish| wish.key));
        // What follows blocks in the library: all ranks are here by now, but another thread of a peer may be waiting for
        // what is queued on this one.
        engine::launch_all();
        let mut part = null();
        // SAFETY: a collective over this group's own communicator.
        invoke(naming(&self.name, "MPI_Comm_split"), || unsafe {
            ffi::MPI_Comm_split(self.comm.0, dense.unwrap_or(raw::mp_comm_undefined()), key, &mut part)
        })?;
        if color.is_none() {
            return Ok(None);
        }
        let mut members: Vec<&Wish> = wishes.iter().filter(|wish| wish.color == mine.color).collect();
        // MPI's order of the new ranks: by key, then by old rank.
        members.sort_by_key(|wish| wish.key);
        let nodes: Vec<i64> = members.into_iter().map(|wish| wish.node).collect();
        Self::over(Handle(part), name, &nodes).map(Some)
    }

    /// Tells all ranks what this one wishes, and learns what they do. Meets the peers as every blocking call does.
    fn wishes(&self, mine: Wish) -> Result<Vec<Wish>> {
        let mut all = vec![[0i64; 3]; self.size];
        let mine = [mine.color, mine.key, mine.node];
        blocking::gather(self, Call::Split, bytemuck::bytes_of(&mine), bytemuck::cast_slice_mut(&mut all))?;
        Ok(all.into_iter().map(|[color, key, node]| Wish { color, key, node }).collect())
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
        // Its queue is empty: until it is, the engine holds the group.
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
