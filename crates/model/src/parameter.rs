//! What a rank keeps of every parameter: its shard, as a view of flat buffers.
//!
//! Gradients are not accumulated by libtorch but by the layers themselves, straight into the flat gradient buffer: a
//! weight is no leaf of the graph. What puts a layer into the graph is the *anchor*, a scalar leaf without a value of
//! interest that every use of a parameter has as an input.

use std::ops::Range;
use std::sync::Arc;

use mp_plan::{Init, Partition, PartitionedParameter};
use mp_runtime::flat::{Flat, Layout};
use mp_runtime::rng::Stream;
use mp_runtime::{autograd, Device, Kind, Precision, Tensor};

use crate::{Error, Result};

/// One parameter's shard, or several neighbouring ones stacked along dim 0, as a layer uses it.
#[derive(Debug)]
pub struct Weight {
    value: Tensor,
    gradient: Tensor,
    anchor: Tensor,
}

impl Weight {
    /// Returns the values, outside the graph.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Returns the anchor that puts a function of this weight into the graph.
    pub fn anchor(&self) -> &Tensor {
        &self.anchor
    }

    /// Returns the kind that gradients are summed in.
    pub fn gradient_kind(&self) -> Kind {
        self.gradient.kind()
    }

    /// Makes another handle to the same memory.
    pub fn share(&self) -> Self {
        Self {
            value: self.value.shallow_clone(),
            gradient: self.gradient.shallow_clone(),
            anchor: self.anchor.shallow_clone(),
        }
    }

    /// Returns the values as a tensor of the graph, whose gradient is added to the flat buffer.
    ///
    /// # Errors
    /// [`Error::Runtime`] where libtorch refuses.
    pub fn tracked(&self) -> Result<Tensor> {
        let used = self.value.f_detach()?;
        let mut owner = self.share();
        autograd::attach(&[&self.anchor], &[used.shallow_clone()], move |gradients| {
            if let Some(gradient) = &gradients[0] {
                owner.accumulate(gradient)?;
            }
            Ok(vec![None])
        })?;
        Ok(used)
    }

    /// Adds to the gradient.
    ///
    /// # Errors
    /// [`Error::Runtime`] where the shapes differ.
    pub fn accumulate(&mut self, gradient: &Tensor) -> Result<()> {
        let _ = self.gradient.f_add_(gradient)?;
        Ok(())
    }

    /// Adds the product of a linear layer's output gradient and input, `dYᵀ · X`, to the gradient.
    ///
    /// # Shapes
    /// - `dy`: `[n, d_out]`
    /// - `x`: `[n, d_in]`
    ///
    /// # Errors
    /// [`Error::Runtime`] where the shapes do not fit.
    pub fn accumulate_product(&mut self, dy: &Tensor, x: &Tensor) -> Result<()> {
        if dy.kind() == self.gradient.kind() {
            let _ = self.gradient.f_addmm_(&dy.f_tr()?, x)?;
            return Ok(());
        }
        self.accumulate(&dy.f_tr()?.f_mm(x)?)
    }

    /// Adds rows to rows `indices` of the gradient.
    ///
    /// # Shapes
    /// - `indices`: `[n]`
    /// - `rows`: `[n, d]`
    ///
    /// # Errors
    /// [`Error::Runtime`] where the shapes do not fit.
    pub fn accumulate_rows(&mut self, indices: &Tensor, rows: &Tensor) -> Result<()> {
        let _ = self.gradient.f_index_add_(0, indices, &rows.f_to_kind(self.gradient.kind())?)?;
        Ok(())
    }
}

/// All parameters of one rank.
#[derive(Debug)]
pub struct Parameters {
    partition: Arc<Partition>,
    tp_rank: usize,
    values: Flat,
    /// Values in the optimizer's precision; absent where they are `values` themselves.
    masters: Option<Flat>,
    gradients: Flat,
    anchor: Tensor,
}

impl Parameters {
    /// Allocates a rank's shards and draws their initial values.
    ///
    /// Each element is drawn by its index in the full tensor, so every layout starts from the same model.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the device has no room.
    pub fn new(
        partition: &Arc<Partition>,
        tp_rank: usize,
        seed: u64,
        precision: Precision,
        device: Device,
    ) -> Result<Self> {
        let made = Self::zeros(partition, tp_rank, precision, device)?;
        for (index, parameter) in partition.parameters.iter().enumerate() {
            let shard = initial(parameter, tp_rank, seed)?;
            made.masters().view(index)?.f_copy_(&shard)?;
        }
        made.publish()?;
        Ok(made)
    }

    fn zeros(partition: &Arc<Partition>, tp_rank: usize, precision: Precision, device: Device) -> Result<Self> {
        let shape = |p: &PartitionedParameter| p.local_shape().iter().map(|&n| n as i64).collect::<Vec<_>>();
        let shapes: Vec<_> = partition.parameters.iter().map(shape).collect();
        let layout = Layout::new(shapes, &group_starts(&partition.parameters));
        let masters = match precision.compute() == precision.master() {
            true => None,
            false => Some(Flat::zeros(layout.clone(), precision.master(), device)?),
        };
        Ok(Self {
            partition: Arc::clone(partition),
            tp_rank,
            values: Flat::zeros(layout.clone(), precision.compute(), device)?,
            masters,
            gradients: Flat::zeros(layout, precision.master(), device)?,
            anchor: Tensor::f_zeros([], (Kind::Float, device))?.f_set_requires_grad(true)?,
        })
    }

