//! Values of the right type that cannot be, each with the way out.

use std::fmt::Display;
use std::path::{Component, Path};

use mp_data::Validation;
use mp_plan::{ArchitectureName, LoraConfig};

use super::{Config, DataFormat, OptimizerConfig, Precision, ScheduleName, TrainConfig};
use crate::{Error, Result};

/// Refuses the first value that cannot be.
pub(super) fn all(config: &Config) -> Result<()> {
    train(&config.train)?;
    optimizer(&config.optimizer, config.train.steps)?;
    let dropout = config.model.dropout;
    require((0.0..1.0).contains(&dropout), "model.dropout", dropout, "must be in [0, 1); 0 drops nothing")?;
    let nothing = matches!(config.data.validation, Validation::Fraction(fraction) if fraction == 0.0);
    let evaluates = config.eval.every > 0 && !nothing;
    let rule = "needs evaluations: set `eval.every` and `data.validation` above 0";
    require(evaluates || config.train.patience == 0, "train.patience", config.train.patience, rule)?;
    require(evaluates || config.checkpoint.keep_best == 0, "checkpoint.keep_best", config.checkpoint.keep_best, rule)?;
    positive("model.norm_eps", config.model.norm_eps)?;
    positive("model.rope_theta", config.model.rope_theta)?;
    let (path, blend) = (&config.data.path, &config.data.blend);
    if let (Some(path), false) = (path, blend.is_empty()) {
        let rule = "there is a `data.blend` too; give one of them";
        require(false, "data.path", path.display(), rule)?;
    }
    examples(config)?;
    if config.lora.rank > 0 {
        config.lora.check()?;
    } else {
        let rule = "must be above 0 where other keys of `lora` are set: without adapters they change nothing";
        require(config.lora == LoraConfig::default(), "lora.rank", 0, rule)?;
    }
    if let Validation::Fraction(fraction) = config.data.validation {
        let rule = "must be in [0, 1); 0.1 holds out the last tenth, 0 nothing, and a path names another text";
        require((0.0..1.0).contains(&fraction), "data.validation", fraction, rule)?;
    }
    Ok(())
}

/// Checks `[train]`.
fn train(train: &TrainConfig) -> Result<()> {
    require(train.steps >= 1, "train.steps", train.steps, "must be at least 1")?;
    require(train.global_batch >= 1, "train.global_batch", train.global_batch, "must be at least 1 sequence")?;
    require(train.seq >= 1, "train.seq", train.seq, "must be at least 1 token")?;
    let rule = format!("must be at most {}, the largest whole number of a TOML file", i64::MAX);
    require(i64::try_from(train.seed).is_ok(), "train.seed", train.seed, &rule)?;
    let clip = train.clip_norm;
    require(clip >= 0.0 && clip.is_finite(), "train.clip_norm", clip, "must be a finite norm from 0; 0 never clips")?;
    let rule =
        "needs products of single precision: in fp64 there are none, so leave it out or take another `train.precision`";
    require(!train.tf32 || train.precision != Precision::Fp64, "train.tf32", true, rule)?;
    let Some(name) = &train.name else { return Ok(()) };
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !name.contains('/');
    require(plain, "train.name", format!("\"{name}\""), "must be one folder's name; put its parents into `train.out`")
}

/// Checks what goes with files of examples.
fn examples(config: &Config) -> Result<()> {
    let (data, format) = (&config.data, config.data.format);
    if format == DataFormat::Text {
        return Ok(());
    }
    let rule = "must be \"text\" for a model that learns hidden tokens (bert)";
    require(config.model.architecture != ArchitectureName::Bert, "data.format", format!("\"{format}\""), rule)?;
    let rule = format!("must name JSON lines, for `data.format` is \"{format}\"");
    require(data.path.is_some() || !data.blend.is_empty(), "data.path", "unset", &rule)?;
    let rule =
        format!("must be left out where `data.format` is \"{format}\": examples in one sample never see each other");
    require(data.attend_across != Some(true), "data.attend_across", true, &rule)
}

/// Checks `[optimizer]`.
fn optimizer(optimizer: &OptimizerConfig, steps: u64) -> Result<()> {
    positive("optimizer.lr", optimizer.lr)?;
    if let Some(min) = optimizer.min_lr {
        let rule = format!("must be from 0 to `optimizer.lr` = {}", optimizer.lr);
        require((0.0..=optimizer.lr).contains(&min), "optimizer.min_lr", min, &rule)?;
    }
    for beta in optimizer.betas {
        let shown = format!("{:?}", optimizer.betas);
        require((0.0..1.0).contains(&beta), "optimizer.betas", shown, "both must be in [0, 1), such as [0.9, 0.95]")?;
    }
    positive("optimizer.eps", optimizer.eps)?;
    let decay = optimizer.weight_decay;
    require(decay >= 0.0 && decay.is_finite(), "optimizer.weight_decay", decay, "must be finite and from 0")?;
    let momentum = optimizer.momentum;
    require((0.0..1.0).contains(&momentum), "optimizer.momentum", momentum, "must be in [0, 1); 0 keeps no momentum")?;
    let warmup = optimizer.warmup.unwrap_or(0);
    let rule = format!("must be at most `train.steps` = {steps}; shorten the warm-up or train longer");
    require(warmup <= steps, "optimizer.warmup", warmup, &rule)?;
    let room = steps - warmup;
    let rule = format!(
        "must be at most {room}, the steps that a warm-up of {warmup} leaves of `train.steps` = {steps}; 0 chooses"
    );
    let fits = optimizer.schedule != ScheduleName::Wsd || optimizer.decay <= room;
    require(fits, "optimizer.decay", optimizer.decay, &rule)
}

