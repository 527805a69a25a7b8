//! Where a step's time goes: each wait is booked under what is waited for, and the parts are the step.

use mp_comm::threads;

use crate::{config, second_step};

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
        let config = config(sets);
        let timed = threads::run(ranks, |world| second_step(world, &config).map(|seen| (seen.times, seen.clock)));
        for (rank, (times, clock)) in timed.into_iter().enumerate() {
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
