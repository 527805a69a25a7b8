//! Where a step's time goes: each wait is booked under what is waited for, and the parts are the step.

use std::time::Instant;

use mp_comm::threads;
use mp_data::{Batch, Targets, TextSource, Tokens};
use mp_runtime::Device;
use mp_train::assemble::Allocated;
use mp_train::layout::Layout;
use mp_train::step::Work;
use mp_train::times::Times;
use mp_train::{Config, Result};

const SEQ: usize = 32;

fn config(sets: &[&str]) -> Config {
    let base = [
        "model.hidden=16",
        "model.layers=4",
        "model.heads=4",
        "model.kv_heads=2",
        "model.vocab=37",
        "train.seq=32",
        "train.global_batch=8",
    ];
    let sets: Vec<String> = base.iter().chain(sets).map(|set| (*set).to_string()).collect();
    Config::load(None, None, &sets).unwrap()
}

/// Makes two steps, and returns what each rank spent on the second, with what a clock outside says of it.
fn second_step(ranks: usize, sets: &[&str]) -> Vec<(Times, f64)> {
    let config = config(sets);
    threads::run(ranks, |world| -> Result<_> {
        let layout = Layout::new(&config, 37, world.size())?;
        let groups = layout.groups(&world)?;
        let dp = groups.dp.rank().0;
        let mut trainer = Allocated::new(&config, &layout, &groups, Device::Cpu)?.trainer(&config, &layout, groups)?;
        let source = TextSource::new(Tokens::new("timed", (0..900).map(|at| at % 37).collect()), SEQ, 1)?;
        let mut step = |number: u64| -> Result<_> {
            let batches = (0..layout.batches.micro_batches())
                .map(|micro| Batch::read(&source, layout.batches.samples(number - 1, dp, micro)))
                .collect::<mp_data::Result<Vec<_>>>()?;
            let (targets, begun) = (Targets::Every, Instant::now());
            let work = Work { step: number, lr: 1e-3, batches: &batches, global_batch: 8, targets };
            Ok((trainer.step(&work)?.times, begun.elapsed().as_secs_f64()))
        };
        step(1)?;
        step(2)
    })
}

#[test]
fn waits_are_booked_under_what_is_waited_for() {
    // Of every layout: whether anything is waited for in the tensor group, the context group, the pipeline, by data ranks.
    for (ranks, sets, [tensor, context, bubble, data]) in [
        (1, ["parallel.zero=0"].as_slice(), [false, false, false, false]),
        (2, &["parallel.tp=2"], [true, false, false, true]),
        (2, &["parallel.tp=2", "parallel.sequence_parallel=true"], [true, false, false, true]),
        (2, &["parallel.tp=1", "parallel.dp=2"], [false, false, false, true]),
        (2, &["parallel.tp=1", "parallel.dp=2", "parallel.zero=3"], [false, false, false, true]),
        (2, &["parallel.tp=1", "parallel.cp=2"], [false, true, false, true]),
        (2, &["parallel.tp=1", "parallel.pp=2"], [false, false, true, true]),
        (4, &["parallel.tp=2", "parallel.pp=2", "model.tie_embeddings=true"], [true, false, true, true]),
    ] {
        for (rank, (times, clock)) in second_step(ranks, sets).into_iter().enumerate() {
            let waited = [times.tensor, times.context, times.bubble].map(|seconds| seconds > 0.0);
            assert_eq!(waited, [tensor, context, bubble], "{sets:?} rank {rank}: {times:?}");
            // What sums the gradients up on the rank itself is data's also where nobody is waited for.
            assert!(times.data > 0.0 || !data, "{sets:?} rank {rank}: {times:?}");
            assert!(times.computing > 0.0 && times.optimizer > 0.0, "{sets:?} rank {rank}: {times:?}");
            // Clocks are read in order: no part is counted twice. The second reading lies behind the last piece.
            assert!(times.total() <= clock * (1.0 + 1e-9), "{sets:?} rank {rank}: {times:?} of {clock}");
        }
    }
}
