//! A model's shape with every default filled in, and what follows from it by arithmetic alone.

use serde::{Deserialize, Serialize};

use crate::{ArchitectureName, AttentionBias, Error, ModelConfig, Result, RopeScaling};

/// The most layers of a model.
const MOST_LAYERS: usize = 10_000;
/// The most elements of a model: beyond, counts would not be exact in a double.
const MOST_ELEMENTS: f64 = 9_007_199_254_740_992.0;

/// A model's shape, where nothing is left to choose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// The family.
    pub name: ArchitectureName,
    /// Width `d`.
    pub hidden: usize,
    /// Number of transformer layers.
    pub layers: usize,
    /// Number of query heads `h`.
    pub heads: usize,
    /// Number of key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head `k`; even in llama.
    pub head_dim: usize,
    /// Hidden width of the MLP `f`.
    pub ffn: usize,
    /// Vocabulary size `v`, without padding.
    pub vocab: usize,
    /// Longest sequence.
    pub max_seq: usize,
    /// Whether the head is the embedding's matrix.
    pub tie_embeddings: bool,
    /// Dropout probability.
    pub dropout: f64,
    /// Whether linear layers, and all norms but llama's, carry a bias.
    pub bias: bool,
    /// Which projections of the attention carry a bias, where that is not what `bias` says.
    #[serde(default)]
    pub attention_bias: Option<AttentionBias>,
    /// How many positions a query sees, its own among them, where it does not see all.
    #[serde(default)]
    pub window: Option<usize>,
    /// How many types of tokens there are; 0 in all families but bert.
    #[serde(default)]
    pub token_types: usize,
    /// Whether there is a head for whole sequences: does the second half follow the first?
    #[serde(default)]
    pub next_sentence: bool,
    /// Base of the rotary angles; without effect where positions are learned.
    pub rope_theta: f64,
    /// Scaling of the rotary angles.
    pub rope_scaling: Option<RopeScaling>,
    /// Epsilon of the norms.
    pub norm_eps: f64,
}

impl Architecture {
    /// Fills in what the configuration leaves open: the vocabulary from the tokenizer, the longest sequence from
    /// training's `seq`, the rest from the family.
    ///
    /// # Errors
    /// Whatever [`check`](Self::check) refuses; [`Error::NotDivisible`] if `heads` does not divide `hidden` and no
    /// `head_dim` is given; [`Error::Vocabulary`] and [`Error::SequenceTooLong`] if tokenizer or training exceed the
    /// model.
    pub fn resolve(config: &ModelConfig, tokenizer_vocab: usize, seq: usize) -> Result<Self> {
        let name = config.architecture;
        let llama = name == ArchitectureName::Llama;
        let bias = config.bias.unwrap_or(!llama);
        let or = |value: usize, default: usize| if value == 0 { default } else { value };
        positive("model.hidden", config.hidden)?;
        positive("model.heads", config.heads)?;
        let resolved = Self {
            name,
            hidden: config.hidden,
            layers: config.layers,
            heads: config.heads,
            kv_heads: or(config.kv_heads, config.heads),
            head_dim: head_dim(config)?,
            ffn: or(config.ffn, default_ffn(name, config.hidden)),
            vocab: or(config.vocab, tokenizer_vocab),
            max_seq: or(config.max_seq, seq),
            tie_embeddings: config.tie_embeddings.unwrap_or(!llama),
            dropout: config.dropout,
            bias,
            attention_bias: config.attention_bias.filter(|&chosen| chosen != AttentionBias::like(bias)),
            window: Some(config.window).filter(|&window| window > 0),
            token_types: match name {
                ArchitectureName::Bert => or(config.token_types, 2),
                _ => config.token_types,
            },
            next_sentence: config.next_sentence,
            rope_theta: config.rope_theta,
            rope_scaling: config.rope_scaling.clone(),
            norm_eps: config.norm_eps,
        };
        resolved.check()?;
        if resolved.vocab < tokenizer_vocab {
            return Err(Error::Vocabulary { vocab: resolved.vocab, tokenizer: tokenizer_vocab });
        }
        if resolved.max_seq < seq {
            return Err(Error::SequenceTooLong { seq, max_seq: resolved.max_seq });
        }
        Ok(resolved)
    }

