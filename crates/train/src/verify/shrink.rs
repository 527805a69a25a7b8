//! The user's model made small: whatever decides which code runs stays as it is, sizes do not.
//!
//! | stays | shrinks |
//! |---|---|
//! | family, biases, tied head, dropout, rotary base and scaling, norm epsilon | layers: as many as the stages of the deepest cut, and one more where they are two a rank |
//! | by which degrees heads, MLP and sequence can be cut, and where key/value heads are shared | heads, MLP and sequence: the least that do |
//! | whether a window hides positions | its length |
//! | whether heads are of even width, and on a device of one that its fused kernel takes; whether they fill the width, whether positions go beyond a sequence | widths: a few elements |
//! | optimizer, its betas, momentum and decay; seed | batch; a vocabulary that no degree divides |

use mp_plan::words::counted;
use mp_plan::{Architecture, ModelConfig, RopeScaling};
use mp_runtime::kernels::attention::kernel::{Case as Attention, Sight};
use mp_runtime::{Device, Kind};

use super::Case;
use crate::layout::Layout;
use crate::{Config, Result};

/// Prime: every degree from 2 on pads it.
pub(super) const VOCAB: usize = 37;
/// Positions of a sequence, at least, where the user's are as many.
const SEQ: usize = 12;
/// Columns of the MLP, likewise.
const FFN: usize = 12;
/// Sequences of a global batch, at least.
const BATCH: usize = 8;
/// Rows of adapters, at most.
const RANK: usize = 3;
/// Small: each layer's gradients fill more than one bucket.
const BUCKET_BYTES: usize = 8192;

/// The gradient's norm is cut down to this, below the first norms of small models: clipping takes part.
pub(super) const CLIP_NORM: f64 = 0.25;
/// Large beside rounding: what updates get wrong stands out.
pub(super) const LR: f64 = 1e-2;

/// A user's configuration, shrunk.
#[derive(Debug, Clone)]
pub struct Shrunk {
    config: Config,
    /// The layers of each stage, where the configuration splits them.
    split: Vec<usize>,
    /// The user's configuration as it is, and the tokens of its vocabulary.
    full: (Config, usize),
}

impl Shrunk {
    /// Shrinks a configuration, so that `ranks` ranks can cut it in all ways that they could cut the original, and in
    /// `stages` stages where the original can be, and so that a device attends as it would.
    ///
    /// # Errors
    /// [`Error::Plan`](crate::Error::Plan) for a model that cannot be.
    pub fn new(config: &Config, vocab: usize, ranks: usize, stages: usize, device: Device) -> Result<Self> {
        let full = Architecture::resolve(&config.model, vocab, config.train.seq)?;
        let mut small = Config { model: model(&full, config.train.seq, ranks, device), ..config.clone() };
        small.model.layers = full.layers.min((2 * ranks + 1).max(stages));
        small.parallel = Default::default();
        small.train.seq = seq(config.train.seq, ranks);
        small.train.clip_norm = CLIP_NORM;
        if small.lora.rank > RANK {
            small.lora.alpha *= RANK as f64 / small.lora.rank as f64;
            small.lora.rank = RANK;
        }
        // See `compare`: a gradient that is all rounding must not make an update that is.
        small.optimizer.eps = small.optimizer.eps.max(CLIP_NORM);
        let split = split(&config.parallel.split, small.model.layers);
        Ok(Self { config: small, split, full: (config.clone(), vocab) })
    }

    /// Says whether the configuration splits the layers itself.
    pub(super) fn is_split(&self) -> bool {
        !self.split.is_empty()
    }

    /// Returns the model in words.
    pub fn words(&self) -> String {
        let &ModelConfig { architecture, layers, hidden, heads, kv_heads, ffn, vocab, .. } = &self.config.model;
        let family = format!("{architecture:?}").to_lowercase();
        let seq = self.config.train.seq;
        let (layers, heads, shared) =
            (counted(layers, "layer"), counted(heads, "head"), counted(kv_heads, "key/value head"));
        format!("{family}, {layers} of width {hidden}, {heads} on {shared}, MLP {ffn}, vocabulary {vocab}, sequences of {seq}")
    }

