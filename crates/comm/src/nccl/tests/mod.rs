//! NCCL as this crate uses it, over a library that behaves as NCCL does, or does not.

mod fake;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::fake::{build, FakeNccl, Fault};
use super::{Library, Nccl};
use crate::conformance::{self, Bench, Rounding};
use crate::fake::{FakeDevice, Pace, Step};
use crate::ledger::{Ledger, Log};
use crate::threads::{run, try_run, Failure};
use crate::{
    BufferMut, Call, Communicator, DeviceMemory, Error, Kind, OwnedBuffer, Rank, ReduceOp, Result, Stream, Tag,
};

/// Longer than any test takes.
const AGES: Duration = Duration::from_secs(300);
/// Soon over, for what is to hang.
const SOON: Duration = Duration::from_millis(200);
/// For what must not hang, and would for good.
const A_WHILE: Duration = Duration::from_secs(20);

/// The stream of the first group; the one before is that of copies.
const OWN: Stream = Stream(2);

/// This rank's device and communicator.
fn join(fake: &FakeNccl, host: Arc<dyn Communicator>, patience: Duration) -> Result<(Arc<FakeDevice>, Nccl)> {
    let device = Arc::new(FakeDevice::new(host.rank().0, Pace::Prompt));
    let nccl = Nccl::new(host, device.clone(), Arc::clone(&fake.library), patience)?;
    Ok((device, nccl))
}

fn owned(device: &FakeDevice, elements: usize) -> Result<OwnedBuffer> {
    OwnedBuffer::on_device(Kind::F32, device.allocate(4 * elements))
}

/// Runs the suite with buffers of the fake devices.
fn conforms(size: usize) {
    let fake = FakeNccl::new();
    let reports = run(size, |host| {
        let (device, nccl) = join(&fake, host, AGES)?;
        let owner = Arc::clone(&device);
        let bench = Bench::on_device(Arc::new(nccl), device, Arc::new(move |bytes| Ok(owner.allocate(bytes))));
        conformance::run_on(&bench.rounding(Rounding::EachSum))
    });
    reports.iter().for_each(|report| assert!(report.failures.is_empty() && report.passed > 20, "{report}"));
    let (aborts, destroys) = fake.ended();
    assert!(aborts == 0 && destroys > 0, "{aborts} aborted and {destroys} destroyed");
}

#[test]
fn one_rank_conforms() {
    conforms(1);
}

#[test]
fn two_ranks_conform() {
    conforms(2);
}

#[test]
fn four_ranks_conform() {
    conforms(4);
}

#[test]
fn host_buffers_go_over_the_host() {
    let fake = FakeNccl::new();
    let reports = run(2, |host| {
        let (device, nccl) = join(&fake, host, AGES)?;
        let comm: Arc<dyn Communicator> = Arc::new(nccl);
        let report = conformance::run(&comm)?;
        assert!(device.take_log().is_empty());
        Ok::<_, Error>(report)
    });
    reports.iter().for_each(|report| assert!(report.failures.is_empty(), "{report}"));
}

#[test]
fn a_call_waits_for_the_caller_and_the_caller_for_it() {
    let fake = FakeNccl::new();
    let log = run(1, |host| {
        let (device, nccl) = join(&fake, host, AGES)?;
        let mut memory = device.allocate(16);
        let address = memory.address();
        nccl.all_reduce(BufferMut::on_device(Kind::F32, &mut *memory)?, ReduceOp::Sum)?;
        Ok::<_, Error>((device.take_log(), address))
    });
    let (log, address) = &log[0];
    let (compute, side) = (FakeDevice::COMPUTE, OWN);
    let [Step::Record(first, before), Step::Block(waits, same), Step::Keep(kept, at), .., Step::Block(last, after)] =
        log[..]
    else {
        panic!("{log:?}")
    };
    assert_eq!((first, waits, before), (compute, side, same), "{log:?}");
    assert_eq!((kept, at, last), (side, *address, compute), "{log:?}");
    assert!(log.contains(&Step::Record(side, after)), "{log:?}");
}

#[test]
fn the_watching_thread_is_on_the_device_that_it_asks() {
    let fake = FakeNccl::new();
    run(2, |host| {
        let (device, nccl) = join(&fake, host, AGES)?;
        nccl.start_all_reduce(owned(&device, 4)?, ReduceOp::Sum)?.wait()?;
        let own = std::thread::current().id();
        let watching = loop {
            match device.asked().into_iter().find(|(thread, _)| *thread != own) {
                Some((_, selected)) => break selected,
                None => std::thread::yield_now(),
            }
        };
        assert_eq!(watching, Some(nccl.rank().0));
        Ok::<_, Error>(())
    });
}

