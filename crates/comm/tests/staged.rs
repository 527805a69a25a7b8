//! Buffers on a device over communicators of the host: the suite, the order of what the device is told, and refusals.

use std::sync::Arc;

use mp_comm::conformance::{self, Allocate, Bench, Report};
use mp_comm::fake::{EventName, FakeDevice, Pace, Step};
use mp_comm::faulty::{Fault, Faulty};
use mp_comm::ledger::Ledger;
use mp_comm::solo::Solo;
use mp_comm::staged::Staged;
use mp_comm::{
    threads, Accelerator, Buffer, BufferMut, Call, Communicator, DeviceMemory, DeviceRun, Error, Kind, OwnedBuffer,
    Rank, ReduceOp, Stream, Tag,
};
use rstest::rstest;

fn all_passed(reports: impl IntoIterator<Item = Report>) {
    for report in reports {
        assert!(report.failures.is_empty() && report.passed > 20, "{report}");
    }
}

/// A bench of device buffers, over the communicator that `wrap` makes of this rank's device.
fn bench(
    pace: Pace,
    wrap: impl FnOnce(Arc<FakeDevice>) -> Result<Arc<dyn Communicator>, Error>,
) -> Result<Bench, Error> {
    let device = Arc::new(FakeDevice::new(0, pace));
    let comm = wrap(Arc::clone(&device))?;
    let owner = Arc::clone(&device);
    let allocate: Arc<Allocate> = Arc::new(move |bytes| Ok(owner.allocate(bytes)));
    Ok(Bench::on_device(comm, device, allocate))
}

#[rstest]
fn threads_of(#[values(1, 2, 3, 4, 8)] size: usize) {
    all_passed(threads::run(size, |comm| {
        let bench = bench(Pace::Late, |device| Ok(Arc::new(Staged::new(comm, device)?)))?;
        conformance::run_on(&bench)
    }));
}

#[test]
fn a_device_that_works_at_once() {
    all_passed(threads::run(2, |comm| {
        let bench = bench(Pace::Prompt, |device| Ok(Arc::new(Staged::with_chunks(comm, device, 1 << 16)?)))?;
        conformance::run_on(&bench)
    }));
}

#[test]
fn host_buffers_pass_through() {
    all_passed(threads::run(3, |comm| {
        let device = Arc::new(FakeDevice::new(0, Pace::Late));
        let staged: Arc<dyn Communicator> = Arc::new(Staged::new(comm, device.clone())?);
        let report = conformance::run(&staged)?;
        assert!(device.take_log().is_empty());
        Ok::<_, Error>(report)
    }));
}

#[test]
fn a_ledger_around_it_and_one_within() {
    all_passed(threads::run(2, |comm| {
        let bench = bench(Pace::Late, |device| {
            let within = Arc::new(Ledger::new(comm, Arc::default()));
            Ok(Arc::new(Ledger::new(Arc::new(Staged::new(within, device)?), Arc::default())))
        })?;
        conformance::run_on(&bench)
    }));
}

#[test]
fn over_a_group_of_one() {
    let bench = bench(Pace::Late, |device| Ok(Arc::new(Staged::new(Arc::new(Solo::new("alone")), device)?)));
    all_passed(bench.and_then(|bench| conformance::run_on(&bench)));
}

/// What a call of two ranks, cut in chunks of 8 bytes, tells the device of rank 0.
fn told(call: impl Fn(&Staged, &FakeDevice) -> Result<(), Error> + Sync) -> (Vec<Step>, Stream) {
    let mut logs = threads::run(2, |comm| {
        let device = Arc::new(FakeDevice::new(0, Pace::Late));
        let staged = Staged::with_chunks(comm, device.clone(), 8)?;
        call(&staged, &device)?;
        Ok::<_, Error>(device.take_log())
    });
    // The only stream that is made.
    (logs.swap_remove(0), Stream(1))
}

