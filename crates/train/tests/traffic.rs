//! What ranks send in a step is what the plan counts, to the byte, for every axis and option.

use std::sync::Arc;

use mp_comm::ledger::{Ledger, Log};
use mp_comm::{threads, Communicator};
use mp_data::{Batch, Targets, TextSource, Tokens};
use mp_plan::Traffic;
use mp_runtime::Device;
use mp_train::assemble::Allocated;
use mp_train::layout::Layout;
use mp_train::step::Work;
use mp_train::{traffic, Config, Result};

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
        "parallel.bucket_bytes=8192",
    ];
    let sets: Vec<String> = base.iter().chain(sets).map(|set| (*set).to_string()).collect();
    Config::load(None, None, &sets).unwrap()
}

/// Makes two steps and returns what the second one sent and what was planned.
fn sent(world: Arc<dyn Communicator>, config: &Config) -> Result<(Traffic, Traffic)> {
    let log = Arc::new(Log::new());
    let world: Arc<dyn Communicator> = Arc::new(Ledger::new(world, Arc::clone(&log)));
    let layout = Layout::new(config, 37, world.size())?;
    let groups = layout.groups(&world)?;
    let (rank, dp, part) = (groups.pp.rank().0, groups.dp.rank().0, groups.data.rank().0);
    let mut trainer = Allocated::new(config, &layout, &groups, Device::Cpu)?.trainer(config, &layout, groups)?;
    let source = TextSource::new(Tokens::new("counted", (0..900).map(|at| at % 37).collect()), SEQ, 1)?;
    for step in 1..=2 {
        let mut batches = (0..layout.batches.micro_batches())
            .map(|micro| Batch::read(&source, layout.batches.samples(step - 1, dp, micro)))
            .collect::<mp_data::Result<Vec<_>>>()?;
        if config.model.next_sentence {
            batches.iter_mut().for_each(|batch| batch.labels = Some(vec![0; batch.batch]));
        }
        log.take();
        trainer.step(&Work { step, lr: 1e-3, batches: &batches, global_batch: 8, targets: Targets::Every })?;
    }
    let got = traffic::sent(&log.take(), &layout.partition.mesh);
    Ok((got, layout.traffic(config, trainer.parameters(), rank, part)))
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
