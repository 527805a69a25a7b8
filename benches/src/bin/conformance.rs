//! The conformance suite of communicators on buffers of a device: `mpirun -n N conformance --device cuda`.
//!
//! Prints `N passed, M failed` last, on rank 0. The fake device serves to try this program where there is no other.

use std::sync::Arc;

use anyhow::{ensure, Result};
use clap::{Parser, ValueEnum};
use mp_benches::place;
use mp_comm::conformance::{self, Bench, Report, Rounding};
use mp_comm::fake::{FakeDevice, Pace};
use mp_comm::mpi::Mpi;
use mp_comm::nccl::{Library, Nccl, PATIENCE};
use mp_comm::staged::Staged;
use mp_comm::{Accelerator, Communicator, DeviceMemory, Error, Rank};
use mp_model::accelerator::Cuda;
use mp_model::buffers::DeviceTensor;
use mp_runtime::{device, Device, Kind, Tensor};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kinds {
    /// A device in the host's memory, whose work is late
    Fake,
    /// A CUDA device; ranks may share it, but over NCCL
    Cuda,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// MPI, through page-locked memory of the host
    Staged,
    /// MPI, which is handed device pointers
    Direct,
    /// NCCL, with a device a rank
    Nccl,
}

/// The device, and what is to conform.
#[derive(Debug, Parser)]
struct Options {
    #[arg(long)]
    device: Kinds,
    #[arg(long, default_value = "staged")]
    transport: Way,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mpi = Mpi::initialize()?;
    let world = mpi.communicator();
    device::prepare(1);
    let report = check(&options, &world).unwrap_or_else(|error| {
        eprintln!("{error:#}");
        mpi.abort(1)
    });
    report.failures.iter().for_each(|line| println!("{line}"));
    if world.barrier().is_ok() && world.rank() == Rank(0) {
        println!("{} passed, {} failed", report.passed, report.failures.len());
    }
    ensure!(report.failures.is_empty(), "rank {}: the suite failed", world.rank().0);
    Ok(())
}

fn check(options: &Options, world: &Arc<dyn Communicator>) -> Result<Report> {
    let bench = match options.device {
        Kinds::Fake => {
            let device = Arc::new(FakeDevice::new(world.local_rank().0, Pace::Late));
            let owner = Arc::clone(&device);
            let comm = over(options.transport, world, device.clone())?;
            Bench::on_device(comm, device, Arc::new(move |bytes| Ok(owner.allocate(bytes))))
        }
        Kinds::Cuda => {
            let index = place::cuda(&**world)?;
            let device = Arc::new(Cuda::new(index));
            let comm = over(options.transport, world, device.clone())?;
            Bench::on_device(comm, device, Arc::new(move |bytes| tensor(index, bytes)))
        }
    };
    let rounding = if options.transport == Way::Nccl { Rounding::EachSum } else { Rounding::Once };
    Ok(conformance::run_on(&bench.rounding(rounding))?)
}

fn over(way: Way, world: &Arc<dyn Communicator>, device: Arc<dyn Accelerator>) -> Result<Arc<dyn Communicator>> {
    let world = Arc::clone(world);
    Ok(match way {
        Way::Staged => Arc::new(Staged::new(world, device)?),
        Way::Direct => Arc::new(Staged::direct(world, device)?),
        Way::Nccl => Arc::new(Nccl::new(world, device, Library::open()?, PATIENCE)?),
    })
}

/// Allocates a tensor of so many bytes.
fn tensor(index: usize, bytes: usize) -> mp_comm::Result<Box<dyn DeviceMemory>> {
    let made = || -> mp_model::Result<DeviceTensor> {
        let tensor =
            Tensor::f_empty([bytes as i64], (Kind::Uint8, Device::Cuda(index))).map_err(mp_runtime::Error::from)?;
        DeviceTensor::new(&tensor)
    };
    let failed =
        |error: mp_model::Error| Error::Device { device: index, doing: "allocating", message: error.to_string() };
    made().map(|tensor| Box::new(tensor) as Box<dyn DeviceMemory>).map_err(failed)
}