#[test]
fn an_all_reduce_waits_for_the_caller_and_the_caller_for_it() {
    let (log, side) = told(|comm, device| {
        let mut memory = device.allocate(16);
        comm.all_reduce(BufferMut::on_device(Kind::F32, &mut *memory)?, ReduceOp::Sum)
    });
    let [before, first, second, after] = [0, 1, 2, 3].map(EventName);
    let Some(Step::Keep(_, address)) = log.iter().find(|step| matches!(step, Step::Keep(..))) else {
        panic!("nothing is kept: {log:?}")
    };
    let expected = [
        Step::Record(FakeDevice::COMPUTE, before),
        Step::Block(side, before),
        // The second goes down before the first is communicated.
        Step::Down(side, 8),
        Step::Record(side, first),
        Step::Down(side, 8),
        Step::Record(side, second),
        Step::Synchronize(first),
        Step::Up(side, 8),
        Step::Record(side, first),
        Step::Synchronize(second),
        Step::Up(side, 8),
        Step::Record(side, second),
        Step::Keep(side, *address),
        Step::Record(side, after),
        Step::Block(FakeDevice::COMPUTE, after),
    ];
    assert_eq!(log, expected);
}

/// Checks that copies lie between an event of the caller's stream and one that it waits for, and that all is kept.
fn ordered(log: &[Step], side: Stream, buffers: usize) {
    let copy = |step: &Step| matches!(step, Step::Down(..) | Step::Up(..));
    let (first, last) = (log.iter().position(copy), log.iter().rposition(copy));
    let (Some(first), Some(last)) = (first, last) else { panic!("no copies: {log:?}") };
    let [Step::Record(FakeDevice::COMPUTE, before), Step::Block(begins, waited)] = log[..2] else { panic!("{log:?}") };
    assert!(begins == side && before == waited && first > 1, "{log:?}");
    let Some(Step::Block(FakeDevice::COMPUTE, after)) = log.last() else { panic!("{log:?}") };
    assert!(log[last..].contains(&Step::Record(side, *after)), "{log:?}");
    let elsewhere = |step: &&Step| matches!(step, Step::Down(s, _) | Step::Up(s, _) | Step::Keep(s, _) if *s != side);
    assert_eq!(log.iter().find(elsewhere), None);
    assert_eq!(log.iter().filter(|step| matches!(step, Step::Keep(..))).count(), buffers, "{log:?}");
}

#[test]
fn every_call_is_ordered_by_events() {
    let owned = |device: &FakeDevice, bytes| OwnedBuffer::on_device(Kind::F32, device.allocate(bytes));
    let (log, side) = told(|comm, device| {
        let (send, mut receive) = (device.allocate(64), device.allocate(32));
        let receive = BufferMut::on_device(Kind::F32, &mut *receive)?;
        comm.reduce_scatter(Buffer::on_device(Kind::F32, &*send)?, receive, ReduceOp::Sum)
    });
    ordered(&log, side, 2);
    let (log, side) =
        told(|comm, device| comm.start_all_gather(owned(device, 16)?, owned(device, 32)?)?.wait().map(drop));
    ordered(&log, side, 2);
    let (log, side) = told(|comm, device| comm.start_all_reduce(owned(device, 40)?, ReduceOp::Sum)?.wait().map(drop));
    ordered(&log, side, 1);
    let (log, side) = told(|comm, device| match comm.rank().0 {
        0 => comm.start_send(owned(device, 40)?, Rank(1), Tag(0))?.wait().map(drop),
        _ => comm.receive(BufferMut::on_device(Kind::F32, &mut *device.allocate(40))?, Rank(0), Tag(0)),
    });
    ordered(&log, side, 1);
    let (log, side) = told(|comm, device| match comm.rank().0 {
        0 => comm.start_receive(owned(device, 40)?, Rank(1), Tag(0))?.wait().map(drop),
        _ => comm.send(Buffer::on_device(Kind::F32, &*device.allocate(40))?, Rank(0), Tag(0)),
    });
    ordered(&log, side, 1);
}

#[test]
fn a_started_call_does_not_wait_for_the_device() {
    let (log, _) = told(|comm, device| {
        let request = comm.start_all_reduce(OwnedBuffer::on_device(Kind::F32, device.allocate(8))?, ReduceOp::Sum)?;
        let waited = device.take_log().iter().any(|step| matches!(step, Step::Synchronize(_)));
        assert!(!waited);
        request.wait().map(drop)
    });
    assert!(log.iter().any(|step| matches!(step, Step::Synchronize(_))));
}

