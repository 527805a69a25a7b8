//! Fixtures that transformers and PEFT made, and how far a model of ours is from them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use mp_comm::{threads, Communicator};
use mp_model::stage::Goal;
use mp_model::{Pass, Stage};
use mp_runtime::{bytes, Device, Kind, Tensor};
use mp_train::assemble::Allocated;
use mp_train::layout::Layout;
use mp_train::pipeline::forward_only;
use mp_train::weights::{self, WeightSource};
use mp_train::{Config, Result};
use safetensors::SafeTensors;

/// A fixture's folder.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/huggingface").join(name)
}

/// A configuration that takes its model from a folder.
pub fn config(from: &Path, sets: &[&str]) -> Config {
    let mut all = vec![format!("model.from={}", from.display()), "train.seq=12".into(), "train.global_batch=2".into()];
    all.extend(sets.iter().map(|set| set.to_string()));
    Config::load(None, None, &all).unwrap()
}

/// `$MP_BENCH_PYTHON`, or any Python, where some modules can be imported.
pub fn python(import: &str) -> Option<PathBuf> {
    let python = std::env::var_os("MP_BENCH_PYTHON").map_or("python3".into(), PathBuf::from);
    let found = Command::new(&python).args(["-c", import]).output();
    found.is_ok_and(|output| output.status.success()).then_some(python)
}

/// What a file of a fixture holds that transformers computed.
pub struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    /// Reads a fixture's.
    pub fn of(name: &str) -> Self {
        Self::at(&fixture(name).join("golden.safetensors"))
    }

    /// Reads another file.
    pub fn at(file: &Path) -> Self {
        Self { bytes: fs::read(file).unwrap() }
    }

    /// Returns a tensor, if it is there.
    pub fn tensor(&self, name: &str, kind: Kind) -> Option<Tensor> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).ok()?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        Some(bytes::tensor(view.data(), &shape, kind).unwrap())
    }

    /// Returns the largest difference of what a last stage computes; padding counts nothing.
    fn difference(&self, last: &dyn Stage, hidden: &Tensor, pass: &Pass<'_>) -> mp_model::Result<f64> {
        let differences = (last.logits(hidden)? - self.tensor("logits", Kind::Float).unwrap()).abs();
        let kept = self.tensor("attention_mask", Kind::Int64);
        let counted = kept.map_or(differences.shallow_clone(), |kept| &differences * kept.unsqueeze(-1));
        let worst = counted.max().double_value(&[]);
        let Some(scores) = self.tensor("next_sentence", Kind::Float) else { return Ok(worst) };
        // The head for next sentences shows in the loss of its labels alone.
        let labels = Tensor::from_slice(&[0i64, 1]);
        let targets = pass.tokens.full_like(-1);
        let goal = Goal { targets: &targets, share: 1.0, sentences: Some((&labels, 1.0)) };
        let expected = scores.log_softmax(-1, Kind::Float).nll_loss(&labels).double_value(&[]) * 2.0;
        Ok(worst.max((last.loss(hidden, pass, &goal)?.double_value(&[]) - expected).abs()))
    }
}

/// Computes the largest difference of a model's logits from a fixture's, under a layout.
pub fn difference(
    config: &(dyn Fn(&[&str]) -> Config + Sync),
    open: &(dyn Fn() -> Result<Box<dyn WeightSource>> + Sync),
    name: &str,
    [tp, pp]: [usize; 2],
) -> f64 {
    let config = config(&[&format!("parallel.tp={tp}"), &format!("parallel.pp={pp}")]);
    let one = |world: Arc<dyn Communicator>| -> Result<Option<f64>> {
        let golden = Golden::of(name);
        let layout = Layout::new(&config, 0, world.size())?;
        let groups = layout.groups(&world)?;
        let trainer = Allocated::new(&config, &layout, &groups, Device::Cpu)?.trainer(&config, &layout, groups)?;
        weights::load(trainer.parameters(), &*open()?)?;
        let [tokens, token_types, kept] =
            ["input_ids", "token_type_ids", "attention_mask"].map(|name| golden.tensor(name, Kind::Int64));
        let tokens = tokens.unwrap();
        let segments = kept.as_ref().map(|kept| kept - 1);
        let (segments, token_types) = (segments.as_ref(), token_types.as_ref());
        let pass = Pass { segments, token_types, ..Pass::evaluation(&tokens) };
        let shape = trainer.assembled().activation_shape(2, 12);
        forward_only(trainer.line(), trainer.model(), &pass, shape, |last, hidden| {
            golden.difference(last, hidden, &pass)
        })
    };
    threads::run(tp * pp, one).into_iter().flatten().fold(0.0, f64::max)
}
