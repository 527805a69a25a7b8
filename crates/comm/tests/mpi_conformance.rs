//! The conformance suite over MPI: `mpirun -n N mpi_conformance`.
//!
//! With the argument `--huge` it also sends more than 2³¹ bytes, which takes some 5 GiB a rank; with `--serialized` it
//! asks MPI for no more than MPI_THREAD_SERIALIZED.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mp_comm::conformance::{self, Report};
use mp_comm::ledger::Ledger;
use mp_comm::mpi::{self, Mpi, ThreadLevel, MESSAGE_CHUNK_BYTES};
use mp_comm::{BufferMut, Call, Communicator, Error, Rank, ReduceOp, Tag};

type Check = fn(&Arc<dyn Communicator>) -> Result<(), String>;

/// What MPI alone promises.
const CHECKS: [(&str, Check); 8] = [
    ("the library describes itself", library),
    ("MPI starts once", starts_once),
    ("a message that is too long is an error that names the call", too_long),
    ("a message that is too short is an error", too_short),
    ("a long message of another length is an error", long_and_short),
    ("a short message where a long one is expected is an error", short_for_long),
    ("the error of a started receive stays", error_stays),
    ("started collectives of many megabytes", many_chunks),
];

fn main() {
    let level = if asked("--serialized") { ThreadLevel::Serialized } else { ThreadLevel::Multiple };
    let world = match Mpi::initialize_with(level) {
        Ok(world) => world,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    let comm = world.communicator();
    let failed = match suite(&comm) {
        Ok(report) => {
            // Each rank knows its own reasons; they are printed in turn, the verdict last.
            for rank in 0..comm.size() {
                if comm.barrier().is_ok() && comm.rank() == Rank(rank) {
                    report.failures.iter().for_each(|line| println!("{line}"));
                }
            }
            if comm.barrier().is_ok() && comm.rank() == Rank(0) {
                println!("{} passed, {} failed", report.passed, report.failures.len());
            }
            !report.failures.is_empty() || !last_words(&comm)
        }
        Err(error) => {
            eprintln!("rank {}: {error}", comm.rank().0);
            world.abort(1)
        }
    };
    drop(comm);
    drop(world);
    std::process::exit(i32::from(failed));
}

/// Starts a sum that rank 0 leaves without waiting for, and the world as well; says whether the others still get it.
fn last_words(comm: &Arc<dyn Communicator>) -> bool {
    match comm.start_all_reduce(vec![1f32; 4 << 20].into(), ReduceOp::Sum) {
        Ok(_dropped) if comm.rank() == Rank(0) => true,
        Ok(request) => request.wait().is_ok_and(|sum| sum.to_vec().iter().all(|x: &f32| *x == comm.size() as f32)),
        Err(_) => false,
    }
}

fn asked(option: &str) -> bool {
    std::env::args().any(|argument| argument == option)
}

fn suite(comm: &Arc<dyn Communicator>) -> Result<Report, Error> {
    let mut report = conformance::run(comm)?;
    for (name, check) in CHECKS {
        // Some of the checks leave messages behind: each has a group to itself.
        let Some(own) = comm.split(Some(0), 0, "check")? else { continue };
        report.note(&**comm, name, check(&own))?;
    }
    if comm.size() <= 2 {
        let ledger: Arc<dyn Communicator> = Arc::new(Ledger::new(Arc::clone(comm), Arc::default()));
        let inner = conformance::run(&ledger)?;
        let failures = inner.failures.into_iter().map(|line| format!("under a ledger: {line}"));
        report.passed += inner.passed;
        report.failures.extend(failures);
    }
    if asked("--huge") {
        report.note(&**comm, "more than 2^31 bytes", conformance::beyond_c_int(comm))?;
    }
    Ok(report)
}

fn ensure(condition: bool, otherwise: impl std::fmt::Display) -> Result<(), String> {
    condition.then_some(()).ok_or_else(|| otherwise.to_string())
}

fn library(_: &Arc<dyn Communicator>) -> Result<(), String> {
    let library = mpi::library();
    ensure(!library.version.is_empty() && library.standard >= (3, 1), format!("{library:?}"))?;
    ensure(library.thread_level >= Some(ThreadLevel::Serialized), format!("{library:?}"))
}

fn starts_once(_: &Arc<dyn Communicator>) -> Result<(), String> {
    match Mpi::initialize() {
        Err(Error::Lifecycle { .. }) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// Sends `sent` bytes from rank 0 to rank 1, which expects `expected`; returns rank 1's error.
fn disagree(comm: &Arc<dyn Communicator>, sent: usize, expected: usize) -> Result<Option<Error>, String> {
    if comm.size() == 1 {
        return Ok(None);
    }
    let tag = Tag(9);
    let text = |error: Error| error.to_string();
    match comm.rank().0 {
        // Never waited for: the receiver gives up after the first chunk.
        0 => comm.start_send(vec![1u8; sent].into(), Rank(1), tag).map(drop).map_err(text)?,
        1 => {
            let mut buffer = vec![0u8; expected];
            let result = comm.receive(BufferMut::new(&mut buffer), Rank(0), tag);
            return result.err().map(Some).ok_or_else(|| "no error at the receiver".into());
        }
        _ => {}
    }
    Ok(None)
}

fn too_long(comm: &Arc<dyn Communicator>) -> Result<(), String> {
    let Some(error) = disagree(comm, 100, 10)? else { return Ok(()) };
    let named = matches!(&error, Error::Mpi { call: Call::Receive, peer: Some(Rank(0)), bytes: 10, group, .. }
        if group == "check");
    ensure(named, format!("{error:?}"))?;
    let text = error.to_string();
    ensure(text.contains("receive") && text.contains("rank 0") && text.contains("10 bytes"), text)
}

fn too_short(comm: &Arc<dyn Communicator>) -> Result<(), String> {
    let Some(error) = disagree(comm, 10, 100)? else { return Ok(()) };
    ensure(matches!(error, Error::Length { call: Call::Receive, expected: 100, found: 10, .. }), format!("{error:?}"))
}

fn long_and_short(comm: &Arc<dyn Communicator>) -> Result<(), String> {
    let Some(error) = disagree(comm, 2 * MESSAGE_CHUNK_BYTES + 100, 2 * MESSAGE_CHUNK_BYTES + 300)? else {
        return Ok(());
    };
    ensure(matches!(error, Error::Length { call: Call::Receive, expected: 300, found: 100, .. }), format!("{error:?}"))
}

fn short_for_long(comm: &Arc<dyn Communicator>) -> Result<(), String> {
    // The first chunk tells; the others never come.
    let Some(error) = disagree(comm, 100, 2 * MESSAGE_CHUNK_BYTES + 300)? else { return Ok(()) };
    ensure(matches!(error, Error::Length { call: Call::Receive, expected: 300, found: 100, .. }), format!("{error:?}"))
}

fn error_stays(comm: &Arc<dyn Communicator>) -> Result<(), String> {
    let text = |error: Error| error.to_string();
    match (comm.size(), comm.rank()) {
        (1, _) => Ok(()),
        (_, Rank(0)) => comm.start_send(vec![1u8; 100].into(), Rank(1), Tag(9)).map(drop).map_err(text),
        (_, Rank(1)) => {
            let mut request = comm.start_receive(vec![0u8; 10].into(), Rank(0), Tag(9)).map_err(text)?;
            let polled = loop {
                match request.is_complete() {
                    Ok(false) => std::thread::yield_now(),
                    Ok(true) => return Err("a message that is too long is no error".into()),
                    Err(error) => break error,
                }
            };
            let named = matches!(&polled, Error::Mpi { call: Call::StartReceive, peer: Some(Rank(0)), bytes: 10, .. });
            ensure(named, format!("{polled:?}"))?;
            ensure(request.is_complete().err().as_ref() == Some(&polled), "another poll tells something else")?;
            ensure(request.wait().err() == Some(polled), "the wait tells something else")
        }
        _ => Ok(()),
    }
}

fn many_chunks(comm: &Arc<dyn Communicator>) -> Result<(), String> {
    let start = || comm.start_all_reduce(vec![1f32; 4 << 20].into(), ReduceOp::Sum);
    let run = || -> Result<bool, Error> {
        let (first, second) = (start()?, start()?);
        let mut x = vec![1f32; 100];
        comm.all_reduce(BufferMut::new(&mut x), ReduceOp::Sum)?;
        let (second, first) = (second.wait()?.to_vec::<f32>(), first.wait()?.to_vec::<f32>());
        let expected = comm.size() as f32;
        Ok(first.iter().chain(&second).chain(&x).all(|x| *x == expected))
    };
    let since = Instant::now();
    ensure(run().map_err(|e| e.to_string())?, "wrong sums")?;
    ensure(since.elapsed() < Duration::from_secs(60), format!("took {:?}", since.elapsed()))
}