    /// Returns the names of all trained parameters in execution order, adapters after what is none.
    ///
    /// # Errors
    /// [`Error::Plan`](crate::Error::Plan) for a model that cannot be.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let layout = self.layout(&Case::default())?;
        Ok(layout.partition.trained().map(|parameter| parameter.spec.name.clone()).collect())
    }

    /// Returns the sequences in a step of a layout.
    pub(super) fn global_batch(case: &Case) -> usize {
        let unit = case.dp.saturating_mul(case.micro_batches);
        BATCH.div_ceil(unit).saturating_mul(unit)
    }

    /// Returns the configuration of a layout.
    pub(super) fn config(&self, case: &Case) -> Config {
        let mut config = self.config.clone();
        config.train.global_batch = Self::global_batch(case);
        config.parallel = case.parallel(config.train.global_batch, BUCKET_BYTES, &self.split);
        // Of fewer layers fewer are left out.
        config.parallel.recompute_every = config.parallel.recompute_every.min(config.model.layers);
        config
    }

    /// Checks that a layout can cut the user's own model, so that what is refused is told in its numbers.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub(super) fn check_full(&self, case: &Case) -> Result<()> {
        let (full, vocab) = &self.full;
        let mut config = full.clone();
        config.train.global_batch = Self::global_batch(case);
        config.parallel = case.parallel(config.train.global_batch, BUCKET_BYTES, &full.parallel.split);
        Layout::new(&config, *vocab, case.ranks()).map(drop)
    }

    /// Lays the model out.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub(super) fn layout(&self, case: &Case) -> Result<Layout> {
        Layout::new(&self.config(case), VOCAB, case.ranks())
    }
}

fn model(full: &Architecture, user_seq: usize, ranks: usize, device: Device) -> ModelConfig {
    let (heads, kv_heads) = heads(full, ranks);
    let head_dim = head_dim(full.head_dim, heads, device);
    let seq = seq(user_seq, ranks);
    let fills = full.hidden == full.heads * full.head_dim;
    ModelConfig {
        heads,
        kv_heads,
        head_dim,
        hidden: heads * head_dim + if fills { 0 } else { 4 },
        ffn: alike(full.ffn, FFN, ranks),
        vocab: VOCAB,
        max_seq: seq + if full.max_seq > user_seq { 4 } else { 0 },
        window: window(full.window, user_seq, seq),
        rope_scaling: full.rope_scaling.clone().map(|scaling| scaled(scaling, user_seq, seq)),
        ..full.to_config()
    }
}

/// Deals layers to stages in the proportions of a split, at least one to each.
fn split(full: &[usize], layers: usize) -> Vec<usize> {
    let mut split = vec![1; full.len()];
    for _ in full.len()..layers {
        // Next is the stage that has least of what it has in full; of equals the first. With as many layers as in full each
        // ends where it is there (D'Hondt's rule gives every stage its exact share).
        let share = |stage: &usize| full[*stage] as f64 / (split[*stage] + 1) as f64;
        let next = (0..full.len()).rev().max_by(|one, other| share(one).total_cmp(&share(other)));
        if let Some(stage) = next {
            split[stage] += 1;
        }
    }
    split
}

/// Keeps the share of a sequence that a query sees, and more than its own position of it.
fn window(full: Option<usize>, user_seq: usize, seq: usize) -> usize {
    full.filter(|&window| window < user_seq).map_or(0, |window| (window * seq / user_seq).max(2))
}

/// Keeps how the original context compares with a sequence: angles stay slow or fast.
fn scaled(mut scaling: RopeScaling, user_seq: usize, seq: usize) -> RopeScaling {
    if let RopeScaling::Llama3 { original_max_position_embeddings: original, .. } = &mut scaling {
        *original = (*original * seq / user_seq).max(1);
    }
    scaling
}

/// Finds the fewest heads that the same degrees cut, with key/value heads shared by as many ranks.
fn heads(full: &Architecture, ranks: usize) -> (usize, usize) {
    let shape = |heads: usize, kv: usize| {
        let cut = move |tp: usize| {
            let fits = heads.is_multiple_of(tp) && (kv.is_multiple_of(tp) || tp.is_multiple_of(kv));
            // By how many ranks a key/value head is held, and whether query heads share one on a rank.
            fits.then_some((tp.div_ceil(kv), heads / tp > (kv / tp).max(1)))
        };
        ((1..=ranks).map(cut).collect::<Vec<_>>(), kv < heads, kv > 1, heads > 1)
    };
    let wanted = shape(full.heads, full.kv_heads);
    (1..=full.heads)
        .flat_map(|heads| (1..=heads).filter(move |kv| heads.is_multiple_of(*kv)).map(move |kv| (heads, kv)))
        .find(|&(heads, kv)| shape(heads, kv) == wanted)
        .unwrap_or((full.heads, full.kv_heads))
}

/// Keeps the parity, which rotary positions look at, and on a device whether its fused kernel takes such a width.
fn head_dim(full: usize, heads: usize, device: Device) -> usize {
    let small = (16 / heads).max(4);
    let small = small + (small + full) % 2;
    let kernel = |width: usize| {
        let (kind, sizes, sight) = (Kind::BFloat16, [1, 1, width as i64], Sight::Full);
        Attention { device, kind, sizes, sight, drops: false, has_flash: true }.kernel()
    };
    (small..=full).step_by(2).find(|&width| kernel(width) == kernel(full)).unwrap_or(small)
}

