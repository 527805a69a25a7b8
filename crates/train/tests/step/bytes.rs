//! What ranks send in a step is what the plan counts, to the byte, for every axis and option.

use std::sync::Arc;

use mp_comm::{threads, Communicator};
use mp_plan::Traffic;
use mp_train::{traffic, Config, Result};

use crate::{config, second_step};

/// What the second step sent, and what was planned.
fn sent(world: Arc<dyn Communicator>, config: &Config) -> Result<(Traffic, Traffic)> {
    let seen = second_step(world, config)?;
    let got = traffic::sent(&seen.called, &seen.layout.partition.mesh);
    Ok((got, seen.layout.traffic(config, seen.trainer.parameters(), seen.stage, seen.part)))
}

#[test]
fn every_layout_sends_what_is_planned() {
    for (ranks, sets) in [
        (2, ["parallel.tp=2", "parallel.sequence_parallel=false"].as_slice()),
        (2, &["parallel.tp=2", "parallel.sequence_parallel=true"]),
        (4, &["parallel.tp=2", "parallel.sequence_parallel=true", "lora.rank=2"]),
        (4, &["parallel.tp=4", "lora.rank=2", "lora.targets=['mlp.up', 'attention.output']"]),
        (4, &["parallel.tp=2", "parallel.zero=3", "lora.rank=2"]),
        (2, &["parallel.tp=1", "parallel.zero=1", "lora.rank=2", "train.precision=bf16"]),
        (2, &["parallel.pp=2", "parallel.tp=1", "model.tie_embeddings=true", "lora.rank=2"]),
        (4, &["parallel.tp=4", "parallel.sequence_parallel=true", "parallel.micro_batch=2"]),
        (4, &["parallel.tp=4", "parallel.sequence_parallel=false", "model.bias=true"]),
        (2, &["parallel.tp=1", "parallel.zero=0"]),
        (4, &["parallel.tp=1", "parallel.zero=1"]),
        (4, &["parallel.tp=2", "parallel.zero=1", "parallel.sequence_parallel=true"]),
        (4, &["parallel.tp=1", "parallel.zero=2", "parallel.micro_batch=1"]),
        (4, &["parallel.tp=1", "parallel.zero=3", "parallel.micro_batch=1"]),
        (4, &["parallel.tp=2", "parallel.zero=3", "model.tie_embeddings=true"]),
        (2, &["parallel.cp=2", "parallel.tp=1"]),
        (4, &["parallel.cp=2", "parallel.tp=2", "parallel.zero=3"]),
        (4, &["parallel.cp=4", "parallel.context=all-to-all"]),
        (2, &["parallel.pp=2", "parallel.tp=1", "model.tie_embeddings=true"]),
        (4, &["parallel.pp=4", "parallel.schedule=gpipe"]),
        (4, &["parallel.pp=2", "parallel.tp=2", "parallel.schedule=zb-v", "parallel.sequence_parallel=true"]),
        (4, &["parallel.pp=2", "parallel.tp=1", "parallel.schedule=interleaved", "parallel.zero=1"]),
        (4, &["parallel.pp=2", "parallel.cp=2", "parallel.schedule=zb-h1", "model.tie_embeddings=true"]),
        (4, &["parallel.tp=2", "parallel.cp=2", "train.precision=bf16"]),
        (4, &["parallel.tp=2", "parallel.zero=1", "train.precision=bf16"]),
        (4, &["parallel.tp=2", "parallel.cp=2", "parallel.recompute=full", "parallel.recompute_every=2"]),
        (2, &["parallel.tp=2", "parallel.sequence_parallel=true", "parallel.recompute=full"]),
        (2, &["parallel.cp=2", "parallel.context=all-to-all", "parallel.recompute=full"]),
        (2, &["parallel.tp=1", "parallel.zero=3", "parallel.recompute=full"]),
        (
            4,
            &[
                "parallel.tp=2",
                "parallel.sequence_parallel=true",
                "parallel.zero=3",
                "model.architecture=bert",
                "model.next_sentence=true",
            ],
        ),
        (
            2,
            &[
                "parallel.pp=2",
                "parallel.schedule=zb-h1",
                "parallel.tp=1",
                "model.architecture=bert",
                "model.tie_embeddings=false",
            ],
        ),
        (
            2,
            &[
                "parallel.tp=1",
                "parallel.zero=3",
                "train.precision=bf16",
                "model.architecture=gpt2",
                "model.kv_heads=0",
            ],
        ),
    ] {
        let config = config(sets);
        for (rank, (got, planned)) in threads::run(ranks, |world| sent(world, &config)).into_iter().enumerate() {
            assert_eq!(got, planned, "{sets:?}, rank {rank} of {ranks}");
        }
    }
}
