//! `mp-cli doctor`: what this machine offers, what is wrong with it, and how to mend that.

use std::process::ExitCode;
use std::sync::Arc;

use mp_comm::mpi::{library, ThreadLevel};
use mp_comm::nccl::Library;
use mp_comm::solo::Solo;
use mp_comm::{BufferMut, Communicator, ReduceOp};
use mp_plan::words::{counted, size};
use mp_runtime::{device, Device, Tensor};
use serde::Serialize;

use crate::args::{Args, Command, Doctor, Output};
use crate::failure::Failure;
use crate::screen::Screen;
use crate::threads;
use crate::wire::{Place, Survey, World};

/// The libtorch release that the tensor bindings are made for.
const LIBTORCH: &str = "2.11.";

/// Training the default model takes about this much on every rank.
const RANK_BYTES: u64 = 1 << 30;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    Ok,
    Warn,
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    mark: Mark,
    what: &'static str,
    found: String,
    /// How to mend it, where it is not [`Mark::Ok`].
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { mark: Mark::Ok, what, found: found.into(), mend: None }
    }

    fn warn(what: &'static str, found: impl Into<String>, mend: &str) -> Self {
        Self { mark: Mark::Warn, what, found: found.into(), mend: Some(mend.into()) }
    }

    fn bad(what: &'static str, found: impl Into<String>, mend: &str) -> Self {
        Self { mark: Mark::Bad, what, found: found.into(), mend: Some(mend.into()) }
    }
}

/// Examines a machine without a launcher: whether MPI starts is a finding of its own.
pub fn alone(args: Result<Args, clap::Error>) -> ExitCode {
    let Ok(Args { command: Command::Doctor(Doctor { output }) }) = args else { return ExitCode::from(2) };
    let world = World::mpi();
    let outcome = report(&output, world.as_ref().map_err(ToString::to_string), true);
    match (world, outcome) {
        (Ok(world), outcome) => world.part(outcome),
        (Err(_), Ok(())) => ExitCode::SUCCESS,
        (Err(_), Err(failure)) => {
            failure.print();
            ExitCode::from(failure.code())
        }
    }
}

/// Examines the machine on all ranks of a launcher; rank 0 reports.
///
/// # Errors
/// [`Failure::Unready`] if training could not start.
pub fn run(args: &Doctor, world: &World) -> Result<(), Failure> {
    report(&args.output, Ok(world), world.is_first())
}

/// Looks at everything and prints it.
fn report(output: &Output, world: Result<&World, String>, speaks: bool) -> Result<(), Failure> {
    let mut screen = Screen::open(output, speaks)?;
    let mut findings = mpi(&world);
    if let Ok(world) = &world {
        findings.extend(cores(&**world.communicator())?);
    }
    findings.extend(libtorch());
    let here: Arc<dyn Communicator> = match &world {
        Ok(world) => Arc::clone(world.communicator()),
        Err(_) => Arc::new(Solo::new("alone")),
    };
    findings.extend(devices(&here));
    findings.extend(memory(world.as_ref().map_or(1, |world| world.communicator().local_size())));
    for finding in &findings {
        let mark = match finding.mark {
            Mark::Ok => "[ok]  ",
            Mark::Warn => "[warn]",
            Mark::Bad => "[bad] ",
        };
        screen.line(&format!("{mark} {}: {}", finding.what, finding.found));
        if let Some(mend) = &finding.mend {
            screen.line(&format!("       {mend}"));
        }
    }
    let ready = findings.iter().all(|finding| finding.mark != Mark::Bad);
    screen.line(if ready { "training can start" } else { "training cannot start: mend what is marked [bad]" });
    screen.result(&serde_json::json!({ "ready": ready, "findings": findings }))?;
    if ready {
        Ok(())
    } else {
        Err(Failure::Unready)
    }
}

/// Looks at the MPI library.
fn mpi(world: &Result<&World, String>) -> Vec<Finding> {
    let library = library();
    let first_line = library.version.lines().next().unwrap_or_default();
    let version = first_line.split(", package").next().unwrap_or(first_line);
    let (major, minor) = library.standard;
    let mut findings = vec![Finding::ok("MPI library", format!("{version} (MPI {major}.{minor})"))];
    findings.push(match (world, library.thread_level) {
        (Err(error), _) => Finding::bad("MPI start", error, "reinstall MPI, or run `cargo xtask setup`"),
        (Ok(_), Some(level)) if level >= ThreadLevel::Serialized => Finding::ok("MPI thread level", level.name()),
        (Ok(_), level) => Finding::bad(
            "MPI thread level",
            level.map_or("unknown", ThreadLevel::name),
            "build MPI with thread support, or run `cargo xtask setup`",
        ),
    });
    findings.push(match library.ulfm {
        true => Finding::ok("fault tolerance (ULFM)", "offered; mpirun --with-ft ulfm switches it on"),
        false => Finding::warn(
            "fault tolerance (ULFM)",
            "not offered: a lost rank ends the run",
            "Open MPI from 5.0 offers it; `cargo xtask setup` installs one",
        ),
    });
    findings.push(match library.cuda_aware {
        Some(true) => Finding::ok("CUDA-aware MPI", "yes"),
        Some(false) | None => Finding::ok("CUDA-aware MPI", "no: device memory would travel through host memory"),
    });
    if let Ok(world) = world {
        findings.push(all_reduce(&**world.communicator()));
    }
    findings
}

