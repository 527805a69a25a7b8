//! Every layout of the world size at hand against one rank, over MPI: `mpirun -n N mpi_parity`.
//!
//! `parity_threads` holds all models; MPI carries the same calls, so that here the ones with dropout stand for their family.
//! `--models` holds all of them over MPI too.

mod parity;

use std::sync::Arc;

use mp_comm::mpi::Mpi;
use mp_comm::{BufferMut, Communicator, Rank, ReduceOp};
use mp_runtime::device;

fn main() {
    let world = match Mpi::initialize() {
        Ok(world) => world,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    device::prepare(1);
    let comm = world.communicator();
    let all = std::env::args().any(|argument| argument == "--models");
    let (passed, failed) = match suite(&comm, all) {
        Ok(counts) => counts,
        Err(error) => {
            eprintln!("rank {}: {error}", comm.rank().0);
            world.abort(1)
        }
    };
    if comm.rank() == Rank(0) {
        println!("{passed} passed, {failed} failed");
    }
    drop(comm);
    drop(world);
    std::process::exit(i32::from(failed > 0));
}

/// Models of every family under every cut of matrices and batch; deeper ones under every cut of layers, and of sequences.
fn cases(ranks: usize, all: bool) -> Vec<(parity::Model, Vec<parity::Layout>)> {
    let models = parity::models();
    let deeper = |name: &str, layers: usize| {
        let mut model = models.iter().find(|model| model.name == name).expect("a model of the suite").clone();
        model.config.layers = layers;
        model
    };
    let held = models.iter().filter(|model| all || model.name.ends_with(" dropout"));
    let mut cases: Vec<_> = held.map(|model| (model.clone(), parity::layouts(ranks))).collect();
    cases.push((deeper("gpt2 dropout", 8), parity::staged_layouts(ranks, 8)));
    cases.push((deeper("llama dropout", 4), parity::context_layouts(ranks, 2, 4)));
    cases
}

/// Counts the cases that pass and fail on all ranks.
fn suite(world: &Arc<dyn Communicator>, all: bool) -> mp_train::Result<(usize, usize)> {
    let (mut passed, mut failed) = (0, 0);
    for (model, layouts) in cases(world.size(), all) {
        let expected = parity::oracle(&model)?;
        for layout in layouts {
            let traces = parity::train(&model, layout, Arc::clone(world))?;
            let verdict = parity::compare(&traces, &expected);
            let mut bad = [i32::from(verdict.is_err())];
            world.all_reduce(BufferMut::new(&mut bad), ReduceOp::Max)?;
            if let Err(difference) = verdict {
                println!("{}, {layout:?}, rank {}: {difference}", model.name, world.rank().0);
            }
            match bad {
                [0] => passed += 1,
                _ => failed += 1,
            }
        }
    }
    Ok((passed, failed))
}
