//! Flat buffers: many tensors in one run of memory, each a view of it.
//!
//! Where each tensor lies is decided elsewhere and the same for all buffers of a model; a buffer may hold all of these
//! elements or only some ranges of them.

use std::ops::Range;

use crate::{Device, Error, Kind, Result, Tensor};

/// Where each tensor lies in a flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    shapes: Vec<Vec<i64>>,
    ranges: Vec<Range<usize>>,
    elements: usize,
}

impl Layout {
    /// Lays tensor `i` of shape `shapes[i]` at `ranges[i]` of `elements`.
    ///
    /// # Panics
    /// If the lists differ in length, or a range does not have its tensor's length or lies outside.
    pub fn new(shapes: Vec<Vec<i64>>, ranges: Vec<Range<usize>>, elements: usize) -> Self {
        assert_eq!(shapes.len(), ranges.len());
        for (shape, range) in shapes.iter().zip(&ranges) {
            assert_eq!(shape.iter().product::<i64>(), range.len() as i64, "{shape:?} at {range:?}");
            assert!(range.end <= elements, "{range:?} of {elements}");
        }
        Self { shapes, ranges, elements }
    }

    /// Returns how many elements there are, gaps included.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Returns the elements of tensor `index`.
    pub fn range(&self, index: usize) -> Range<usize> {
        self.ranges[index].clone()
    }

    /// Returns the elements of neighbouring tensors.
    pub fn span(&self, indices: Range<usize>) -> Range<usize> {
        self.ranges[indices.start].start..self.ranges[indices.end - 1].end
    }

    /// Returns the shape of tensor `index`.
    pub fn shape(&self, index: usize) -> &[i64] {
        &self.shapes[index]
    }

    /// Returns the shape of neighbouring tensors stacked along dim 0.
    ///
    /// # Errors
    /// [`Error::NotNeighbours`] if they do not lie side by side or differ beyond dim 0.
    pub fn stacked(&self, indices: Range<usize>) -> Result<Vec<i64>> {
        let first = self.shape(indices.start);
        let mut shape = first.to_vec();
        shape[0] = 0;
        let mut end = self.ranges[indices.start].start;
        for index in indices {
            let next = self.shape(index);
            if self.ranges[index].start != end || next[1..] != first[1..] {
                return Err(Error::NotNeighbours { first: first.to_vec(), shape: next.to_vec() });
            }
            end = self.ranges[index].end;
            shape[0] += next[0];
        }
        Ok(shape)
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
    /// What it holds, in order.
    held: Vec<Range<usize>>,
    storage: Tensor,
}

impl Flat {
    /// Allocates zeros.
    ///
    /// # Errors
    /// [`Error::Torch`] if the device has no room.
    pub fn zeros(layout: Layout, kind: Kind, device: Device) -> Result<Self> {
        let all = 0..layout.elements;
        Self::zeros_of(layout, std::slice::from_ref(&all), kind, device)
    }

    /// Allocates zeros for some elements of a layout.
    ///
    /// # Errors
    /// [`Error::Torch`] if the device has no room.
    ///
    /// # Panics
    /// If the ranges are not in order and apart.
    pub fn zeros_of(layout: Layout, held: &[Range<usize>], kind: Kind, device: Device) -> Result<Self> {
        assert!(held.windows(2).all(|pair| pair[0].end <= pair[1].start), "{held:?}");
        let elements: usize = held.iter().map(Range::len).sum();
        let storage = Tensor::f_zeros([elements as i64], (kind, device))?;
        Ok(Self { layout, held: held.to_vec(), storage })
    }

    /// Returns the layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns all that is held, one-dimensional.
    pub fn all(&self) -> &Tensor {
        &self.storage
    }

    /// Returns the bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.storage.numel() * self.storage.kind().elt_size_in_bytes()
    }

    /// Views a range of elements, one-dimensional.
    ///
    /// # Errors
    /// [`Error::NotHeld`] if they are not held in one piece.
    pub fn range(&self, range: Range<usize>) -> Result<Tensor> {
        let mut offset = 0;
        for held in &self.held {
            if held.start <= range.start && range.end <= held.end {
                let start = offset + range.start - held.start;
                return Ok(self.storage.f_narrow(0, start as i64, range.len() as i64)?);
            }
            offset += held.len();
        }
        Err(Error::NotHeld { range, elements: self.layout.elements })
    }

    /// Views what is held of a range of elements: each piece with its place.
    ///
    /// # Errors
    /// [`Error::Torch`] where libtorch refuses.
    pub fn pieces(&self, range: Range<usize>) -> Result<Vec<(Range<usize>, Tensor)>> {
        let common = |held: &Range<usize>| held.start.max(range.start)..held.end.min(range.end);
        let pieces = self.held.iter().map(common).filter(|piece| !piece.is_empty());
        pieces.map(|piece| Ok((piece.clone(), self.range(piece)?))).collect()
    }

    /// Views tensor `index`.
    ///
    /// # Errors
    /// [`Error::NotHeld`] if it is not held as a whole.
    pub fn view(&self, index: usize) -> Result<Tensor> {
        Ok(self.range(self.layout.range(index))?.f_view(self.layout.shape(index))?)
    }

    /// Views neighbouring tensors as one, stacked along dim 0.
    ///
    /// # Errors
    /// [`Error::NotNeighbours`] if they do not lie side by side or differ beyond dim 0; [`Error::NotHeld`].
    pub fn joined(&self, indices: Range<usize>) -> Result<Tensor> {
        let shape = self.layout.stacked(indices.clone())?;
        Ok(self.range(self.layout.span(indices))?.f_view(&shape[..])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout::new(vec![vec![2, 3], vec![1, 3], vec![5]], vec![0..6, 6..9, 64..69], 128)
    }

    fn sample() -> Flat {
        Flat::zeros(layout(), Kind::Double, Device::Cpu).unwrap()
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
        assert!(matches!(sample().joined(1..3), Err(Error::NotNeighbours { .. })));
    }

    #[test]
    fn a_part_holds_its_ranges_and_no_more() {
        let flat = Flat::zeros_of(layout(), &[3..8, 64..70], Kind::Double, Device::Cpu).unwrap();
        assert_eq!(flat.bytes(), 11 * 8);
        let _ = flat.view(2).unwrap().f_fill_(1.0).unwrap();
        let _ = flat.range(6..8).unwrap().f_fill_(2.0).unwrap();
        assert_eq!(Vec::<f64>::try_from(flat.all()).unwrap(), [0., 0., 0., 2., 2., 1., 1., 1., 1., 1., 0.]);
        let pieces = flat.pieces(0..66).unwrap();
        assert_eq!(pieces.iter().map(|(range, _)| range.clone()).collect::<Vec<_>>(), [3..8, 64..66]);
        assert!(matches!(flat.view(1), Err(Error::NotHeld { .. })));
        assert!(matches!(flat.range(7..65), Err(Error::NotHeld { .. })));
    }
}
