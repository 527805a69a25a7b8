//! Every interleaving that a scheduler can think of, for the threads backend:
//! `cargo test -p mp-comm --no-default-features --features shuttle --test interleavings`.
//!
//! A deadlock, a lost wake-up or a wrong sum under any explored schedule fails the test, with the schedule to replay.

use std::sync::Arc;

use mp_comm::threads::{Threads, EAGER_BYTES};
use mp_comm::{Buffer, BufferMut, Communicator, Error, Rank, ReduceOp, Result, Tag};

const SCHEDULES: usize = 2000;

/// Runs `body` as `n` ranks under many random schedules and under ones that preempt at chosen points.
fn explore(n: usize, body: fn(Arc<dyn Communicator>)) {
    let ranks = move || {
        let threads: Vec<_> =
            Threads::group(n, "model").into_iter().map(|comm| shuttle::thread::spawn(move || body(comm))).collect();
        threads.into_iter().for_each(|thread| thread.join().expect("a rank that ends"));
    };
    shuttle::check_random(ranks, SCHEDULES);
    shuttle::check_pct(ranks, SCHEDULES, 3);
}

fn peer(comm: &dyn Communicator) -> Rank {
    Rank(1 - comm.rank().0)
}

#[test]
fn collectives_in_a_row() {
    explore(3, |comm| {
        let mut x = [comm.rank().0 as i64 + 1; 4];
        comm.all_reduce(BufferMut::new(&mut x), ReduceOp::Sum).expect("a sum");
        assert_eq!(x, [6; 4]);
        let mut all = [0u8; 3];
        comm.all_gather(Buffer::new(&[comm.rank().0 as u8]), BufferMut::new(&mut all)).expect("a gather");
        assert_eq!(all, [0, 1, 2]);
        comm.barrier().expect("a barrier");
    });
}

#[test]
fn started_collectives_overlap() {
    explore(2, |comm| {
        let first = comm.start_all_reduce(vec![1i32; 3].into(), ReduceOp::Sum).expect("a start");
        let second = comm.start_all_gather(vec![comm.rank().0 as u8].into(), vec![9u8; 2].into()).expect("a start");
        assert_eq!(second.wait().expect("a gather").to_vec::<u8>(), [0, 1]);
        assert_eq!(first.wait().expect("a sum").to_vec::<i32>(), [2; 3]);
    });
}

#[test]
fn messages_cross() {
    explore(2, |comm| {
        let receive = comm.start_receive(vec![0u8; 2].into(), peer(&*comm), Tag(0)).expect("a start");
        let long = vec![comm.rank().0 as u8; EAGER_BYTES + 1];
        let send = comm.start_send(vec![5u8, 6].into(), peer(&*comm), Tag(0)).expect("a start");
        let mut out = vec![9u8; EAGER_BYTES + 1];
        if comm.rank() == Rank(0) {
            comm.send(Buffer::new(&long), Rank(1), Tag(1)).expect("a send");
        } else {
            comm.receive(BufferMut::new(&mut out), Rank(0), Tag(1)).expect("a receive");
            assert!(out.iter().all(|b| *b == 0));
        }
        assert_eq!(receive.wait().expect("a message").to_vec::<u8>(), [5, 6]);
        send.wait().expect("sent");
    });
}

#[test]
fn pairs_go_round_either_way() {
    explore(3, |comm| {
        let rank = comm.rank().0;
        let (next, before) = ((rank + 1) % 3, (rank + 2) % 3);
        let start = |to: usize, from: usize| {
            comm.start_send_receive(vec![rank as u8].into(), Rank(to), vec![9u8].into(), Rank(from), Tag(0))
        };
        let (first, second) = (start(next, before).expect("a start"), start(before, next).expect("a start"));
        assert_eq!(second.wait().expect("a pair").to_vec::<u8>(), [next as u8]);
        assert_eq!(first.wait().expect("a pair").to_vec::<u8>(), [before as u8]);
    });
}

#[test]
fn a_started_receive_frees_its_sender_whatever_its_rank_does() {
    explore(2, |comm| {
        if comm.rank() == Rank(0) {
            comm.send(Buffer::new(&vec![1u8; EAGER_BYTES + 1]), Rank(1), Tag(0)).expect("a send");
            comm.send(Buffer::new(&[2u8]), Rank(1), Tag(1)).expect("a send");
        } else {
            let first = comm.start_receive(vec![0u8; EAGER_BYTES + 1].into(), Rank(0), Tag(0)).expect("a start");
            comm.receive(BufferMut::new(&mut [0u8]), Rank(0), Tag(1)).expect("a receive");
            first.wait().expect("the first message");
        }
    });
}

#[test]
fn split_under_any_schedule() {
    explore(3, |comm| {
        let color = (comm.rank() != Rank(1)).then_some(0);
        let part = comm.split(color, 0, "part").expect("a split");
        if let Some(part) = part {
            let mut x = [1i32];
            part.all_reduce(BufferMut::new(&mut x), ReduceOp::Sum).expect("a sum");
            assert_eq!(x, [2]);
        }
    });
}

#[test]
fn a_mismatch_reaches_everybody() {
    explore(3, |comm| {
        let mut x = vec![0f32; comm.rank().0 / 2];
        let error = comm.all_reduce(BufferMut::new(&mut x), ReduceOp::Sum).expect_err("lengths differ");
        assert!(matches!(error, Error::Mismatch { .. }));
        comm.barrier().expect("the group goes on");
    });
}

#[test]
fn nobody_waits_for_the_dead() {
    type Wait = fn(&dyn Communicator) -> Result<()>;
    const WAITS: [Wait; 5] = [
        |c| c.all_reduce(BufferMut::new(&mut [1f32]), ReduceOp::Sum),
        |c| c.receive(BufferMut::new(&mut [1f32]), Rank(0), Tag(0)),
        |c| c.send(Buffer::new(&[0u8; EAGER_BYTES + 1]), Rank(0), Tag(0)),
        |c| c.start_all_reduce(vec![1f32].into(), ReduceOp::Sum)?.wait().map(drop),
        |c| c.start_receive(vec![1f32].into(), Rank(0), Tag(0))?.wait().map(drop),
    ];
    fn body<const I: usize>(comm: Arc<dyn Communicator>) {
        if comm.rank() != Rank(0) {
            let error = WAITS[I](&*comm).expect_err("rank 0 is gone");
            assert!(matches!(error, Error::PeerGone { peer: Rank(0), .. }));
        }
    }
    explore(2, body::<0>);
    explore(2, body::<1>);
    explore(2, body::<2>);
    explore(2, body::<3>);
    explore(2, body::<4>);
}