/// Tries a collective.
fn all_reduce(world: &dyn Communicator) -> Finding {
    let what = "all-reduce";
    let mut ones = [1.0f64; 3];
    match world.all_reduce(BufferMut::new(&mut ones), ReduceOp::Sum) {
        Ok(()) if ones == [world.size() as f64; 3] => {
            Finding::ok(what, format!("works over {}", counted(world.size(), "rank")))
        }
        Ok(()) => Finding::bad(what, format!("gives {ones:?}"), "reinstall MPI, or run `cargo xtask setup`"),
        Err(error) => Finding::bad(what, error.to_string(), "reinstall MPI, or run `cargo xtask setup`"),
    }
}

/// Looks at what each rank may compute with.
fn cores(world: &dyn Communicator) -> mp_comm::Result<Vec<Finding>> {
    let (cores, share, ranks) = (threads::cores(), threads::share(world)?, world.local_size());
    device::prepare(share);
    let found = format!(
        "{}, {} on this node, {} each",
        counted(cores, "core"),
        counted(ranks, "rank"),
        counted(share, "thread")
    );
    let mend = "more ranks than cores train slowly; start fewer, or bind them with mpirun --bind-to none";
    Ok(vec![match ranks > cores {
        true => Finding::warn("cores", found, mend),
        false => Finding::ok("cores", found),
    }])
}

/// Looks at libtorch, and tries a product.
fn libtorch() -> Vec<Finding> {
    let version = device::libtorch_version();
    let release = match version.starts_with(LIBTORCH) {
        true => Finding::ok("libtorch", version),
        false => {
            Finding::bad("libtorch", version, "install libtorch 2.11, or run `cargo xtask setup`, and build again")
        }
    };
    let product = || -> Result<f64, mp_runtime::Error> {
        let row = Tensor::f_from_slice(&[1.0f64, 2.0])?.f_reshape([1, 2])?;
        Ok(row.f_matmul(&row.f_transpose(0, 1)?)?.f_double_value(&[0, 0])?)
    };
    let mend = "reinstall libtorch, or run `cargo xtask setup`, and build again";
    let tried = match product() {
        Ok(5.0) => Finding::ok("tensor product", "works"),
        Ok(value) => Finding::bad("tensor product", format!("gives {value} instead of 5"), mend),
        Err(error) => Finding::bad("tensor product", error.to_string(), mend),
    };
    vec![release, tried]
}

/// Looks for devices, and for what would carry tensors that lie there.
fn devices(world: &Arc<dyn Communicator>) -> Vec<Finding> {
    let what = "devices";
    let survey = match Survey::of_this_machine(world) {
        Ok(survey) => survey,
        Err(error) => return vec![Finding::warn(what, error.to_string(), "set train.device=cpu")],
    };
    match &survey.place {
        Place::Host(None) => vec![Finding::ok(what, "the CPU; there is no NVIDIA driver")],
        Place::Host(Some(why)) => {
            let mend = "install libtorch with CUDA, and a driver that fits it, where ranks are to use GPUs";
            vec![Finding::warn(what, format!("the CPU alone: {why}"), mend)]
        }
        Place::Device { .. } => {
            let found = format!("the CPU and {}", counted(device::cuda_devices(), "CUDA device"));
            let carried = format!("{}: {}", survey.transport(), survey.choice.reason);
            vec![Finding::ok(what, found), nccl(), Finding::ok("transport", carried)]
        }
    }
}

/// Looks for NCCL, where there is something to join.
fn nccl() -> Finding {
    match Library::open() {
        Ok(library) => Finding::ok("NCCL", library.version()),
        Err(error) => Finding::warn("NCCL", "none", &error.to_string()),
    }
}

/// Looks at the memory that is free.
fn memory(local_ranks: usize) -> Vec<Finding> {
    let what = "memory";
    vec![match device::free_bytes(Device::Cpu) {
        Some(free) => {
            let found = format!("{} free", size(free as usize));
            match free < RANK_BYTES * local_ranks as u64 {
                true => Finding::warn(what, found, "each rank of a small model takes about 1 GiB; end other programs"),
                false => Finding::ok(what, found),
            }
        }
        None => Finding::warn(what, "unknown", "the system does not say how much is free"),
    }]
}
