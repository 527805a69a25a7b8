//! One parameter's shard as a layer uses it: values to multiply by, and a place to add gradients to.
//!
//! Gradients are not accumulated by libtorch but by the layers themselves, straight into the flat gradient buffer: a
//! weight is no leaf of the graph. What puts a layer into the graph is the *anchor*, a scalar leaf without a value of
//! interest that every use of a parameter has as an input.

use std::ops::Range;
use std::sync::Arc;

use mp_runtime::{autograd, Kind, TchError, Tensor};

use crate::bucket::Bucket;
use crate::deferral::Deferral;
use crate::unit::Unit;
use crate::Result;

/// One parameter's shard, or several neighbouring ones stacked along dim 0.
///
/// Each handle adds one gradient for each pass through the layer that holds it; a bucket of gradients is complete when
/// all its handles have.
#[derive(Debug)]
pub struct Weight {
    pub(crate) shape: Vec<i64>,
    pub(crate) value: Value,
    /// The elements of every flat buffer.
    pub(crate) range: Range<usize>,
    pub(crate) gradient_kind: Kind,
    /// Where gradients are summed; none for a frozen parameter.
    pub(crate) bucket: Option<Arc<Bucket>>,
    pub(crate) anchor: Tensor,
    pub(crate) deferral: Arc<Deferral>,
}

/// Where values are.
#[derive(Debug)]
pub(crate) enum Value {
    /// In this rank's memory.
    Resident(Tensor),
    /// Shared out among the data ranks, gathered when asked for.
    Shared(Arc<Unit>),
}

impl Value {
    fn share(&self) -> Self {
        match self {
            Value::Resident(tensor) => Value::Resident(tensor.shallow_clone()),
            Value::Shared(unit) => Value::Shared(Arc::clone(unit)),
        }
    }
}

impl Weight {
    /// Returns the shape.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Says whether training leaves the values as they are: gradients are then not to be computed, and nowhere added.
    pub fn is_frozen(&self) -> bool {
        self.bucket.is_none()
    }

    /// Returns the values, outside the graph.
    ///
    /// # Communication
    /// An all-gather over the data ranks, where they share the values out and these have not been gathered.
    ///
    /// # Errors
    /// [`Error::Comm`](crate::Error::Comm) if it fails.
    pub fn value(&self) -> Result<Tensor> {
        match &self.value {
            Value::Resident(tensor) => Ok(tensor.shallow_clone()),
            Value::Shared(unit) => Ok(unit.view(self.range.clone())?.f_view(&self.shape[..])?),
        }
    }

    /// Returns the anchor that puts a function of this weight into the graph.
    pub fn anchor(&self) -> &Tensor {
        &self.anchor
    }

    /// Returns the kind that gradients are summed in.
    pub fn gradient_kind(&self) -> Kind {
        self.gradient_kind
    }

    /// Makes another handle to the same memory, for the backward of the layer that holds this one.
    pub fn share(&self) -> Self {
        Self {
            shape: self.shape.clone(),
            value: self.value.share(),
            range: self.range.clone(),
            gradient_kind: self.gradient_kind,
            bucket: self.bucket.clone(),
            anchor: self.anchor.shallow_clone(),
            deferral: Arc::clone(&self.deferral),
        }
    }

    /// Returns the values as a tensor of the graph, whose gradient is added to the flat buffer; of a frozen parameter as a
    /// constant.
    ///
    /// # Errors
    /// As [`value`](Self::value).
    pub fn tracked(&self) -> Result<Tensor> {
        let value = self.value()?;
        let used = match &self.value {
            Value::Resident(_) => value.f_detach()?,
            // The graph must not keep a whole gathered unit alive.
            Value::Shared(_) => value.f_detach_copy()?,
        };
        if self.is_frozen() {
            return Ok(used);
        }
        let owner = self.share();
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
    /// [`Error::Runtime`](crate::Error::Runtime) where the shapes differ.
    pub fn accumulate(&self, gradient: &Tensor) -> Result<()> {
        self.add(|sum| sum.f_add_(gradient))
    }

    /// Adds the product of a linear layer's output gradient and input, `dYᵀ · X`, to the gradient: now, or later where
    /// weight gradients are deferred.
    ///
    /// # Shapes
    /// - `dy`: `[n, d_out]`
    /// - `x`: `[n, d_in]`
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where the shapes do not fit.
    pub fn accumulate_product(&self, dy: &Tensor, x: &Tensor) -> Result<()> {
        if self.is_frozen() {
            return Ok(());
        }
        let Some((dy, x)) = self.deferral.offer(self, dy, x) else { return Ok(()) };
        self.product(&dy, &x)
    }

    pub(crate) fn product(&self, dy: &Tensor, x: &Tensor) -> Result<()> {
        let dy_t = dy.f_tr()?;
        if dy.kind() == self.gradient_kind {
            return self.add(|sum| sum.f_addmm_(&dy_t, x));
        }
        self.accumulate(&dy_t.f_mm(x)?)
    }

    /// Adds rows to rows `indices` of the gradient.
    ///
    /// # Shapes
    /// - `indices`: `[n]`
    /// - `rows`: `[n, d]`
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where the shapes do not fit.
    pub fn accumulate_rows(&self, indices: &Tensor, rows: &Tensor) -> Result<()> {
        let rows = rows.f_to_kind(self.gradient_kind)?;
        self.add(|sum| sum.f_index_add_(0, indices, &rows))
    }

    /// Lets `add` work on the gradient, and counts that this handle has contributed.
    fn add(&self, add: impl FnOnce(&mut Tensor) -> std::result::Result<Tensor, TchError>) -> Result<()> {
        let Some(bucket) = &self.bucket else { return Ok(()) };
        let mut sum = bucket.sum(self.range.clone())?.f_view(&self.shape[..])?;
        let _ = add(&mut sum)?;
        bucket.contributed(&self.range)
    }
}
