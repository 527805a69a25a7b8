//! Whatever the planner proposes, training takes as it is: the very configuration passes the engine's own checks, and what
//! the engine makes of it is the layout that was proposed.

use mp_model::recompute::Recompute;
use mp_model::regions::Between;
use mp_plan::{cost, Candidate, Cluster, Degrees, RecomputeName, Space, Zero};
use mp_train::layout::Layout;
use mp_train::Config;

const VOCAB: usize = 500;

fn config(sets: &[&str]) -> Config {
    let toy = ["model.hidden=64", "model.layers=6", "model.heads=8", "train.seq=64", "train.global_batch=24"];
    let sets: Vec<String> = toy.iter().chain(sets).map(|set| set.to_string()).collect();
    Config::load(None, None, &sets).unwrap()
}

/// Trains what is proposed, on paper, and says what that is.
fn resolved(config: &Config, candidate: &Candidate) -> Candidate {
    let job = Layout::job(config, VOCAB).unwrap();
    let parallel = candidate.complete(&job, &config.parallel).chosen_for(&config.parallel);
    let config = Config { parallel, ..config.clone() };
    let layout =
        Layout::new(&config, VOCAB, candidate.ranks()).unwrap_or_else(|error| panic!("{candidate:?}: {error}"));
    layout.schedule.check().unwrap();
    assert_eq!(layout.schedule.stages, candidate.stages(&job).unwrap());
    let Degrees { pp, dp, cp, tp, ep } = layout.partition.mesh.degrees();
    let (recompute, recompute_every) = match layout.recompute {
        Recompute::None => (RecomputeName::None, 0),
        Recompute::Selective => (RecomputeName::Selective, 0),
        Recompute::Full { every } => (RecomputeName::Full, every),
    };
    Candidate {
        tp,
        pp,
        dp,
        cp,
        ep,
        chunks: layout.schedule.stages.chunks(),
        schedule: layout.schedule.name,
        micro_batch: layout.batches.micro_batch(),
        zero: layout.zero,
        recompute,
        recompute_every,
        sequence_parallel: layout.between == Between::SequenceSharded,
    }
}

#[test]
fn every_layout_of_a_space_is_what_training_makes_of_it() {
    let variants: [&[&str]; 12] = [
        &[],
        &["model.architecture=gpt2", "model.dropout=0.1", "model.tie_embeddings=true"],
        &["model.kv_heads=2", "train.precision=bf16"],
        &["parallel.context=all-to-all", "parallel.cp=2"],
        &["data.attend_across=false"],
        &["model.architecture=bert", "model.token_types=2"],
        &["model.kv_heads=2", "model.layers=5", "train.global_batch=12", "parallel.recompute=auto"],
        &["model.architecture=bert", "model.next_sentence=true", "train.seq=96", "optimizer.name=sgd"],
        &["model.window=32", "train.precision=bf16", "parallel.context=all-to-all", "parallel.cp=2"],
        &["data.attend_across=false", "train.seq=30", "train.global_batch=6"],
        &["model.tie_embeddings=true", "train.precision=fp64", "train.seq=7", "train.global_batch=1"],
        &["model.heads=6", "model.hidden=96", "model.layers=3", "parallel.zero=auto", "parallel.bucket_bytes=4096"],
    ];
    for sets in variants {
        let config = config(sets);
        let job = Layout::job(&config, VOCAB).unwrap();
        let mut count = 0;
        for ranks in [1, 2, 4, 6, 8] {
            let space = Space::of(&job, ranks).fixed(&config.parallel);
            for candidate in space.candidates(&job, ranks) {
                assert_eq!(resolved(&config, &candidate), candidate, "{sets:?}");
                count += 1;
            }
        }
        assert!(count > 40, "{sets:?}: {count} layouts");
    }
}

#[test]
fn so_are_those_that_a_search_proposes() {
    // Room for few of them, so that states are shared out and layers computed again.
    let mut cluster = Cluster::preset("h100").unwrap().with_ranks(8);
    cluster.device.memory_bytes = 3_000_000;
    let (config, costs) = (config(&["train.precision=fp32"]), cost::of(&cluster));
    let job = Layout::job(&config, VOCAB).unwrap();
    let found = mp_plan::search(&job, &cluster, &*costs, &Space::of(&job, 8), 8, 20).unwrap();
    assert!(!found.layouts.is_empty() && !found.misses.is_empty(), "{found:?}");
    for estimate in found.layouts.iter().chain(&found.misses) {
        assert_eq!(resolved(&config, &estimate.candidate), estimate.candidate);
    }
    let shared = |estimate: &mp_plan::Estimate| estimate.candidate.zero > Zero::Replicated;
    assert!(found.layouts.iter().any(shared), "{found:?}");
}
