//! What data ranks share out: the bytes of each ZeRO stage, and reductions that start while the backward still runs.

use std::sync::Arc;

use mp_comm::ledger::{Ledger, Log};
use mp_comm::solo::Solo;
use mp_comm::{threads, Communicator};
use mp_data::{Batch, Targets, TextSource, Tokens};
use mp_model::parameter::Sharing;
use mp_model::regions::{Between, TensorGroup};
use mp_model::{build, Options, Parameters, Pass};
use mp_plan::{Architecture, Degrees, Mesh, ModelConfig, Partition, RankBytes, Storage, Zero};
use mp_runtime::{autograd, Device, Kind, Precision, Tensor};
use mp_train::assemble::Allocated;
use mp_train::config::OptimizerConfig;
use mp_train::layout::Layout;
use mp_train::optimizer::optimizer;
use mp_train::step::Work;
use mp_train::{Config, Result};

const RANKS: usize = 4;

fn partition() -> Arc<Partition> {
    let config = ModelConfig { hidden: 24, layers: 3, heads: 4, max_seq: 8, ..ModelConfig::default() };
    let architecture = Architecture::resolve(&config, 61, 8).unwrap();
    let mesh = Mesh::new(Degrees { dp: RANKS, ..Degrees::default() }).unwrap();
    Arc::new(Partition::new(&architecture, &mesh).unwrap())
}

fn parameters(data: Arc<dyn Communicator>, zero: Zero, precision: Precision) -> Result<Parameters> {
    let sharing = Sharing { data, zero, bucket_bytes: 10_000 };
    Ok(Parameters::shared(&partition(), 0, sharing, 3, precision, Device::Cpu)?)
}

#[test]
fn every_stage_takes_the_bytes_of_its_formula() {
    for (precision, planned) in [
        (Precision::Fp32, mp_plan::Precision::Fp32),
        (Precision::Bf16, mp_plan::Precision::Bf16),
        (Precision::Fp64, mp_plan::Precision::Fp64),
    ] {
        for zero in Zero::ALL {
            let taken = threads::run(RANKS, |data| {
                let parameters = parameters(data, zero, precision)?;
                let optimizer = optimizer(&OptimizerConfig::default(), &parameters)?;
                let [values, gradients, master] = parameters.bytes();
                let moments = optimizer.state().iter().map(|(_, flat)| flat.bytes()).sum();
                let expected = parameters.arrangement().bytes(&Storage { precision: planned, moments: 2 });
                Ok::<_, mp_train::Error>((RankBytes { parameters: values, gradients, master, moments }, expected))
            });
            for rank in taken {
                let (taken, expected) = rank;
                assert_eq!(taken, expected, "{planned:?}, zero {zero}");
            }
        }
    }
}

/// A tensor group of one logs the layers' collectives: what the data group starts among them overlaps the backward.
#[test]
fn buckets_are_reduced_while_the_backward_still_runs() {
    let logs = threads::run(RANKS, |data| {
        let log = Arc::new(Log::new());
        let data: Arc<dyn Communicator> = Arc::new(Ledger::new(data, Arc::clone(&log)));
        let alone: Arc<dyn Communicator> = Arc::new(Ledger::new(Arc::new(Solo::new("tp")), Arc::clone(&log)));
        let parameters = parameters(data, Zero::Replicated, Precision::Fp64)?;
        let group = TensorGroup { comm: alone, between: Between::Replicated };
        let buckets = parameters.arrangement().buckets().len();
        let layers = 0..3;
        let model = build(parameters, group, std::slice::from_ref(&layers), &Options::default())?;
        model.parameters().begin_step(1)?;
        let tokens = Tensor::zeros([1, 8], (Kind::Int64, Device::Cpu));
        let loss = model.loss_sum(&Pass::evaluation(&tokens), &tokens)?;
        log.take();
        autograd::backward(&[&loss], &[None], false)?;
        model.parameters().finish_reduction()?;
        Ok::<_, mp_train::Error>((buckets, log.take()))
    });
    for rank in logs {
        let (buckets, entries) = rank;
        let of = |group: &str| entries.iter().filter(|entry| &*entry.group == group).collect::<Vec<_>>();
        let (reductions, layers) = (of("world"), of("tp"));
        assert_eq!(reductions.len(), buckets);
        assert!(buckets > 3);
        let last = layers.iter().map(|entry| entry.sequence).max().unwrap();
        let early = reductions.iter().filter(|entry| entry.sequence < last).count();
        // All but what holds layer 0 and the embedding, whose gradients come last.
        assert!(early >= buckets - 2, "{early} of {buckets} started before the last layer's collective");
    }
}

/// What a pass outside a step has left must not enter the next step, under any stage of sharing.
#[test]
fn a_step_begins_from_zero() {
    let gradients = |zero: Zero, stray: bool| {
        threads::run(RANKS, |data| {
            let parameters = parameters(data, zero, Precision::Fp64)?;
            let group = TensorGroup { comm: Arc::new(Solo::new("tp")), between: Between::Replicated };
            let layers = 0..3;
            let model = build(parameters, group, std::slice::from_ref(&layers), &Options::default())?;
            let tokens = Tensor::arange(8, (Kind::Int64, Device::Cpu)).view([1, 8]);
            let pass = || -> Result<()> {
                let loss = model.loss_sum(&Pass::evaluation(&tokens), &tokens)?;
                Ok(autograd::backward(&[&loss], &[None], false)?)
            };
            if stray {
                pass()?;
            }
            model.parameters().begin_step(1)?;
            pass()?;
            model.parameters().finish_reduction()?;
            let mut sum = 0.0;
            for range in model.parameters().owned() {
                sum += model.parameters().gradients().range(range)?.abs().sum(Kind::Double).double_value(&[]);
            }
            Ok::<f64, mp_train::Error>(sum)
        })
    };
    for zero in Zero::ALL {
        assert_eq!(gradients(zero, true), gradients(zero, false), "zero {zero}");
    }
}

#[test]
fn a_trainer_whose_step_failed_makes_no_other() {
    let sets = ["model.layers=1", "model.vocab=37", "train.seq=8", "train.global_batch=2"].map(String::from);
    let config = Config::load(None, None, &sets).unwrap();
    let world: Arc<dyn Communicator> = Arc::new(Solo::new("world"));
    let layout = Layout::new(&config, 37, 1).unwrap();
    let groups = layout.groups(&world).unwrap();
    let allocated = Allocated::new(&config, &layout, &groups, Device::Cpu).unwrap();
    let mut trainer = allocated.trainer(&config, &layout, groups).unwrap();
    let mut step = |vocab: u32| {
        let tokens = Tokens::new("ids", (0..99).map(|at| at % vocab).collect());
        let batch = Batch::read(&TextSource::new(tokens, 8, 1).unwrap(), 0..2).unwrap();
        trainer.step(&Work { step: 1, lr: 1e-3, batches: &[batch], global_batch: 2, targets: Targets::Every })
    };
    assert!(step(37).is_ok());
    // Ids that the table has no row for.
    assert!(matches!(step(90), Err(mp_train::Error::Model(_))));
    assert!(matches!(step(37), Err(mp_train::Error::Failed)));
}