fn out(memory: &mut dyn DeviceMemory) -> Result<BufferMut<'_>, Error> {
    BufferMut::on_device(Kind::I64, memory)
}

/// What calls come to.
type Outcomes = Vec<(Call, Result<(), Error>)>;

/// Makes every call that takes a buffer, with buffers on a device, and returns what each comes to.
fn every_call(comm: &dyn Communicator, device: &FakeDevice) -> Result<Outcomes, Error> {
    let (own, n, sum) = (comm.rank(), comm.size(), ReduceOp::Sum);
    let (mut receive, mut part) = (device.allocate(8 * n), device.allocate(8));
    let (send, one) = (device.allocate(8 * n), device.allocate(8));
    let (many, single) = (Buffer::on_device(Kind::I64, &*send)?, Buffer::on_device(Kind::I64, &*one)?);
    let owned = |elements: usize| OwnedBuffer::on_device(Kind::I64, device.allocate(8 * elements));
    let (counts, peer) = (vec![1; n], Rank((own.0 + 1) % n));
    Ok(vec![
        (Call::AllReduce, comm.all_reduce(out(&mut *receive)?, sum)),
        (Call::ReduceScatter, comm.reduce_scatter(many, out(&mut *part)?, sum)),
        (Call::AllGather, comm.all_gather(single, out(&mut *receive)?)),
        (Call::AllToAll, comm.all_to_all(many, out(&mut *receive)?)),
        (Call::AllToAllV, comm.all_to_all_v(many, &counts, out(&mut *receive)?, &counts)),
        (Call::Broadcast, comm.broadcast(out(&mut *receive)?, Rank(0))),
        (Call::Send, comm.send(single, peer, Tag(0))),
        (Call::Receive, comm.receive(out(&mut *receive)?, peer, Tag(0))),
        (Call::StartAllReduce, comm.start_all_reduce(owned(1)?, sum).map(drop)),
        (Call::StartReduceScatter, comm.start_reduce_scatter(owned(n)?, owned(1)?, sum).map(drop)),
        (Call::StartAllGather, comm.start_all_gather(owned(1)?, owned(n)?).map(drop)),
        (Call::StartSend, comm.start_send(owned(1)?, own, Tag(0)).map(drop)),
        (Call::StartReceive, comm.start_receive(owned(1)?, own, Tag(0)).map(drop)),
        (Call::StartSendReceive, comm.start_send_receive(owned(1)?, own, owned(1)?, own, Tag(0)).map(drop)),
    ])
}

#[test]
fn communicators_of_the_host_refuse_device_memory() {
    let refused = |outcomes: Vec<(Call, Result<(), Error>)>, group: &str, device: usize| {
        for (call, outcome) in outcomes {
            assert_eq!(outcome, Err(Error::OutOfReach { call, group: group.into(), device }));
        }
    };
    threads::run(2, |comm| {
        refused(every_call(&*comm, &FakeDevice::new(3, Pace::Late))?, "world", 3);
        // The wrong device is as far away.
        let staged = Staged::new(comm, Arc::new(FakeDevice::new(0, Pace::Late)))?;
        refused(every_call(&staged, &FakeDevice::new(3, Pace::Late))?, "world", 3);
        Ok::<_, Error>(())
    });
    let alone = every_call(&Solo::new("alone"), &FakeDevice::new(1, Pace::Late)).expect("buffers");
    // Nothing has to move, or there is nobody to send to.
    let needless = [Call::AllReduce, Call::Broadcast, Call::StartAllReduce, Call::Send];
    refused(alone.into_iter().filter(|(call, _)| !needless.contains(call)).collect(), "alone", 1);
    let text = Error::OutOfReach { call: Call::AllGather, group: "tp".into(), device: 1 }.to_string();
    let expected = "all_gather in group tp: a buffer lies on device 1, which this communicator cannot reach: \
                    carry it through host memory with `Staged`, or use `Nccl`";
    assert_eq!(text, expected);
}