    /// Checks that such a model can exist.
    ///
    /// # Errors
    /// [`Error::Zero`], [`Error::NotDivisible`] (key/value heads), [`Error::OddHeadDim`], [`Error::NoRotary`],
    /// [`Error::NotOfFamily`], [`Error::OutOfRange`] (dropout, norm_eps, rope_theta, rope_scaling), [`Error::TooLarge`].
    pub fn check(&self) -> Result<()> {
        self.check_sizes()?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::NotDivisible {
                what: "model.heads",
                len: self.heads,
                by: "model.kv_heads",
                parts: self.kv_heads,
                legal: divisors(self.heads),
            });
        }
        self.check_rotary()?;
        self.check_types()?;
        let above = "finite and above 0";
        within("model.norm_eps", self.norm_eps, above, self.norm_eps > 0.0)?;
        within("model.dropout", self.dropout, "at least 0 and below 1", (0.0..1.0).contains(&self.dropout))
    }

    fn check_sizes(&self) -> Result<()> {
        positive("model.hidden", self.hidden)?;
        positive("model.layers", self.layers)?;
        positive("model.heads", self.heads)?;
        positive("model.kv_heads", self.kv_heads)?;
        positive("model.head_dim", self.head_dim)?;
        positive("model.ffn", self.ffn)?;
        positive("model.vocab", self.vocab)?;
        positive("model.max_seq", self.max_seq)?;
        limited("model.layers", self.layers as f64, MOST_LAYERS as f64)?;
        limited("model parameters", self.estimate(), MOST_ELEMENTS)
    }

    /// Refuses what only one family has.
    fn check_types(&self) -> Result<()> {
        let set = [("model.token_types", self.token_types > 0), ("model.next_sentence", self.next_sentence)];
        match (self.name, set.into_iter().find(|(_, set)| *set)) {
            (ArchitectureName::Bert, _) | (_, None) => Ok(()),
            (_, Some((what, _))) => Err(Error::NotOfFamily { what, family: "bert" }),
        }
    }

    fn check_rotary(&self) -> Result<()> {
        if self.name != ArchitectureName::Llama {
            return self.rope_scaling.as_ref().map_or(Ok(()), |_| Err(Error::NoRotary));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::OddHeadDim { head_dim: self.head_dim });
        }
        let above = "finite and above 0";
        within("model.rope_theta", self.rope_theta, above, self.rope_theta > 0.0)?;
        match self.rope_scaling {
            Some(RopeScaling::Linear { factor }) => within("model.rope_scaling.factor", factor, above, factor > 0.0),
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            }) => {
                within("model.rope_scaling.factor", factor, above, factor > 0.0)?;
                within("model.rope_scaling.low_freq_factor", low, above, low > 0.0)?;
                within("model.rope_scaling.high_freq_factor", high, "finite and above low_freq_factor", high > low)?;
                positive("model.rope_scaling.original_max_position_embeddings", original)
            }
            None => Ok(()),
        }
    }

    /// Says whether a position sees those before it alone, and the next token is what is learned.
    pub fn causal(&self) -> bool {
        self.name != ArchitectureName::Bert
    }

    /// Returns which projections of the attention carry a bias.
    pub fn attention_biases(&self) -> AttentionBias {
        self.attention_bias.unwrap_or(AttentionBias::like(self.bias))
    }

    /// Bounds the number of elements from above, in floating point, so that it cannot overflow.
    fn estimate(&self) -> f64 {
        let [d, l, h, k, f, v, s, t] =
            [self.hidden, self.layers, self.heads, self.head_dim, self.ffn, self.vocab, self.max_seq, self.token_types]
                .map(|size| size as f64);
        // The ones added to widths make room for biases and norms, the last widths for bert's heads.
        (d + 1.0) * (2.0 * v + s + t + 2.0 * d + 8.0) + l * (d + 4.0) * (4.0 * (h * k + 1.0) + 3.0 * (f + 1.0))
    }

    /// Returns the configuration that resolves to this very architecture.
    pub fn to_config(&self) -> ModelConfig {
        ModelConfig {
            from: None,
            base: None,
            architecture: self.name,
            hidden: self.hidden,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            ffn: self.ffn,
            vocab: self.vocab,
            max_seq: self.max_seq,
            tie_embeddings: Some(self.tie_embeddings),
            dropout: self.dropout,
            head_dim: self.head_dim,
            bias: Some(self.bias),
            attention_bias: self.attention_bias,
            window: self.window.unwrap_or(0),
            token_types: self.token_types,
            next_sentence: self.next_sentence,
            rope_theta: self.rope_theta,
            rope_scaling: self.rope_scaling.clone(),
            norm_eps: self.norm_eps,
        }
    }

    /// Counts the elements of all parameters, a tied head once and no padding.
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().map(|parameter| parameter.elements()).sum()
    }

    /// Counts the model's FLOPs for one token of a sequence of `seq`, forward and backward.
    ///
    /// Each element of a matrix that multiplies counts 6 (a multiply and an add, three times), the head included, also
    /// when tied; a look-up counts nothing. Attention's two products count the full square, masked or not, of which a
    /// window leaves a band: `12 · layers · heads · head_dim · min(seq, window)`.
    ///
    /// # Units
    /// FLOP a token.
    pub fn flops_per_token(&self, seq: usize) -> f64 {
        self.layers as f64 * self.layer_flops(seq) + self.head_flops()
    }

    /// Counts those of one layer.
    pub(crate) fn layer_flops(&self, seq: usize) -> f64 {
        let [d, h, kv, k, f] =
            [self.hidden, self.heads, self.kv_heads, self.head_dim, self.ffn].map(|size| size as f64);
        let mlp_matrices = match self.name {
            ArchitectureName::Llama => 3.0,
            ArchitectureName::Gpt2 | ArchitectureName::Bert => 2.0,
        };
        6.0 * (d * k * (2.0 * h + 2.0 * kv) + mlp_matrices * d * f) + 12.0 * h * k * self.keys(seq) as f64
    }

    /// Counts those of the head.
    pub(crate) fn head_flops(&self) -> f64 {
        let (d, v) = (self.hidden as f64, self.vocab as f64);
        // Bert's head multiplies by a square matrix first; what is done once a sequence is left out.
        6.0 * d * if self.name == ArchitectureName::Bert { d + v } else { v }
    }

    /// Returns how many positions of a sequence a query sees at most.
    pub(crate) fn keys(&self, seq: usize) -> usize {
        self.window.map_or(seq, |window| window.min(seq))
    }
}

