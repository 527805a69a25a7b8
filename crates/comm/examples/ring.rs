//! Ranks pass a token around a ring over MPI: `mpirun -n 4 target/debug/examples/ring`.

use mp_comm::ledger::{Ledger, Log};
use mp_comm::mpi::{library, Mpi};
use mp_comm::{Communicator, Error, Rank, Tag};
use std::sync::Arc;

fn main() -> Result<(), Error> {
    let world = Mpi::initialize()?;
    let log = Arc::new(Log::new());
    let comm = Ledger::new(world.communicator(), Arc::clone(&log));
    let (rank, size) = (comm.rank().0, comm.size());

    // Every rank hears from the left while it tells the right.
    let mut heard = vec![rank as i64];
    for _ in 1..size {
        let receive = comm.start_receive(vec![0i64].into(), Rank((rank + size - 1) % size), Tag(0))?;
        let send = comm.start_send(vec![heard[heard.len() - 1]].into(), Rank((rank + 1) % size), Tag(0))?;
        heard.extend(receive.wait()?.to_vec::<i64>());
        send.wait()?;
    }

    // In rank order.
    for turn in 0..size {
        comm.barrier()?;
        if turn == rank {
            println!("rank {rank} of {size} (local {} of {}) heard {heard:?}", comm.local_rank().0, comm.local_size());
        }
    }
    if rank == 0 {
        println!("{}", library().version);
        for ((group, call), total) in log.totals() {
            println!("{group} {call}: {} calls, {} bytes, {:.6} s", total.calls, total.bytes, total.seconds);
        }
    }
    Ok(())
}
