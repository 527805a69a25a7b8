//! A model as a list of parameters: names, full shapes, initial values, and along what each may be cut.
//!
//! Shapes are torch's storage, `[d_out, d_in]`. Legend: `d` width, `h` query heads, `kv` key/value heads, `k` head width,
//! `f` MLP width, `v` vocabulary.

use serde::{Deserialize, Serialize};

use crate::{Architecture, ArchitectureName, AttentionBias};

/// Standard deviation of initial weights.
const STD: f64 = 0.02;

/// One parameter of the whole model, before any cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParameterSpec {
    /// The name: `layers.3.mlp.down.weight`.
    pub name: String,
    /// The full shape, without padding.
    pub shape: Vec<usize>,
    /// Along what the tensor axis cuts it.
    pub cut: Cut,
    /// Its values before the first step.
    pub init: Init,
    /// Whether weight decay applies: to matrices, not to vectors.
    pub decays: bool,
    /// The layer it belongs to, if any.
    pub layer: Option<usize>,
    /// Whether training leaves it as it is: it has values, and neither gradients nor optimizer state.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
}

impl ParameterSpec {
    /// Says whether it lies before the layers.
    pub fn is_entrance(&self) -> bool {
        let names = ["embedding.", "positions.", "token_types.", "embedding_norm."];
        names.iter().any(|name| self.name.starts_with(name))
    }

    /// Counts the elements of the full tensor.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Along what the tensor axis cuts a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "along")]
#[non_exhaustive]
pub enum Cut {
    /// Not cut. Such parameters meet activations that sequence parallelism cuts: norms, learned positions and types, the
    /// biases of row-parallel layers, and small matrices of bert's heads.
    Nothing,
    /// Dim 0 by token, padded where it does not divide.
    Vocabulary,
    /// By query heads: dim 0 of the query projection, dim 1 of the output projection.
    QueryHeads {
        /// The dim.
        dim: usize,
    },
    /// Dim 0 by key/value heads, which several ranks share where there are more ranks than heads.
    KeyValueHeads,
    /// By columns of the MLP's hidden layer: dim 0 of its entrance, dim 1 of its exit.
    Hidden {
        /// The dim.
        dim: usize,
    },
    /// Not cut, and used with a cut of something else: the factor of an adapter that lies on the side of its matrix that is
    /// whole. Each rank's gradient is a part of the sum.
    Partial,
}

/// Values before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Normal with mean 0.
    Normal {
        /// The standard deviation.
        std: f64,
    },
    /// Uniform around 0.
    Uniform {
        /// The largest absolute value.
        bound: f64,
    },
}

impl Architecture {
    /// Lists all parameters in the order in which a forward pass meets them.
    ///
    /// The order is a contract: the query, key and value weights of a layer are neighbours, so are their biases, and
    /// so are the MLP's gate and up. Laid out in one buffer in this order, each such set is one matrix to multiply by.
    ///
    /// # Examples
    ///
    /// ```
    /// use mp_plan::{Architecture, ModelConfig};
    ///
    /// let config = ModelConfig { layers: 1, ..ModelConfig::default() };
    /// let names: Vec<_> = Architecture::resolve(&config, 256, 64)?.parameters().into_iter().map(|p| p.name).collect();
    /// assert_eq!(names[..2], ["embedding.weight", "layers.0.attention_norm.weight"]);
    /// assert_eq!(names[names.len() - 2..], ["final_norm.weight", "head.weight"]);
    /// # Ok::<(), mp_plan::Error>(())
    /// ```
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let mut list = List { architecture: self, layer: None, parameters: Vec::new() };
        list.model();
        list.parameters
    }
}

/// Parameters as they are gathered.
struct List<'a> {
    architecture: &'a Architecture,
    layer: Option<usize>,
    parameters: Vec<ParameterSpec>,
}