/// A message that is on its way down is in before a call that waits for its receiver.
#[test]
fn what_was_started_is_let_in_before_a_call() {
    let fake = FakeNccl::new();
    let outcomes = run(2, |host| {
        // Nothing goes down before somebody waits for it.
        let device = Arc::new(FakeDevice::new(host.rank().0, Pace::Late));
        let nccl = Nccl::new(host, device.clone(), Arc::clone(&fake.library), A_WHILE)?;
        let sent = match nccl.rank() {
            Rank(0) => Some(nccl.start_send(owned(&device, 4)?, Rank(1), Tag(3))?),
            _ => {
                let mut memory = device.allocate(16);
                nccl.receive(BufferMut::on_device(Kind::F32, &mut *memory)?, Rank(0), Tag(3))?;
                None
            }
        };
        let mut memory = device.allocate(16);
        nccl.all_reduce(BufferMut::on_device(Kind::F32, &mut *memory)?, ReduceOp::Sum)?;
        // As one does who reads the sum on the host, and calls nobody meanwhile.
        let mut end = crate::Accelerator::event(&*device)?;
        end.record(FakeDevice::COMPUTE)?;
        end.synchronize()?;
        // In vain, where the call was aborted.
        let outcome = nccl.barrier();
        drop(sent);
        Ok::<_, Error>(outcome)
    });
    assert_eq!(outcomes, [Ok(()), Ok(())]);
}

#[test]
fn two_ranks_on_one_device_are_refused_before_nccl() {
    let fake = FakeNccl::new();
    let outcomes = run(3, |host| {
        let device = Arc::new(FakeDevice::new(host.rank().0 % 2, Pace::Prompt));
        Ok::<_, Error>(Nccl::new(host, device, Arc::clone(&fake.library), AGES).map(drop))
    });
    let refusal = Error::SharedDevice { group: "world".into(), first: Rank(0), second: Rank(2) };
    assert_eq!(
        refusal.to_string(),
        "group world: ranks 0 and 2 have one device, which NCCL refuses: start one rank a device, \
         or set parallel.transport=mpi"
    );
    assert_eq!(outcomes, [Err(refusal.clone()), Err(refusal.clone()), Err(refusal)]);
}

#[test]
fn an_error_of_the_library_is_told_in_its_words() {
    let fake = FakeNccl::new();
    run(2, |host| {
        let (device, nccl) = join(&fake, Arc::clone(&host), AGES)?;
        host.barrier()?;
        fake.misbehave("ncclAllGather", Fault::Fails(5));
        let error = nccl.start_all_gather(owned(&device, 4)?, owned(&device, 8)?).expect_err("told to fail");
        let expected = "start_all_gather in group world: ncclAllGather of 16 bytes failed with invalid usage: \
                        ncclAllGather was told to fail (code 5)";
        assert_eq!(error.to_string(), expected);
        // It is not used any more.
        assert_eq!(nccl.start_all_reduce(owned(&device, 4)?, ReduceOp::Sum).map(drop), Err(error.clone()));
        assert_eq!(nccl.barrier(), Err(error));
        host.barrier()
    });
    assert_eq!(fake.ended(), (2, 0));
}

#[test]
fn an_error_within_a_group_of_sends_is_told() {
    let fake = FakeNccl::new();
    run(2, |host| {
        let (device, nccl) = join(&fake, Arc::clone(&host), AGES)?;
        host.barrier()?;
        fake.misbehave("ncclSend", Fault::Fails(4));
        let (send, mut receive) = (device.allocate(8), device.allocate(8));
        let send = crate::Buffer::on_device(Kind::F32, &*send)?;
        let outcome = nccl.all_to_all(send, BufferMut::on_device(Kind::F32, &mut *receive)?);
        assert!(matches!(outcome, Err(Error::Nccl { call: Call::AllToAll, code: 4, .. })), "{outcome:?}");
        host.barrier()
    });
}

