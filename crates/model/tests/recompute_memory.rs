//! How much memory the graph holds between forward and backward, by what is computed again: read off the
//! resident memory of a process of its own.

mod common;

use mp_comm::solo::Solo;
use mp_model::pass::DropoutKey;
use mp_model::recompute::Recompute;
use mp_model::regions::{Between, TensorGroup};
use mp_model::{build, Options, Parameters, Pass};
use mp_plan::{Architecture, ArchitectureName, ModelConfig};
use mp_runtime::{autograd, Device, Kind, Precision, Tensor};

const SEQ: usize = 128;
const LAYERS: usize = 4;
const HIDDEN: usize = 128;
const BATCH: i64 = 2;
const HEADS: i64 = 8;

fn resident() -> i64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4096
}

/// Bytes that a forward pass leaves behind for its backward.
fn held(recompute: Recompute) -> i64 {
    let config = ModelConfig {
        architecture: ArchitectureName::Llama,
        hidden: HIDDEN,
        layers: LAYERS,
        heads: HEADS as usize,
        vocab: 32,
        max_seq: SEQ,
        dropout: 0.1,
        ..ModelConfig::default()
    };
    let partition = common::partition(&Architecture::resolve(&config, 0, SEQ).unwrap(), 1);
    let parameters = Parameters::new(&partition, 0, 7, Precision::Fp32, Device::Cpu).unwrap();
    let group = TensorGroup { comm: std::sync::Arc::new(Solo::new("tp")), between: Between::Replicated };
    let layers = common::layers(&partition.architecture);
    let stage = build(parameters, group, &layers, &Options { recompute, ..Options::default() }).unwrap();
    let tokens = Tensor::zeros([BATCH, SEQ as i64], (Kind::Int64, Device::Cpu));
    let pass = Pass { dropout: Some(DropoutKey { seed: 1, step: 1 }), ..Pass::evaluation(&tokens) };
    // What the first pass leaves in the allocator's pools is not the graph's.
    autograd::backward(&[&stage.loss_sum(&pass, &tokens).unwrap()], &[None], false).unwrap();
    let before = resident();
    let loss = stage.loss_sum(&pass, &tokens).unwrap();
    let held = resident() - before;
    autograd::backward(&[&loss], &[None], false).unwrap();
    held
}

/// glibc's setting above which freed memory goes back to the system at once: resident memory is then what is in use.
const SETTING: &str = "MALLOC_MMAP_THRESHOLD_";

#[test]
fn the_graph_holds_less() {
    if std::env::var_os(SETTING).is_none() {
        // The setting is read when a process starts.
        let mut own = std::process::Command::new(std::env::current_exe().unwrap());
        own.args(["--exact", "the_graph_holds_less", "--nocapture"]).env(SETTING, "32768").env("OMP_NUM_THREADS", "1");
        assert!(own.status().unwrap().success());
        return;
    }
    let modes = [Recompute::None, Recompute::Selective, Recompute::Full { every: 2 }, Recompute::Full { every: 1 }];
    let [none, selective, half, full] = modes.map(held);
    // For each layer the softmax, its mask and what is kept of it, `[b, h, s, s]`; selectively its inputs, a small part, are
    // kept instead.
    let weights = BATCH * HEADS * SEQ as i64 * SEQ as i64 * 4;
    assert!((none - selective) as f64 > 0.9 * (3 * weights * LAYERS as i64) as f64, "{none} and {selective}");
    // Of each layer its input, `[b, s, d]`; those of the final norm and the head, and the logits, are less than four more.
    let input = BATCH * SEQ as i64 * HIDDEN as i64 * 4;
    assert!(full < (LAYERS as i64 + 4) * input, "{full}");
    // Within a page a tensor.
    let mean = (none + full) as f64 / 2.0;
    assert!((half as f64 - mean).abs() < 0.02 * mean, "{half} and {mean}");
    println!("held by the graph: {none} bytes; selective {selective}; every second layer {half}; every layer {full}");
}
