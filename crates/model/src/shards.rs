//! A rank's parameters as a model's constructor asks for them: names become weights, weights become layers.

use std::ops::Range;

use mp_plan::lora::{FIRST_FACTOR, SECOND_FACTOR};
use mp_plan::{Architecture, AttentionBias};
use mp_runtime::kernels::rotary::Angles;
use mp_runtime::{Device, Kind};

use crate::context::{Context, Form};
use crate::layers::attention::{Heads, SelfAttention, Sight};
use crate::layers::dense::Dense;
use crate::layers::dropout::Dropout;
use crate::layers::linear::{ColumnParallel, RowParallel};
use crate::layers::low_rank::LowRank;
use crate::layers::mlp::{Activation, Mlp};
use crate::layers::norm::Norm;
use crate::parameter::Parameters;
use crate::recompute::Recompute;
use crate::regions::TensorGroup;
use crate::weight::Weight;
use crate::Result;

/// How a model computes, beside what it is.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The ranks that share each sequence.
    pub context: Context,
    /// What is computed again in the backward instead of kept.
    pub recompute: Recompute,
}

/// A rank's parameters as a model's constructor asks for them.
#[derive(Debug)]
pub struct Shards<'a> {
    pub(crate) parameters: &'a Parameters,
    pub(crate) group: &'a TensorGroup,
    pub(crate) options: &'a Options,
}

