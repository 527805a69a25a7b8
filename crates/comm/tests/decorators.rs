//! What the decorators record and break.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;

use mp_comm::faulty::{Fault, Faulty};
use mp_comm::ledger::{Ledger, Log};
use mp_comm::solo::Solo;
use mp_comm::stopwatch::{Stopwatch, Waited};
use mp_comm::threads::{run, try_run, Failure};
use mp_comm::{Buffer, BufferMut, Call, Clock, Communicator, Error, Mark, Rank, ReduceOp, Tag};

#[test]
fn a_ledger_counts_calls_and_bytes_by_group() {
    run(2, |comm| {
        let log = Arc::new(Log::new());
        let comm = Ledger::new(comm, Arc::clone(&log));
        comm.all_reduce(BufferMut::new(&mut [1f64; 10]), ReduceOp::Sum)?;
        let mut all = [0u8; 6];
        comm.all_gather(Buffer::new(&[1u8; 3]), BufferMut::new(&mut all))?;
        let Some(part) = comm.split(Some(0), 0, "part")? else { panic!("a group") };
        part.all_reduce(BufferMut::new(&mut [1f32; 4]), ReduceOp::Max)?;
        part.start_all_reduce(vec![1f32; 5].into(), ReduceOp::Max)?.wait()?;
        let (peer, (send, receive)) =
            (Rank(1 - comm.rank().0), (vec![1f64; 3 + comm.rank().0], vec![0f64; 4 - comm.rank().0]));
        part.start_send_receive(send.into(), peer, receive.into(), peer, Tag(0))?.wait()?;

        let totals = log.totals();
        let of = |group: &str, call| totals.get(&(group.into(), call)).map(|total| (total.calls, total.bytes));
        assert_eq!(of("world", Call::AllReduce), Some((1, 80)));
        assert_eq!(of("world", Call::AllGather), Some((1, 3)));
        assert_eq!(of("world", Call::Split), Some((1, 0)));
        assert_eq!(of("part", Call::AllReduce), Some((1, 16)));
        assert_eq!(of("part", Call::StartAllReduce), Some((1, 20)));
        // What is sent counts, not what is received.
        assert_eq!(of("part", Call::StartSendReceive), Some((1, 8 * (3 + comm.rank().0 as u64))));

        let entries = log.take();
        assert_eq!(entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        assert!(entries.iter().all(|e| e.succeeded && 0.0 <= e.blocked_seconds && e.blocked_seconds <= e.seconds));
        assert!(log.take().is_empty() && log.totals().is_empty());
        Ok::<_, Error>(())
    });
}

#[test]
fn a_ledger_tells_apart_waiting_and_being_under_way() {
    let log = Arc::new(Log::new());
    let comm = Ledger::new(Arc::new(Solo::new("alone")), Arc::clone(&log));
    let request = comm.start_all_reduce(vec![1f32; 5].into(), ReduceOp::Sum).expect("a valid call");
    let pause = std::time::Duration::from_millis(30);
    std::thread::sleep(pause);
    request.wait().expect("complete");
    let entry = log.take().remove(0);
    // The pause lies between start and wait: it counts as under way, not as blocked.
    assert!(entry.seconds >= pause.as_secs_f64());
    assert!(entry.seconds - entry.blocked_seconds >= pause.as_secs_f64());
}

#[test]
fn failed_and_dropped_calls_are_recorded_as_such() {
    let log = Arc::new(Log::new());
    let comm = Ledger::new(Arc::new(Solo::new("alone")), Arc::clone(&log));
    comm.broadcast(BufferMut::new(&mut [1u8]), Rank(1)).expect_err("no such rank");
    drop(comm.start_all_reduce(vec![1f32; 5].into(), ReduceOp::Sum));
    comm.start_all_reduce(vec![1i32].into(), ReduceOp::Avg).expect_err("an average of integers");
    let entries = log.take();
    assert_eq!(entries.len(), 3);
    assert!(entries.iter().all(|entry| !entry.succeeded));
}

#[test]
fn a_stopwatch_leaves_out_what_lies_between_start_and_wait() {
    let waited = Arc::new(Waited::default());
    let comm = Stopwatch::new(Arc::new(Solo::new("alone")), Arc::clone(&waited));
    let begun = Instant::now();
    let request = comm.start_all_reduce(vec![1f32; 5].into(), ReduceOp::Sum).expect("a valid call");
    let started = Instant::now();
    // Longer than both calls together, whatever the machine does: the clock is asked until it says so.
    while started.elapsed() <= 2 * (started - begun) {}
    let between = started.elapsed();
    request.wait().expect("complete");
    let whole = begun.elapsed();
    let held_up = waited.take().seconds().expect("the host's time");
    assert!(held_up > 0.0 && held_up <= (whole - between).as_secs_f64(), "{held_up} of {whole:?} less {between:?}");
}

#[test]
fn a_stopwatch_also_counts_what_groups_split_from_it_wait_for() {
    let waited = Arc::new(Waited::default());
    let comm = Stopwatch::new(Arc::new(Solo::new("alone")), Arc::clone(&waited));
    let part = comm.split(Some(0), 0, "part").expect("a valid call").expect("a group");
    let taken = || waited.take().seconds().expect("the host's time");
    assert!(taken() > 0.0);
    part.barrier().expect("a valid call");
    assert!(taken() > 0.0);
    assert_eq!(taken(), 0.0);
}

/// A device's time, which goes on by a second with every mark.
#[derive(Debug, Default)]
struct Told(Arc<AtomicU64>);

/// A moment of it.
#[derive(Debug)]
struct At(u64);

impl Clock for Told {
    fn mark(&self) -> Result<Box<dyn Mark>, Error> {
        Ok(Box::new(At(self.0.fetch_add(1, Ordering::SeqCst))))
    }
}

impl Mark for At {
    fn seconds_until(&mut self, later: &mut dyn Mark) -> Result<f64, Error> {
        let later: &mut dyn Any = later;
        let At(later) = later.downcast_ref().expect("a moment of the same clock");
        Ok((later - self.0) as f64)
    }
}

#[test]
fn a_stopwatch_on_a_device_adds_up_what_its_stream_stands_still_for() {
    let (waited, now) = (Arc::new(Waited::default()), Arc::new(AtomicU64::new(0)));
    waited.read_on(Arc::new(Told(Arc::clone(&now))));
    let comm = Stopwatch::new(Arc::new(Solo::new("alone")), Arc::clone(&waited));
    // What the caller computes is not the group's.
    now.fetch_add(100, Ordering::SeqCst);
    comm.all_reduce(BufferMut::new(&mut [1f32]), ReduceOp::Sum).expect("a valid call");
    now.fetch_add(100, Ordering::SeqCst);
    comm.all_reduce(BufferMut::new(&mut [1f32]), ReduceOp::Sum).expect("a valid call");
    // To ask whether a call is over holds no stream up; to start it and to wait for it may.
    let mut request = comm.start_all_reduce(vec![1f32].into(), ReduceOp::Sum).expect("a valid call");
    while !request.is_complete().expect("a valid call") {}
    request.wait().expect("complete");
    assert_eq!(waited.take().seconds(), Ok(4.0));
    assert_eq!(waited.take().seconds(), Ok(0.0));
    // Calls that nobody takes are added up on the way.
    for _ in 0..5000 {
        comm.all_reduce(BufferMut::new(&mut [1f32]), ReduceOp::Sum).expect("a valid call");
    }
    assert_eq!(waited.take().seconds(), Ok(5000.0));
}

#[test]
fn a_failing_call_is_the_kth_and_only_that() {
    let comm = Faulty::new(Arc::new(Solo::new("alone")), 2, Fault::Fail);
    comm.barrier().expect("the first call");
    let error = comm.broadcast(BufferMut::new(&mut [1u8]), Rank(0)).expect_err("the second call");
    assert_eq!(error, Error::Injected { call: Call::Broadcast, group: "alone".into(), count: 2 });
    comm.barrier().expect("the third call");
}

#[test]
fn a_dying_handle_is_gone_for_its_peers() {
    let outcomes = try_run(3, |comm| {
        let k = if comm.rank() == Rank(1) { 4 } else { u64::MAX };
        let comm = Faulty::new(comm, k, Fault::Die);
        let result = (0..10).try_for_each(|_| comm.all_reduce(BufferMut::new(&mut [1i32]), ReduceOp::Sum));
        // What is dead stays dead.
        if comm.rank() == Rank(1) {
            assert!(matches!(comm.barrier(), Err(Error::Injected { call: Call::Barrier, .. })));
        }
        result
    });
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Err(Failure::Error(Error::Injected { count: 4, .. })) => assert_eq!(rank, 1),
            Err(Failure::Error(Error::PeerGone { peer: Rank(1), .. })) => assert_ne!(rank, 1),
            other => panic!("rank {rank}: {other:?}"),
        }
    }
}