#[test]
fn an_error_within_a_pair_is_told() {
    for function in ["ncclSend", "ncclRecv", "ncclGroupEnd"] {
        let fake = FakeNccl::new();
        run(2, |host| {
            let (device, nccl) = join(&fake, Arc::clone(&host), AGES)?;
            host.barrier()?;
            fake.misbehave(function, Fault::Fails(4));
            let (peer, (send, receive)) = (Rank(1 - host.rank().0), (owned(&device, 2)?, owned(&device, 2)?));
            let outcome = nccl.start_send_receive(send, peer, receive, peer, Tag(0)).map(drop);
            let told = matches!(outcome, Err(Error::Nccl { call: Call::StartSendReceive, code: 4, bytes: 8, .. }));
            assert!(told, "{function}: {outcome:?}");
            host.barrier()
        });
    }
}

/// Passes a buffer once around a ring, and returns what the host's communicator was called for, and the device for copies.
fn around(
    hop: impl Fn(&Nccl, &FakeDevice, OwnedBuffer, [Rank; 2]) -> Result<OwnedBuffer> + Sync,
) -> Vec<(Vec<(Call, u64)>, usize)> {
    const SIZE: usize = 3;
    let fake = FakeNccl::new();
    run(SIZE, |host| {
        let (rank, log) = (host.rank().0, Arc::new(Log::new()));
        let (device, nccl) = join(&fake, Arc::new(Ledger::new(host, Arc::clone(&log))), AGES)?;
        log.take();
        device.take_log();
        let mut buffer = owned(&device, 1000)?;
        for _ in 0..SIZE {
            buffer = hop(&nccl, &device, buffer, [Rank((rank + 1) % SIZE), Rank((rank + SIZE - 1) % SIZE)])?;
        }
        let copies = |step: &&Step| matches!(step, Step::Down(..) | Step::Up(..));
        let copied = device.take_log().iter().filter(copies).count();
        Ok::<_, Error>((log.take().iter().map(|entry| (entry.call, entry.bytes)).collect(), copied))
    })
}

#[test]
fn pairs_do_not_touch_the_host_where_messages_do() {
    let pairs = around(|nccl, device, buffer, [next, before]| {
        nccl.start_send_receive(buffer, next, owned(device, 1000)?, before, Tag(0))?.wait()
    });
    assert_eq!(pairs, vec![(vec![], 0); 3]);
    let messages = around(|nccl, device, buffer, [next, before]| {
        let received = nccl.start_receive(owned(device, 1000)?, before, Tag(0))?;
        nccl.start_send(buffer, next, Tag(0))?.wait()?;
        received.wait()
    });
    for (calls, copies) in messages {
        let carried = |call: Call| calls.iter().filter(|entry| **entry == (call, 4000)).count();
        assert_eq!((carried(Call::StartSend), carried(Call::StartReceive), calls.len(), copies), (3, 3, 6, 6));
    }
}

/// Starts a sum that goes wrong on the device, and polls until that shows.
fn goes_wrong(fault: Fault, patience: Duration) -> Vec<Error> {
    let fake = FakeNccl::new();
    let errors = run(2, |host| {
        let (device, nccl) = join(&fake, Arc::clone(&host), patience)?;
        host.barrier()?;
        fake.misbehave("ncclAllReduce", fault);
        let mut request = nccl.start_all_reduce(owned(&device, 4)?, ReduceOp::Sum)?;
        let error = loop {
            match request.is_complete() {
                Ok(_) => std::thread::yield_now(),
                Err(error) => break error,
            }
        };
        assert_eq!(request.wait().map(drop), Err(error.clone()));
        assert_eq!(nccl.barrier(), Err(error.clone()));
        // What hung is over: the stream comes to its end.
        let mut end = crate::Accelerator::event(&*device)?;
        end.record(OWN)?;
        end.synchronize()?;
        host.barrier()?;
        Ok::<_, Error>(error)
    });
    assert_eq!(fake.ended().0, 2);
    errors
}