impl Shards<'_> {
    /// Returns the model's shape.
    pub fn architecture(&self) -> &Architecture {
        &self.parameters.partition().architecture
    }

    /// Returns the tensor group.
    pub fn group(&self) -> &TensorGroup {
        self.group
    }

    /// Returns the kind of weights and activations.
    pub fn kind(&self) -> Kind {
        self.parameters.compute_kind()
    }

    /// Returns where tensors lie.
    pub fn device(&self) -> Device {
        self.parameters.device()
    }

    /// Hands out one parameter.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter).
    pub fn weight(&self, name: &str) -> Result<Weight> {
        self.parameters.weight(name)
    }

    /// Makes a LayerNorm.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter).
    pub fn layer_norm(&self, at: &str) -> Result<Norm> {
        let (weight, bias) = (self.weight(&format!("{at}.weight"))?, self.bias(at, self.architecture().bias)?);
        Ok(Norm::Layer { weight, bias, epsilon: self.architecture().norm_eps })
    }

    /// Makes an RMSNorm.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter).
    pub fn root_mean_square_norm(&self, at: &str) -> Result<Norm> {
        let weight = self.weight(&format!("{at}.weight"))?;
        Ok(Norm::RootMeanSquare { weight, epsilon: self.architecture().norm_eps })
    }

    /// Makes a self-attention with this rank's heads.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter); [`Error::Plan`](crate::Error::Plan) if they
    /// cannot be exchanged over the context group.
    pub(crate) fn attention(&self, layer: usize, angles: Option<Angles>) -> Result<SelfAttention> {
        let at = &format!("layers.{layer}.attention");
        let width = self.architecture().head_dim;
        let query = self.range(&format!("{at}.query.weight"))?;
        let heads = Heads {
            all: self.architecture().heads,
            query: query.start / width..query.end / width,
            key_value: self.range(&format!("{at}.key.weight"))?.len() / width,
            width,
        };
        let biases = self.architecture().attention_biases();
        let context = self.options.context.clone();
        if context.form == Form::AllToAll {
            mp_plan::check_all_to_all(heads.query.len(), heads.key_value, 1, context.comm.size())?;
        }
        Ok(SelfAttention {
            layer,
            context,
            recompute: self.options.recompute,
            project: self.columns(at, &["query", "key", "value"], biases != AttentionBias::None)?,
            output: self.rows(&format!("{at}.output"), biases == AttentionBias::All)?,
            heads,
            angles,
            sight: Sight { causal: self.architecture().causal(), window: self.architecture().window },
            dropout: self.dropout(&format!("{at}.weights")),
        })
    }

    /// Makes a perceptron.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter).
    pub(crate) fn mlp(&self, at: &str, activation: Activation) -> Result<Mlp> {
        let parts: &[&str] = match activation {
            Activation::Gelu | Activation::ExactGelu => &["up"],
            Activation::SwiGlu => &["gate", "up"],
        };
        let bias = self.architecture().bias;
        let narrow = self.rows(&format!("{at}.down"), bias)?;
        Ok(Mlp { widen: self.columns(at, parts, bias)?, narrow, activation })
    }

    /// Makes a linear layer that is whole on every rank.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`](crate::Error::UnknownParameter).
    pub(crate) fn dense(&self, at: &str) -> Result<Dense> {
        let bias = self.bias(at, self.architecture().bias)?;
        Ok(Dense { weight: self.weight(&format!("{at}.weight"))?, bias })
    }

    /// Makes a dropout named after its place.
    pub(crate) fn dropout(&self, at: &str) -> Dropout {
        Dropout::new(self.architecture().dropout, format!("{at}.dropout"))
    }

    /// Makes one column-parallel layer of neighbouring matrices.
    fn columns(&self, at: &str, parts: &[&str], bias: bool) -> Result<ColumnParallel> {
        let names = |last: &str| parts.iter().map(|part| format!("{at}.{part}.{last}")).collect::<Vec<_>>();
        let bias = match bias {
            true => Some(self.parameters.stacked(&names("bias"))?),
            false => None,
        };
        let adapters = self.low_rank(at, parts)?;
        let weight = self.parameters.stacked(&names("weight"))?;
        Ok(ColumnParallel::new(weight, bias, self.group).with_adapters(adapters))
    }

    fn rows(&self, at: &str, bias: bool) -> Result<RowParallel> {
        let layer = RowParallel::new(self.weight(&format!("{at}.weight"))?, self.bias(at, bias)?, self.group);
        let Some((parent, part)) = at.rsplit_once('.') else { return Ok(layer) };
        Ok(layer.with_adapters(self.low_rank(parent, &[part])?))
    }

    /// Makes the adapters beside matrices that read one input, where there are any.
    fn low_rank(&self, at: &str, parts: &[&str]) -> Result<Option<LowRank>> {
        let Some(lora) = &self.parameters.partition().lora else { return Ok(None) };
        let (mut firsts, mut seconds, mut column) = (Vec::new(), Vec::new(), 0);
        for part in parts {
            let name = format!("{at}.{part}");
            let base = &self.parameters.partition().parameters[self.parameters.index(&format!("{name}.weight"))?];
            let columns = column..column + base.local_shape()[0];
            column = columns.end;
            // Without `layers.N.`.
            if name.splitn(3, '.').nth(2).is_some_and(|target| lora.adapts(target)) {
                firsts.push(format!("{name}.{FIRST_FACTOR}"));
                seconds.push((columns, self.weight(&format!("{name}.{SECOND_FACTOR}"))?));
            }
        }
        let Some(first) = firsts.first() else { return Ok(None) };
        let input = &self.parameters.partition().parameters[self.parameters.index(first)?];
        let width = input.spec.shape[1];
        let columns = match input.range(self.parameters.tp_rank()) {
            Some((1, range)) => range,
            _ => 0..width,
        };
        Ok(Some(LowRank {
            first: self.parameters.stacked(&firsts)?,
            second: seconds,
            scale: lora.scale(),
            dropout: Dropout::new(lora.dropout, format!("{at}.{}.lora.dropout", parts[0])),
            columns,
            width,
        }))
    }

    /// Hands out the bias of a layer that has one.
    pub(crate) fn bias(&self, at: &str, has: bool) -> Result<Option<Weight>> {
        has.then(|| self.weight(&format!("{at}.bias"))).transpose()
    }

    /// Returns which rows of a parameter cut along dim 0 this rank holds.
    pub(crate) fn range(&self, name: &str) -> Result<Range<usize>> {
        let parameter = &self.parameters.partition().parameters[self.parameters.index(name)?];
        Ok(parameter.range(self.parameters.tp_rank()).map_or(0..parameter.spec.shape[0], |(_, range)| range))
    }
}