impl AttentionBias {
    /// What it is where all linear layers are alike.
    fn like(bias: bool) -> Self {
        match bias {
            true => Self::All,
            false => Self::None,
        }
    }
}

/// Returns the width of a head: as given, or an equal share of `hidden`.
fn head_dim(config: &ModelConfig) -> Result<usize> {
    let &ModelConfig { hidden, heads, head_dim, .. } = config;
    if head_dim != 0 {
        return Ok(head_dim);
    }
    if !hidden.is_multiple_of(heads) {
        return Err(Error::NotDivisible {
            what: "model.hidden",
            len: hidden,
            by: "model.heads",
            parts: heads,
            legal: divisors(hidden),
        });
    }
    Ok(hidden / heads)
}

/// Returns the family's usual MLP width: `4·hidden`, or two thirds of it where a gate joins, rounded up to 32.
fn default_ffn(name: ArchitectureName, hidden: usize) -> usize {
    match name {
        ArchitectureName::Gpt2 | ArchitectureName::Bert => hidden.saturating_mul(4),
        ArchitectureName::Llama => {
            let two_thirds = hidden.saturating_mul(8).div_ceil(3);
            two_thirds.checked_next_multiple_of(32).unwrap_or(two_thirds)
        }
    }
}

/// Lists the divisors of `value` up to 256: enough to choose from.
fn divisors(value: usize) -> Vec<usize> {
    (1..=value.min(256)).filter(|divisor| value.is_multiple_of(*divisor)).collect()
}

fn positive(what: &'static str, value: usize) -> Result<()> {
    if value == 0 {
        return Err(Error::Zero { what });
    }
    Ok(())
}

fn within(what: &'static str, value: f64, range: &'static str, inside: bool) -> Result<()> {
    if !(inside && value.is_finite()) {
        return Err(Error::OutOfRange { what, value, range });
    }
    Ok(())
}

fn limited(what: &'static str, value: f64, limit: f64) -> Result<()> {
    if value > limit {
        return Err(Error::TooLarge { what, value, limit });
    }
    Ok(())
}