#[test]
fn what_hangs_is_aborted_and_named() {
    for error in goes_wrong(Fault::Hangs, SOON) {
        let expected = "start_all_reduce in group world: the device did not come to an end within 0.2 s, \
                        so that the group's NCCL communicator was aborted";
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn an_error_that_is_reported_later_is_told() {
    for error in goes_wrong(Fault::Later, AGES) {
        let expected =
            "start_all_reduce in group world: ncclCommGetAsyncError of 0 bytes failed with remote process exited \
                        or there was a network error: a peer has gone (code 6)";
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_rank_that_never_joins_is_waited_for_in_vain() {
    let fake = FakeNccl::new();
    fake.misbehave("join", Fault::Hangs);
    let outcomes = run(2, |host| Ok::<_, Error>(join(&fake, host, SOON).map(drop)));
    let reason =
        "split in group world: ncclCommInitRankConfig did not come to an end within 0.2 s, so that the group's NCCL \
                  communicator was aborted";
    let expected = Error::NcclStart { group: "world".into(), rank: Rank(0), reason: reason.into() };
    assert_eq!(outcomes, [Err(expected.clone()), Err(expected)]);
    assert_eq!(fake.ended(), (2, 0));
}

#[test]
fn a_rank_that_cannot_join_fails_all_in_its_words() {
    let fake = FakeNccl::new();
    fake.misbehave("ncclCommInitRankConfig of rank 1", Fault::Fails(5));
    // The others wait in vain, and say nothing of it.
    let outcomes = run(3, |host| Ok::<_, Error>(join(&fake, host, SOON).map(drop)));
    let text = "NCCL does not start in group world: rank 1: split in group world: ncclCommInitRankConfig of 0 bytes failed with \
                invalid usage: ncclCommInitRankConfig of rank 1 was told to fail (code 5)";
    for outcome in outcomes {
        assert_eq!(outcome.expect_err("rank 1 fails").to_string(), text);
    }
    assert_eq!(fake.ended(), (2, 0));
}

#[test]
fn ranks_that_have_joined_give_up_where_another_cannot_go_on() {
    let fake = FakeNccl::new();
    fake.misbehave("join of rank 1", Fault::Fails(6));
    let outcomes = run(2, |host| Ok::<_, Error>(join(&fake, host, AGES).map(drop)));
    for outcome in outcomes {
        assert!(matches!(outcome, Err(Error::NcclStart { rank: Rank(1), .. })), "{outcome:?}");
    }
    assert_eq!(fake.ended(), (2, 0));
}

/// Tries a group out with a fault in a function, and returns what each rank was told.
fn tried_out(fault: Option<(&str, Fault)>, patience: Duration) -> Vec<std::result::Result<(), String>> {
    let fake = FakeNccl::new();
    let outcomes = run(2, |host| {
        let (device, nccl) = join(&fake, Arc::clone(&host), patience)?;
        host.barrier()?;
        fault.into_iter().for_each(|(function, fault)| fake.misbehave(function, fault));
        host.barrier()?;
        let told = nccl.try_out(owned(&device, 1));
        // A group that carries nothing is over.
        let after =
            nccl.start_all_reduce(owned(&device, 1)?, ReduceOp::Sum).and_then(|request| request.wait().map(drop));
        assert_eq!(after.is_ok(), told.is_ok(), "{after:?}");
        Ok::<_, Error>(told.map_err(|error| error.to_string()))
    });
    assert_eq!(fake.ended(), if outcomes[0].is_ok() { (0, 2) } else { (2, 0) });
    outcomes
}

#[test]
fn a_group_that_carries_nothing_is_found_out_by_all_before_it_is_used() {
    assert_eq!(tried_out(None, AGES), [Ok(()), Ok(())]);
    let head = "NCCL does not start in group world: rank ";
    for (fault, words) in [
        (
            ("ncclAllReduce of rank 1", Fault::Fails(2)),
            "1: start_all_reduce in group world: ncclAllReduce of 4 bytes failed",
        ),
        (("ncclAllReduce", Fault::Hangs), "0: start_all_reduce in group world: the device did not come to an end"),
    ] {
        let told = tried_out(Some(fault), SOON);
        assert_eq!(told[0], told[1]);
        let text = told[0].as_ref().unwrap_err();
        assert!(text.starts_with(&format!("{head}{words}")), "{text}");
    }
}

#[test]
fn a_rank_without_a_buffer_to_try_with_fails_all_in_its_words() {
    let fake = FakeNccl::new();
    let outcomes = run(2, |host| {
        let (device, nccl) = join(&fake, Arc::clone(&host), SOON)?;
        let own = match host.rank() {
            Rank(0) => owned(&device, 1),
            _ => Err(Error::Device { device: 1, doing: "allocating", message: "full".into() }),
        };
        Ok::<_, Error>(nccl.try_out(own))
    });
    let reason = Error::Device { device: 1, doing: "allocating", message: "full".into() }.to_string();
    let expected = Error::NcclStart { group: "world".into(), rank: Rank(1), reason };
    assert_eq!(outcomes, [Err(expected.clone()), Err(expected)]);
}

#[test]
fn rank_0_without_an_id_fails_all() {
    let fake = FakeNccl::new();
    fake.misbehave("ncclGetUniqueId", Fault::Fails(5));
    for outcome in run(2, |host| Ok::<_, Error>(join(&fake, host, AGES).map(drop))) {
        let text = outcome.expect_err("there is no id").to_string();
        assert!(
            text.starts_with("NCCL does not start in group world: rank 0: split in group world: ncclGetUniqueId"),
            "{text}"
        );
    }
}

#[test]
fn a_rank_that_panics_aborts_instead_of_waiting() {
    let fake = FakeNccl::new();
    let outcomes = try_run(2, |host| {
        let (device, nccl) = join(&fake, host, SOON)?;
        if nccl.rank() == Rank(1) {
            panic!("on purpose");
        }
        let request = nccl.start_all_reduce(owned(&device, 4)?, ReduceOp::Sum)?;
        drop(request);
        Ok::<_, Error>(())
    });
    assert!(matches!(outcomes[1], Err(Failure::Panic(_))));
    assert_eq!(fake.ended().0, 2);
}

/// Memory that says it lies elsewhere than it does.
struct Elsewhere(usize, Box<dyn DeviceMemory>);

impl DeviceMemory for Elsewhere {
    fn device(&self) -> usize {
        0
    }
    fn address(&self) -> usize {
        self.0
    }
    fn bytes(&self) -> usize {
        self.1.bytes()
    }
}

#[test]
fn addresses_that_are_made_up_never_reach_nccl() {
    let fake = FakeNccl::new();
    run(1, |host| {
        let (device, nccl) = join(&fake, host, AGES)?;
        let other = FakeDevice::new(1, Pace::Prompt);
        let here = [0u8; 64];
        let end = device.allocate(64).address() + 32;
        // Of the host; of another device; with an end beyond what is allocated.
        for address in [here.as_ptr() as usize, other.allocate(64).address(), end] {
            let mut memory = Elsewhere(address, device.allocate(64));
            let outcome = nccl.all_reduce(BufferMut::on_device(Kind::U8, &mut memory)?, ReduceOp::Sum);
            let refused =
                matches!(&outcome, Err(Error::Device { device: 0, doing: "checking a buffer's address", .. }));
            assert!(refused, "{address:#x}: {outcome:?}");
        }
        Ok::<_, Error>(())
    });
    assert_eq!(fake.ended(), (0, 1));
}

fn refusal(nccl: &Path, cuda: &Path) -> String {
    Library::open_at(nccl, cuda).expect_err("no NCCL").to_string()
}

#[test]
fn libraries_that_are_absent_broken_or_old_are_refused_with_the_way_out() {
    let (folder, good) = build(&[]);
    let way_out = "install NCCL 2.18 or later and a driver, put their folders on LD_LIBRARY_PATH, \
                   or set parallel.transport=mpi";
    let absent = folder.path().join("absent.so.2");
    let text = refusal(&absent, &good);
    assert!(text.contains("absent.so.2") && text.contains("No such file") && text.ends_with(way_out), "{text}");
    let text = refusal(&good, &absent);
    assert!(text.contains("absent.so.2") && text.ends_with(way_out), "{text}");

    let broken = folder.path().join("broken.so.2");
    std::fs::write(&broken, "no library").expect("a file");
    let text = refusal(&broken, &good);
    assert!(text.contains("broken.so.2") && text.ends_with(way_out), "{text}");

    let (_lacking_folder, lacking) = build(&["LACKING"]);
    let text = refusal(&lacking, &good);
    assert!(text.contains("it has no function ncclCommDestroy") && text.ends_with(way_out), "{text}");

    let (_old_folder, old) = build(&["VERSION=21703"]);
    let text = refusal(&old, &good);
    let expected = "is NCCL 2.17.3, and 2.18.1 or later is needed: install that, or set parallel.transport=mpi";
    assert!(text.ends_with(expected), "{text}");
    let (_ancient_folder, ancient) = build(&["VERSION=2708"]);
    assert!(refusal(&ancient, &good).contains("is NCCL 2.7.8"));
    assert_eq!(Library::open_at(&good, &good).expect("a good one").version(), "2.28.9");
}
