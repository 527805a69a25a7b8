//! Flat buffers: many tensors in one run of memory, each a view of it.
//!
//! Tensors of one *group* lie side by side without a gap, so that several matrices of the same width can be multiplied
//! as one ([`Flat::joined`]); groups start at multiples of [`ALIGNMENT`].

use std::ops::Range;

use crate::{Device, Error, Kind, Result, Tensor};

/// Elements to which a group's start is aligned: whole cache lines for kinds of one byte and more.
pub const ALIGNMENT: usize = 64;

/// Where each tensor lies in a flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    shapes: Vec<Vec<i64>>,
    ranges: Vec<Range<usize>>,
    elements: usize,
}

impl Layout {
    /// Lays tensors out in order; `starts_group[i]` says whether tensor `i` opens a group.
    ///
    /// # Panics
    /// If the two lists differ in length.
    pub fn new(shapes: Vec<Vec<i64>>, starts_group: &[bool]) -> Self {
        assert_eq!(shapes.len(), starts_group.len());
        let mut end = 0usize;
        let ranges: Vec<_> = shapes
            .iter()
            .zip(starts_group)
            .map(|(shape, &opens)| {
                let start = if opens { end.next_multiple_of(ALIGNMENT) } else { end };
                end = start + shape.iter().product::<i64>() as usize;
                start..end
            })
            .collect();
        Self { shapes, ranges, elements: end.next_multiple_of(ALIGNMENT) }
    }

    /// Returns how many elements the buffer has, gaps included.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Returns the elements of tensor `index`.
    pub fn range(&self, index: usize) -> Range<usize> {
        self.ranges[index].clone()
    }

    /// Returns the shape of tensor `index`.
    pub fn shape(&self, index: usize) -> &[i64] {
        &self.shapes[index]
    }

    /// Returns the number of tensors.
    pub fn len(&self) -> usize {
        self.shapes.len()
    }

    /// Says whether there are none.
    pub fn is_empty(&self) -> bool {
        self.shapes.is_empty()
    }
}

/// A flat buffer with its layout.
#[derive(Debug)]
pub struct Flat {
    layout: Layout,
    storage: Tensor,
}

impl Flat {
    /// Allocates zeros.
    ///
    /// # Errors
    /// [`Error::Torch`] if the device has no room.
    pub fn zeros(layout: Layout, kind: Kind, device: Device) -> Result<Self> {
        let storage = Tensor::f_zeros([layout.elements as i64], (kind, device))?;
        Ok(Self { layout, storage })
    }

    /// Returns the layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the whole buffer, one-dimensional.
    pub fn all(&self) -> &Tensor {
        &self.storage
    }

    /// Views a range of elements, one-dimensional.
    ///
    /// # Errors
    /// [`Error::Torch`] if it lies outside the buffer.
    pub fn range(&self, range: Range<usize>) -> Result<Tensor> {
        Ok(self.storage.f_narrow(0, range.start as i64, range.len() as i64)?)
    }

    /// Views tensor `index`.
    ///
    /// # Errors
    /// [`Error::Torch`] where libtorch refuses.
    pub fn view(&self, index: usize) -> Result<Tensor> {
        Ok(self.range(self.layout.range(index))?.f_view(self.layout.shape(index))?)
    }

    /// Views neighbouring tensors of one group as one, stacked along dim 0.
    ///
    /// # Errors
    /// [`Error::Tensor`] if they do not lie side by side or differ beyond dim 0.
    pub fn joined(&self, indices: Range<usize>) -> Result<Tensor> {
        let first = self.layout.shape(indices.start);
        let mut shape = first.to_vec();
        shape[0] = 0;
        let mut end = self.layout.range(indices.start).start;
        for index in indices.clone() {
            let (range, next) = (self.layout.range(index), self.layout.shape(index));
            if range.start != end || next[1..] != first[1..] {
                return Err(Error::Tensor {
                    what: "joining tensors of a flat buffer",
                    shape: next.to_vec(),
                    kind: self.storage.kind(),
                    wanted: "a neighbour of the same width",
                });
            }
            end = range.end;
            shape[0] += next[0];
        }
        Ok(self.range(self.layout.range(indices.start).start..end)?.f_view(&shape[..])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Flat {
        let layout = Layout::new(vec![vec![2, 3], vec![1, 3], vec![5]], &[true, false, true]);
        Flat::zeros(layout, Kind::Double, Device::Cpu).unwrap()
    }

    #[test]
    fn groups_are_aligned_and_their_members_touch() {
        let flat = sample();
        assert_eq!(flat.layout().range(0), 0..6);
        assert_eq!(flat.layout().range(1), 6..9);
        assert_eq!(flat.layout().range(2), 64..69);
        assert_eq!(flat.layout().elements(), 128);
    }

    #[test]
    fn views_share_the_buffer() {
        let flat = sample();
        let _ = flat.view(1).unwrap().f_fill_(2.0).unwrap();
        assert_eq!(flat.all().f_sum(None).unwrap().double_value(&[]), 6.0);
        let joined = flat.joined(0..2).unwrap();
        assert_eq!(joined.size(), [3, 3]);
        assert_eq!(joined.double_value(&[2, 1]), 2.0);
    }

    #[test]
    fn strangers_do_not_join() {
        assert!(matches!(sample().joined(1..3), Err(Error::Tensor { .. })));
    }
}