    /// Returns the plan that these are the shards of.
    pub fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    /// Returns this rank's coordinate on the tensor axis.
    pub fn tp_rank(&self) -> usize {
        self.tp_rank
    }

    /// Returns the values in the optimizer's precision.
    pub fn masters(&self) -> &Flat {
        self.masters.as_ref().unwrap_or(&self.values)
    }

    /// Returns the gradients.
    pub fn gradients(&self) -> &Flat {
        &self.gradients
    }

    /// Returns the kind of weights and activations.
    pub fn compute_kind(&self) -> Kind {
        self.values.all().kind()
    }

    /// Returns the device that everything lies on.
    pub fn device(&self) -> Device {
        self.values.all().device()
    }

    /// Copies the masters to the values that layers multiply by, where the two differ.
    ///
    /// # Errors
    /// [`Error::Runtime`] where libtorch refuses.
    pub fn publish(&self) -> Result<()> {
        if let Some(masters) = &self.masters {
            self.values.all().shallow_clone().f_copy_(masters.all())?;
        }
        Ok(())
    }

    /// Sets all gradients to zero.
    ///
    /// # Errors
    /// [`Error::Runtime`] where libtorch refuses.
    pub fn zero_gradients(&self) -> Result<()> {
        let _ = self.gradients.all().shallow_clone().f_zero_()?;
        Ok(())
    }

    /// Finds a parameter's index in the partition.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    pub fn index(&self, name: &str) -> Result<usize> {
        let found = self.partition.parameters.iter().position(|parameter| parameter.spec.name == name);
        found.ok_or_else(|| Error::UnknownParameter(name.to_string()))
    }

    /// Hands out one parameter.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    pub fn weight(&self, name: &str) -> Result<Weight> {
        let index = self.index(name)?;
        self.joined(index..index + 1)
    }

    /// Hands out neighbouring parameters as one matrix, stacked along dim 0.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`], and [`Error::Runtime`] if they are no neighbours.
    pub fn stacked(&self, names: &[String]) -> Result<Weight> {
        let first = self.index(&names[0])?;
        let last = self.index(&names[names.len() - 1])?;
        self.joined(first..last + 1)
    }

    fn joined(&self, indices: Range<usize>) -> Result<Weight> {
        Ok(Weight {
            value: self.values.joined(indices.clone())?,
            gradient: self.gradients.joined(indices)?,
            anchor: self.anchor.shallow_clone(),
        })
    }
}

/// Says which parameters open a group of the flat buffer: all but those that follow a neighbour with the same last
/// name ("weight", "bias") and the same parent, as query, key and value do.
fn group_starts(parameters: &[PartitionedParameter]) -> Vec<bool> {
    let family = |parameter: &PartitionedParameter| {
        let mut parts: Vec<&str> = parameter.spec.name.split('.').collect();
        let joins = ["query", "key", "value", "gate", "up"];
        let own = parts.len().checked_sub(2)?;
        if !joins.contains(&parts[own]) {
            return None;
        }
        parts.remove(own);
        Some(parts.join("."))
    };
    let mut last = None;
    parameters
        .iter()
        .map(|parameter| {
            let now = family(parameter);
            let opens = now.is_none() || now != last;
            last = now;
            opens
        })
        .collect()
}

/// Draws a rank's shard of a parameter, padding zero.
///
/// # Shapes
/// - returns the local shape, in double precision
fn initial(parameter: &PartitionedParameter, tp_rank: usize, seed: u64) -> Result<Tensor> {
    let shape: Vec<i64> = parameter.local_shape().iter().map(|&n| n as i64).collect();
    let kind = (Kind::Double, Device::Cpu);
    let std = match parameter.spec.init {
        Init::Zeros => return Ok(Tensor::f_zeros(&shape[..], kind)?),
        Init::Ones => return Ok(Tensor::f_ones(&shape[..], kind)?),
        Init::Normal { std } => std,
        other => return Err(Error::Unbuilt(format!("initial values {other:?}"))),
    };
    let stream = Stream::new(seed, &parameter.spec.name, 0);
    let full = &parameter.spec.shape;
    let (dim, range) = parameter.range(tp_rank).unwrap_or((0, 0..full[0]));
    let made = Tensor::f_zeros(&shape[..], kind)?;
    let width: usize = full[1..].iter().product();
    if dim == 0 {
        // Whole rows: one run of the full tensor.
        let values = stream.normals((range.start * width) as u64..(range.end * width) as u64);
        let rows = made.f_narrow(0, 0, range.len() as i64)?;
        rows.f_view([-1])?.f_copy_(&Tensor::f_from_slice(&values)?)?;
    } else {
        let mut values = Vec::with_capacity(full[0] * range.len());
        for row in 0..full[0] {
            let start = (row * width) as u64;
            values.extend(stream.normals(start + range.start as u64..start + range.end as u64));
        }
        made.f_narrow(1, 0, range.len() as i64)?
            .f_copy_(&Tensor::f_from_slice(&values)?.f_view([full[0] as i64, range.len() as i64])?)?;
    }
    let _ = made.shallow_clone().f_mul_scalar_(std)?;
    Ok(made)
}
