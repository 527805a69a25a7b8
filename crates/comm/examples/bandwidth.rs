//! Measures what the MPI backend moves: `mpirun -n 2 target/release/examples/bandwidth`.
//!
//! Each line is the best of several runs, in GB/s of the buffer that a rank hands over.

use std::time::Instant;

use mp_comm::mpi::Mpi;
use mp_comm::{Buffer, BufferMut, Communicator, Error, ReduceOp};

const REPETITIONS: usize = 12;

fn main() -> Result<(), Error> {
    let world = Mpi::initialize()?;
    let comm = world.communicator();
    for mib in [1, 4, 16, 64] {
        let len = (mib << 20) / 4;
        let mut x = vec![0f32; len];
        let mut y = vec![0f32; len];
        let (n, bytes) = (comm.size(), 4 * len);
        let sum = ReduceOp::Sum;
        let measured = [
            ("all_reduce", best(&*comm, || comm.all_reduce(BufferMut::new(&mut x), sum))?),
            ("start_all_reduce", started(&*comm, &mut vec![0f32; len])?),
            ("reduce_scatter", {
                let (send, part) = (Buffer::new(&x), &mut y[..len / n]);
                best(&*comm, || comm.reduce_scatter(send, BufferMut::new(part), sum))?
            }),
            ("all_gather", {
                let (send, out) = (Buffer::new(&x[..len / n]), &mut y[..len / n * n]);
                best(&*comm, || comm.all_gather(send, BufferMut::new(out)))?
            }),
            ("broadcast", best(&*comm, || comm.broadcast(BufferMut::new(&mut y), mp_comm::Rank(0)))?),
        ];
        if comm.rank().0 == 0 {
            for (name, seconds) in measured {
                println!("{mib:>3} MiB {name:<18} {:6.2} GB/s", bytes as f64 / seconds / 1e9);
            }
        }
    }
    Ok(())
}

/// Returns the shortest time, of the slowest rank.
fn best(comm: &dyn Communicator, mut call: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let mut best = f64::INFINITY;
    for _ in 0..REPETITIONS {
        comm.barrier()?;
        let start = Instant::now();
        call()?;
        let mut seconds = [start.elapsed().as_secs_f64()];
        comm.all_reduce(BufferMut::new(&mut seconds), ReduceOp::Max)?;
        best = best.min(seconds[0]);
    }
    Ok(best)
}

fn started(comm: &dyn Communicator, x: &mut Vec<f32>) -> Result<f64, Error> {
    let mut buffer = Some(std::mem::take(x).into());
    best(comm, || {
        let Some(x) = buffer.take() else { return Ok(()) };
        buffer = Some(comm.start_all_reduce(x, ReduceOp::Sum)?.wait()?);
        Ok(())
    })
}