/// Keeps the divisors that context ranks ask for: two pieces of a sequence for each, cut again over the tensor ranks.
fn seq(full: usize, ranks: usize) -> usize {
    alike(full, SEQ, 2 * ranks)
}

/// Finds the least number from `least` on, or else from 1, that the same numbers up to `most` divide.
fn alike(full: usize, least: usize, most: usize) -> usize {
    let divisors = |number: usize| (1..=most).filter(move |part| number.is_multiple_of(*part));
    (least.min(full)..=full).find(|&small| divisors(small).eq(divisors(full))).unwrap_or(full)
}

#[cfg(test)]
mod tests {
    use mp_plan::AttentionBias;

    use super::*;

    fn shrunk(sets: &[&str], ranks: usize) -> ModelConfig {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        let config = Config::load(None, None, &sets).unwrap();
        Shrunk::new(&config, 257, ranks, 1, Device::Cpu).unwrap().config.model
    }

    #[test]
    fn heads_are_as_wide_as_the_kernel_of_a_device_wants_them_or_not() {
        let widths = |device| {
            [("64", "6"), ("128", "1"), ("36", "1"), ("200", "4"), ("15", "4")].map(|(width, heads)| {
                let sets = [("head_dim", width), ("heads", heads)].map(|(key, value)| format!("model.{key}={value}"));
                let config =
                    Config::load(None, None, &[&sets[..], &["model.architecture=gpt2".into()]].concat()).unwrap();
                Shrunk::new(&config, 257, 4, 1, device).unwrap().config.model.head_dim
            })
        };
        assert_eq!(widths(Device::Cpu), [4, 16, 16, 4, 5]);
        assert_eq!(widths(Device::Cuda(0)), [8, 16, 18, 4, 5]);
    }

    #[test]
    fn a_split_keeps_its_proportions() {
        assert_eq!(split(&[5, 6, 5], 16), [5, 6, 5]);
        assert_eq!(split(&[5, 6, 5], 9), [3, 3, 3]);
        assert_eq!(split(&[12, 4], 5), [4, 1]);
        assert_eq!(split(&[1, 30, 1], 4), [1, 2, 1]);
        assert_eq!(split(&[], 4), [0; 0]);
    }

    #[test]
    fn there_are_as_many_layers_as_the_stages_need_and_the_model_has() {
        let config = Config::load(None, None, &["model.layers=48".into()]).unwrap();
        let layers = |stages| Shrunk::new(&config, 257, 4, stages, Device::Cpu).unwrap().config.model.layers;
        assert_eq!([1, 9, 12, 48, 49].map(layers), [9, 9, 12, 48, 48]);
    }

    #[test]
    fn heads_are_cut_by_the_same_degrees_and_shared_alike() {
        for (heads, kv_heads, small) in
            [("12", "12", (12, 12)), ("32", "8", (8, 4)), ("32", "1", (8, 1)), ("25", "25", (5, 5))]
        {
            let (all, shared) = (format!("model.heads={heads}"), format!("model.kv_heads={kv_heads}"));
            let model = shrunk(&[&all, &shared, "model.hidden=9600"], 4);
            assert_eq!((model.heads, model.kv_heads), small, "{heads} {kv_heads}");
        }
    }

    #[test]
    fn what_decides_the_code_stays() {
        let model = shrunk(
            &[
                "model.architecture=gpt2",
                "model.heads=4",
                "model.head_dim=15",
                "model.dropout=0.1",
                "model.bias=false",
                "model.max_seq=200",
            ],
            4,
        );
        assert_eq!(model.head_dim % 2, 1);
        assert_ne!(model.hidden, model.heads * model.head_dim);
        assert_eq!((model.dropout, model.bias, model.tie_embeddings), (0.1, Some(false), Some(true)));
        assert!(model.max_seq > 16 && model.layers == 4);
        assert_eq!(shrunk(&["model.layers=48"], 4).layers, 9);
        assert_eq!(shrunk(&["model.attention_bias=qkv"], 4).attention_bias, Some(AttentionBias::Qkv));
        let llama3 = "model.rope_scaling={ kind = \"llama3\", factor = 8.0, low_freq_factor = 1.0, \
                      high_freq_factor = 4.0, original_max_position_embeddings = 64 }";
        let kept = shrunk(&[llama3], 4).rope_scaling;
        assert!(matches!(kept, Some(RopeScaling::Llama3 { original_max_position_embeddings: 8, .. })), "{kept:?}");
        assert_eq!(shrunk(&["model.window=32"], 4).window, 4);
        assert_eq!(shrunk(&["model.window=128"], 4).window, 0);
    }
}