/// Refuses what is not a finite number above zero.
fn positive(key: &'static str, value: f64) -> Result<()> {
    require(value > 0.0 && value.is_finite(), key, value, "must be a finite number above 0")
}

/// Refuses unless `holds`.
fn require(holds: bool, key: &'static str, value: impl Display, rule: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::Config { key, value: value.to_string(), rule: rule.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_refused_by_name() {
        for set in [
            "train.steps=0",
            "train.global_batch=0",
            "train.seq=0",
            "train.clip_norm=-1",
            "train.clip_norm=nan",
            "train.name=\"\"",
            "train.name=\"a/b\"",
            "train.name=\"..\"",
            "optimizer.lr=0",
            "optimizer.lr=inf",
            "optimizer.min_lr=0.5",
            "optimizer.min_lr=-0.5",
            "optimizer.betas=[0.9, 1.0]",
            "optimizer.betas=[nan, 0.5]",
            "optimizer.eps=0",
            "optimizer.weight_decay=-0.1",
            "optimizer.momentum=1",
            "optimizer.warmup=301",
            "model.dropout=1",
            "model.norm_eps=0",
            "data.validation=1.0",
            "data.validation=-0.1",
        ] {
            let error = Config::load(None, None, &["train.steps=300".into(), set.into()]).unwrap_err();
            let (key, _) = set.split_once('=').unwrap();
            assert!(matches!(&error, Error::Config { key: found, .. } if *found == key), "{set}: {error}");
            assert!(error.is_input());
        }
    }

    #[test]
    fn there_is_no_tf32_in_double_precision() {
        let load = |precision: &str| Config::load(None, None, &["train.tf32=true".into(), precision.into()]);
        let error = load("train.precision=fp64").unwrap_err();
        assert!(error.to_string().starts_with("`train.tf32` is true, but needs products of single"), "{error}");
        // Attention that no kernel fuses is computed in single precision.
        load("train.precision=bf16").unwrap();
        load("train.precision=fp32").unwrap();
    }

    #[test]
    fn what_follows_from_evaluations_needs_some() {
        for set in ["train.patience=2", "checkpoint.keep_best=1"] {
            let error = Config::load(None, None, &["eval.every=0".into(), set.into()]).unwrap_err();
            assert!(error.to_string().contains("needs evaluations: set `eval.every` and"), "{error}");
            Config::load(None, None, &["data.validation=0".into(), set.into()]).unwrap_err();
            Config::load(None, None, &["eval.every=1".into(), set.into()]).unwrap();
        }
    }

    #[test]
    fn adapters_of_no_rank_have_no_other_keys() {
        for set in ["lora.alpha=32", "lora.dropout=0.1", "lora.targets=[\"mlp.up\"]"] {
            let error = Config::load(None, None, &[set.into()]).unwrap_err().to_string();
            assert!(error.contains("`lora.rank` is 0, but must be above 0 where"), "{set}: {error}");
            Config::load(None, None, &[set.into(), "lora.rank=2".into()]).unwrap();
        }
    }

    #[test]
    fn one_source_and_a_blend_are_refused_together() {
        let sets = ["data.path=a", "data.blend=[{path=\"b\", weight=1}]"].map(String::from);
        let error = Config::load(None, None, &sets).unwrap_err().to_string();
        assert!(error.contains("`data.path` is ") && error.contains("`data.blend` too"), "{error}");
        let unset = [sets[0].clone(), sets[1].clone(), "data.path=".into()];
        assert_eq!(Config::load(None, None, &unset).unwrap().data.path, None);
    }

    #[test]
    fn a_decay_that_meets_the_warm_up_is_refused_for_wsd_alone() {
        let sets = |schedule: &str| {
            ["train.steps=10", "optimizer.warmup=4", "optimizer.decay=7", &format!("optimizer.schedule={schedule}")]
                .map(String::from)
        };
        let error = Config::load(None, None, &sets("wsd")).unwrap_err().to_string();
        assert_eq!(
            error,
            "`optimizer.decay` is 7, but must be at most 6, the steps that a warm-up of 4 leaves of `train.steps` = 10; \
             0 chooses"
        );
        Config::load(None, None, &sets("cosine")).unwrap();
    }

    #[test]
    fn a_run_may_be_shorter_than_the_presets_warm_up() {
        Config::load(None, None, &["train.steps=1".into()]).unwrap();
    }
}
