//! Where a parameter lies: a range of rows of a published tensor, or of columns where that is kept transposed.

use std::ops::Range;

/// One of our parameters as a part of a published tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Our name.
    pub parameter: String,
    /// Our full shape.
    pub shape: Vec<usize>,
    /// The tensor's name.
    pub tensor: String,
    /// Whether the tensor keeps the matrix transposed, as transformers' `Conv1D` does: `[d_in, d_out]`.
    pub transposed: bool,
    /// The first of our rows among those of the tensor.
    pub start: usize,
    /// How many rows of ours the whole tensor has; more where several parameters are fused in it.
    pub rows: usize,
}

/// A published tensor and the parameters that it is made of, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What lies in it; none overlap, and nothing is left out.
    pub parts: Vec<Place>,
}

impl Place {
    /// Says that a parameter is a whole tensor.
    pub(super) fn whole(parameter: &str, shape: &[usize], tensor: impl Into<String>) -> Self {
        let (parameter, shape) = (parameter.to_owned(), shape.to_vec());
        Self { parameter, rows: shape[0], shape, tensor: tensor.into(), transposed: false, start: 0 }
    }

    /// Returns the shape of the whole tensor.
    pub fn tensor_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        shape[0] = self.rows;
        if self.transposed {
            shape.reverse();
        }
        shape
    }

    /// Returns the box of the tensor in which a box of the parameter lies; its elements are transposed where
    /// [`transposed`](Self::transposed) says so.
    pub fn region(&self, of_parameter: &[Range<usize>]) -> Vec<Range<usize>> {
        let mut region = of_parameter.to_vec();
        region[0] = region[0].start + self.start..region[0].end + self.start;
        if self.transposed {
            region.reverse();
        }
        region
    }
}

impl Published {
    /// Gathers places to the tensors that they are parts of, in the order in which those are first met.
    pub fn gather(places: Vec<Place>) -> Vec<Self> {
        let mut tensors: Vec<Self> = Vec::new();
        for place in places {
            match tensors.iter_mut().rev().find(|tensor| tensor.name == place.tensor) {
                Some(tensor) => tensor.parts.push(place),
                None => {
                    let (name, shape) = (place.tensor.clone(), place.tensor_shape());
                    tensors.push(Self { name, shape, parts: vec![place] });
                }
            }
        }
        tensors
    }
}
