//! Optimizers over flat shards against their formulas, and which parameters decay.

use std::sync::Arc;

use mp_model::Parameters;
use mp_plan::{Architecture, Degrees, Mesh, ModelConfig, Partition};
use mp_runtime::{Device, Precision};
use mp_train::config::{OptimizerConfig, OptimizerName};
use mp_train::optimizer::optimizer;

fn parameters() -> Parameters {
    let config = ModelConfig { hidden: 8, layers: 1, heads: 2, vocab: 11, max_seq: 4, ..ModelConfig::default() };
    let architecture = Architecture::resolve(&config, 0, 4).unwrap();
    let partition = Partition::new(&architecture, &Mesh::new(Degrees::default()).unwrap()).unwrap();
    Parameters::new(&Arc::new(partition), 0, 3, Precision::Fp64, Device::Cpu).unwrap()
}

/// Applies two updates with the gradient 0.5 everywhere and checks each element against `formula(value, decay)`.
fn check(name: OptimizerName, formula: impl Fn(f64, f64) -> f64) {
    let parameters = parameters();
    let config = OptimizerConfig { name, weight_decay: 0.1, momentum: 0.9, ..OptimizerConfig::default() };
    let mut optimizer = optimizer(&config, &parameters).unwrap();
    let before: Vec<f64> = Vec::try_from(parameters.masters().all().copy()).unwrap();
    for step in 1..=2 {
        let _ = parameters.gradients().all().shallow_clone().fill_(0.5);
        optimizer.update(&parameters, step, 0.01).unwrap();
    }
    let after: Vec<f64> = Vec::try_from(parameters.masters().all()).unwrap();
    for (index, parameter) in parameters.partition().parameters.iter().enumerate() {
        let decay = if parameter.spec.shape.len() > 1 { 0.1 } else { 0.0 };
        for element in parameters.masters().layout().range(index) {
            let expected = formula(before[element], decay);
            // A handful of fp64 operations on values of order 1.
            assert!((after[element] - expected).abs() < 1e-14, "{} {element}", parameter.spec.name);
        }
    }
}

#[test]
fn adamw_decays_matrices_alone() {
    let defaults = OptimizerConfig::default();
    let [b1, b2] = defaults.betas;
    check(OptimizerName::AdamW, |mut w, decay| {
        let (mut m, mut v) = (0.0, 0.0);
        for step in 1..=2 {
            w -= 0.01 * decay * w;
            m = b1 * m + (1.0 - b1) * 0.5;
            v = b2 * v + (1.0 - b2) * 0.25;
            let (m, v) = (m / (1.0 - b1.powi(step)), v / (1.0 - b2.powi(step)));
            w -= 0.01 * m / (v.sqrt() + defaults.eps);
        }
        w
    });
}

#[test]
fn sgd_keeps_its_direction() {
    check(OptimizerName::Sgd, |mut w, decay| {
        let mut direction = 0.0;
        for _ in 0..2 {
            direction = 0.9 * direction + 0.5 + decay * w;
            w -= 0.01 * direction;
        }
        w
    });
}
