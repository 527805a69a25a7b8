//! Buffers on a device over MPI: `mpirun -n N mpi_staged` runs the conformance suite on a fake device.

use std::sync::Arc;

use mp_comm::conformance::{self, Bench, Report};
use mp_comm::fake::{FakeDevice, Pace};
use mp_comm::mpi::Mpi;
use mp_comm::staged::Staged;
use mp_comm::{BufferMut, Call, Communicator, Error, Kind, Rank, ReduceOp};

fn main() {
    let world = match Mpi::initialize() {
        Ok(world) => world,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    let comm = world.communicator();
    let report = suite(&comm).unwrap_or_else(|error| {
        eprintln!("rank {}: {error}", comm.rank().0);
        world.abort(1)
    });
    report.failures.iter().for_each(|line| println!("{line}"));
    if comm.barrier().is_ok() && comm.rank() == Rank(0) {
        println!("{} passed, {} failed", report.passed, report.failures.len());
    }
    drop(comm);
    drop(world);
    std::process::exit(i32::from(!report.failures.is_empty()));
}

fn suite(comm: &Arc<dyn Communicator>) -> Result<Report, Error> {
    let device = Arc::new(FakeDevice::new(comm.local_rank().0, Pace::Late));
    let staged: Arc<dyn Communicator> = Arc::new(Staged::new(Arc::clone(comm), device.clone())?);
    let owner = Arc::clone(&device);
    let bench = Bench::on_device(staged, device.clone(), Arc::new(move |bytes| Ok(owner.allocate(bytes))));
    let mut report = conformance::run_on(&bench)?;
    report.note(&**comm, "a plain group refuses device memory", refusal(&**comm, &device))?;
    Ok(report)
}

fn refusal(comm: &dyn Communicator, device: &FakeDevice) -> Result<(), String> {
    let mut memory = device.allocate(8);
    let buffer = BufferMut::on_device(Kind::F64, &mut *memory).map_err(|error| error.to_string())?;
    match comm.all_reduce(buffer, ReduceOp::Sum) {
        Err(Error::OutOfReach { call: Call::AllReduce, .. }) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
