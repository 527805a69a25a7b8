//! Forty layouts of small models, on one, two and four ranks: what the planner is held against.
//!
//! The models are so small that a machine of two cores runs all of them in minutes, and so different that a planner has to
//! tell products, attention, operations element by element and messages apart.

/// Ranks, and what differs from the configuration that all share.
pub type Case = (usize, &'static [&'static str]);

/// What all share.
pub const BASE: [&str; 6] = [
    "train.seq=64",
    "train.global_batch=8",
    "model.heads=4",
    "train.precision=fp32",
    "eval.every=0",
    "checkpoint.every=0",
];

/// Hardly an activation, and a large vocabulary: a step's end is its fullest moment.
const LEAN: [&str; 4] = ["model.hidden=512", "model.layers=2", "model.vocab=4000", "train.seq=8"];

/// The layouts.
pub const CASES: [Case; 40] = [
    (1, &[LEAN[0], LEAN[1], LEAN[2], LEAN[3], "train.global_batch=1", "optimizer.name=sgd"]),
    (1, &["model.hidden=64", "model.layers=2", "parallel.micro_batch=1"]),
    (1, &["model.hidden=64", "model.layers=6", "parallel.micro_batch=2"]),
    (1, &["model.hidden=64", "model.layers=4", "train.seq=512", "train.global_batch=1"]),
    (1, &["model.hidden=128", "model.layers=2", "train.seq=32"]),
    (1, &["model.hidden=128", "model.layers=4"]),
    (1, &["model.hidden=128", "model.layers=4", "parallel.recompute=full"]),
    (1, &["model.hidden=128", "model.layers=8", "parallel.micro_batch=4"]),
    (1, &["model.architecture=gpt2", "model.hidden=128", "model.layers=4"]),
    (1, &["model.architecture=gpt2", "model.hidden=128", "model.layers=4", "model.dropout=0.1"]),
    (1, &["model.hidden=256", "model.layers=2", "model.kv_heads=2", "model.heads=8"]),
    (1, &["model.architecture=gpt2", "model.hidden=256", "model.layers=4", "train.global_batch=4"]),
    (2, &["parallel.tp=2", "model.hidden=64", "model.layers=2"]),
    (2, &["parallel.dp=2", "parallel.tp=1", "model.hidden=64", "model.layers=2"]),
    (2, &["parallel.pp=2", "parallel.tp=1", "model.hidden=64", "model.layers=2", "parallel.micro_batch=4"]),
    (2, &["parallel.tp=2", "model.hidden=128", "model.layers=4", "parallel.sequence_parallel=false"]),
    (2, &["parallel.tp=2", "model.hidden=128", "model.layers=4", "parallel.sequence_parallel=true"]),
    (2, &["parallel.tp=2", LEAN[0], LEAN[1], LEAN[2], LEAN[3], "train.global_batch=1", "model.kv_heads=1"]),
    (
        2,
        &[
            "parallel.dp=2",
            "parallel.tp=1",
            LEAN[0],
            LEAN[1],
            LEAN[2],
            LEAN[3],
            "train.global_batch=2",
            "parallel.zero=1",
        ],
    ),
    (2, &["parallel.dp=2", "parallel.tp=1", "model.hidden=128", "model.layers=4", "parallel.zero=3"]),
    (2, &["parallel.cp=2", "parallel.tp=1", "model.hidden=128", "model.layers=4", "train.seq=256"]),
    (2, &["parallel.pp=2", "parallel.tp=1", "model.hidden=128", "model.layers=4", "parallel.micro_batch=1"]),
    (2, &["parallel.pp=2", "parallel.tp=1", "model.hidden=128", "model.layers=8", "parallel.schedule=gpipe"]),
    (2, &["parallel.tp=2", "model.architecture=gpt2", "model.hidden=256", "model.layers=4"]),
    (2, &["parallel.dp=2", "parallel.tp=1", "model.architecture=gpt2", "model.hidden=256", "model.layers=4"]),
    (2, &["parallel.dp=2", "parallel.tp=1", "model.hidden=256", "model.layers=2", "parallel.zero=1"]),
    (4, &["parallel.tp=4", "model.hidden=64", "model.layers=2"]),
    (4, &["parallel.tp=2", "parallel.dp=2", "model.hidden=64", "model.layers=2"]),
    (
        4,
        &[
            "parallel.tp=1",
            "parallel.dp=4",
            LEAN[0],
            LEAN[1],
            LEAN[2],
            LEAN[3],
            "train.global_batch=4",
            "parallel.zero=3",
        ],
    ),
    (4, &["parallel.tp=1", "parallel.dp=4", "model.hidden=128", "model.layers=4", "parallel.zero=1"]),
    (4, &["parallel.tp=1", "parallel.dp=4", "model.hidden=128", "model.layers=4", "parallel.zero=2"]),
    (4, &["parallel.tp=2", "parallel.dp=2", "model.hidden=128", "model.layers=4", "parallel.zero=3"]),
    (4, &["parallel.tp=4", "model.hidden=128", "model.layers=4", "parallel.sequence_parallel=true"]),
    (4, &["parallel.tp=2", "parallel.pp=2", "model.hidden=128", "model.layers=4"]),
    (4, &["parallel.tp=1", "parallel.pp=4", "model.hidden=128", "model.layers=4", "parallel.micro_batch=1"]),
    (4, &["parallel.tp=1", "parallel.pp=4", "model.hidden=128", "model.layers=4", "parallel.schedule=gpipe"]),
    (4, &["parallel.tp=1", "parallel.pp=2", "parallel.dp=2", "model.hidden=128", "model.layers=4"]),
    (4, &["parallel.tp=1", "parallel.cp=2", "parallel.dp=2", "model.hidden=128", "model.layers=4", "train.seq=256"]),
    (4, &["parallel.tp=2", "parallel.cp=2", "model.hidden=128", "model.layers=4", "train.seq=256"]),
    (4, &["parallel.tp=2", "parallel.dp=2", "model.architecture=gpt2", "model.hidden=256", "model.layers=4"]),
];