#[test]
fn host_memory_is_not_received_into_while_it_goes_up() {
    let bytes = threads::run(2, |comm| {
        let device = Arc::new(FakeDevice::new(0, Pace::Late));
        // Rank 1 sends nothing, so that no copy down tells it that the last copy up is done: five steps, two slots.
        let staged = Staged::with_chunks(comm, device.clone(), 16)?;
        let counts = if staged.rank() == Rank(0) { ([0, 40], [0, 0]) } else { ([0, 0], [40, 0]) };
        let (send, mut receive) = (device.allocate(counts.0[1]), device.allocate(counts.1[0]));
        let mut host = device.pinned(40)?;
        host.bytes_mut().fill(7);
        if staged.rank() == Rank(0) {
            device.copy_up(&mut *host, 0, DeviceRun::new(&*send), FakeDevice::COMPUTE)?;
        }
        let send = Buffer::on_device(Kind::U8, &*send)?;
        staged.all_to_all_v(send, &counts.0, BufferMut::on_device(Kind::U8, &mut *receive)?, &counts.1)?;
        let mut found = device.pinned(40)?;
        device.copy_down(DeviceRun::new(&*receive), &mut *found, 0, FakeDevice::COMPUTE)?;
        let mut event = device.event()?;
        event.record(FakeDevice::COMPUTE)?;
        event.synchronize()?;
        Ok::<_, Error>(found.bytes_mut().to_vec())
    });
    assert_eq!(bytes[1], [7; 40]);
}

#[test]
fn buffers_on_two_sides_are_refused() {
    let device = Arc::new(FakeDevice::new(0, Pace::Late));
    let staged = Staged::new(Arc::new(Solo::new("alone")), device.clone()).expect("a stream");
    let memory = device.allocate(4);
    let send = Buffer::on_device(Kind::F32, &*memory).expect("a buffer");
    let outcome = staged.all_gather(send, BufferMut::new(&mut [0f32]));
    assert_eq!(outcome, Err(Error::MixedPlaces { call: Call::AllGather, group: "alone".into() }));
}

#[test]
fn an_error_inside_ends_the_call_and_nothing_else() {
    threads::run(2, |comm| {
        let (group, device) = (Arc::clone(&comm), Arc::new(FakeDevice::new(0, Pace::Late)));
        // The second step of the first call fails on both ranks.
        let faulty = Arc::new(Faulty::new(comm, 2, Fault::Fail));
        let staged = Staged::with_chunks(faulty, device.clone(), 1 << 16)?;
        let mut memory = device.allocate(5 << 15);
        let outcome = staged.all_reduce(BufferMut::on_device(Kind::F32, &mut *memory)?, ReduceOp::Sum);
        assert!(matches!(outcome, Err(Error::Injected { call: Call::AllReduce, count: 2, .. })), "{outcome:?}");
        group.barrier()?;
        let bench =
            Bench::on_device(Arc::new(staged), device.clone(), Arc::new(move |bytes| Ok(device.allocate(bytes))));
        assert_eq!(conformance::run_on(&bench)?.failures, [""; 0]);
        Ok::<_, Error>(())
    });
}

#[test]
fn a_failed_start_is_told_to_whoever_waits() {
    let device = Arc::new(FakeDevice::new(0, Pace::Late));
    let outcomes = threads::run(1, |comm| {
        let faulty = Arc::new(Faulty::new(comm, 1, Fault::Fail));
        let staged = Staged::new(faulty, device.clone())?;
        let owned = || OwnedBuffer::on_device(Kind::F32, device.allocate(40));
        let mut request = staged.start_send(owned()?, Rank(0), Tag(0))?;
        // Flushed by a call that has nothing to do with it, which goes well.
        staged.barrier()?;
        let polled = request.is_complete().map(drop);
        Ok::<_, Error>((polled, request.wait().map(drop)))
    });
    let injected = Error::Injected { call: Call::StartSend, group: "world".into(), count: 1 };
    assert_eq!(outcomes, [(Err(injected.clone()), Err(injected))]);
}