impl List<'_> {
    fn model(&mut self) {
        let &Architecture { name, hidden: d, vocab: v, max_seq, token_types, .. } = self.architecture;
        let normal = Init::Normal { std: STD };
        self.push("embedding.weight", &[v, d], Cut::Vocabulary, normal);
        if name != ArchitectureName::Llama {
            self.push("positions.weight", &[max_seq, d], Cut::Nothing, normal);
        }
        if name == ArchitectureName::Bert {
            self.push("token_types.weight", &[token_types, d], Cut::Nothing, normal);
            self.norm("embedding_norm");
        }
        self.layers();
        match name {
            ArchitectureName::Bert => self.masked_head(),
            ArchitectureName::Llama | ArchitectureName::Gpt2 => self.norm("final_norm"),
        }
        if !self.architecture.tie_embeddings {
            self.push("head.weight", &[v, d], Cut::Vocabulary, normal);
        }
        if name == ArchitectureName::Bert && self.architecture.bias {
            self.push("head.bias", &[v], Cut::Vocabulary, Init::Zeros);
        }
        if self.architecture.next_sentence {
            self.dense("pooler", [d, d]);
            self.dense("next_sentence", [2, d]);
        }
    }

    /// Adds the layers, with norms before or behind each half.
    fn layers(&mut self) {
        for layer in 0..self.architecture.layers {
            self.layer = Some(layer);
            match self.architecture.name {
                ArchitectureName::Bert => {
                    self.attention();
                    self.norm("attention_norm");
                    self.mlp();
                    self.norm("mlp_norm");
                }
                ArchitectureName::Llama | ArchitectureName::Gpt2 => {
                    self.norm("attention_norm");
                    self.attention();
                    self.norm("mlp_norm");
                    self.mlp();
                }
            }
        }
        self.layer = None;
    }

    /// Adds what a masked language model does before it compares with the vocabulary.
    fn masked_head(&mut self) {
        let d = self.architecture.hidden;
        self.dense("head.dense", [d, d]);
        self.norm("head.norm");
    }

    /// Adds a linear layer that is whole on every rank.
    fn dense(&mut self, name: &str, shape: [usize; 2]) {
        self.push(&format!("{name}.weight"), &shape, Cut::Nothing, Init::Normal { std: STD });
        if self.architecture.bias {
            self.push(&format!("{name}.bias"), &shape[..1], Cut::Nothing, Init::Zeros);
        }
    }

    fn attention(&mut self) {
        let &Architecture { hidden: d, heads: h, kv_heads: kv, head_dim: k, .. } = self.architecture;
        let queries = ("attention.query", h * k, Cut::QueryHeads { dim: 0 });
        let keys = ("attention.key", kv * k, Cut::KeyValueHeads);
        let values = ("attention.value", kv * k, Cut::KeyValueHeads);
        let biases = self.architecture.attention_biases();
        self.entrance(&[queries, keys, values], biases != AttentionBias::None);
        self.exit("attention.output", [d, h * k], Cut::QueryHeads { dim: 1 }, biases == AttentionBias::All);
    }

    fn mlp(&mut self) {
        let &Architecture { name, hidden: d, ffn: f, bias, .. } = self.architecture;
        let gate = ("mlp.gate", f, Cut::Hidden { dim: 0 });
        let up = ("mlp.up", f, Cut::Hidden { dim: 0 });
        match name {
            ArchitectureName::Llama => self.entrance(&[gate, up], bias),
            ArchitectureName::Gpt2 | ArchitectureName::Bert => self.entrance(&[up], bias),
        }
        self.exit("mlp.down", [d, f], Cut::Hidden { dim: 1 }, bias);
    }

    /// Adds column-parallel layers that share their input: all weights, then all biases, each cut like its weight.
    fn entrance(&mut self, layers: &[(&str, usize, Cut)], bias: bool) {
        for &(name, rows, cut) in layers {
            let shape = [rows, self.architecture.hidden];
            self.push(&format!("{name}.weight"), &shape, cut, Init::Normal { std: STD });
        }
        if bias {
            for &(name, rows, cut) in layers {
                self.push(&format!("{name}.bias"), &[rows], cut, Init::Zeros);
            }
        }
    }

    /// Adds a row-parallel layer, whose output joins the residual stream: that stream is a sum of `2·layers` such
    /// outputs, and the smaller deviation keeps its variance independent of depth.
    fn exit(&mut self, name: &str, shape: [usize; 2], cut: Cut, bias: bool) {
        let std = STD / (2.0 * self.architecture.layers as f64).sqrt();
        self.push(&format!("{name}.weight"), &shape, cut, Init::Normal { std });
        if bias {
            self.push(&format!("{name}.bias"), &shape[..1], Cut::Nothing, Init::Zeros);
        }
    }

    fn norm(&mut self, name: &str) {
        let &Architecture { name: family, hidden: d, bias, .. } = self.architecture;
        self.push(&format!("{name}.weight"), &[d], Cut::Nothing, Init::Ones);
        if bias && family != ArchitectureName::Llama {
            self.push(&format!("{name}.bias"), &[d], Cut::Nothing, Init::Zeros);
        }
    }

    fn push(&mut self, name: &str, shape: &[usize], cut: Cut, init: Init) {
        let name = match self.layer {
            Some(layer) => format!("layers.{layer}.{name}"),
            None => name.to_owned(),
        };
        let decays = shape.len() >= 2;
        let (shape, layer) = (shape.to_vec(), self.layer);
        self.parameters.push(ParameterSpec { name, shape, cut, init, decays, layer, frozen: false });
    }
}
