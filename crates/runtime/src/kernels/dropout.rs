//! Dropout whose mask is a function of the element's place in the whole model's activation, not of the layout.

use crate::kernels::words;
use crate::rng::Stream;
use crate::{autograd, bytes, Device, Kind, Result, Tensor};

/// Which elements of the full activation a tensor holds: each of its rows (all dims but the last) starts at a global
/// element index.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The global index of the first element of each row, in order.
    pub rows: &'a [u64],
    /// The stream of this layer at this step.
    pub stream: Stream,
}

/// Where the words of a mask are drawn. Either way they are the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    /// One after the other, on the host.
    OnHost,
    /// By tensor operations, on the device of the mask.
    OnDevice,
}

impl Drawn {
    /// Chooses by the device, and by nothing else.
    pub fn of(device: Device) -> Self {
        match device {
            Device::Cpu => Drawn::OnHost,
            _ => Drawn::OnDevice,
        }
    }
}

/// The words that a device draws at once, unless a single row has more: a dozen tensors of twice as many bytes each live
/// meanwhile.
const SLAB_WORDS: usize = 1 << 23;

/// Draws the mask that keeps an element with probability `1 − p`: 1 where it is kept, 0 where it is dropped. What is
/// kept is to be scaled by `1/(1 − p)`, as a scalar: in a mask of bfloat16 it would be rounded.
///
/// # Shapes
/// - returns `shape`, of the kind and on the device of `like`; `place.rows` has one entry for each row of `shape`'s last dim
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) where the rows do not fit the shape.
pub fn mask(shape: &[i64], p: f64, place: Place<'_>, like: &Tensor) -> Result<Tensor> {
    mask_by(Drawn::of(like.device()), shape, p, place, like)
}

/// [`mask`], drawn as told.
///
/// # Errors
/// As [`mask`].
pub fn mask_by(drawn: Drawn, shape: &[i64], p: f64, place: Place<'_>, like: &Tensor) -> Result<Tensor> {
    let width = *shape.last().unwrap_or(&1) as usize;
    if shape.iter().product::<i64>() as usize != place.rows.len() * width {
        return Err(crate::Error::Tensor {
            what: "drawing a dropout mask",
            shape: shape.to_vec(),
            kind: Kind::Uint8,
            wanted: "one global index for each row",
        });
    }
    // A word below the threshold drops its element: the probability is exact to 2⁻³².
    let threshold = (p * 4_294_967_296.0) as u64;
    match drawn {
        Drawn::OnHost => on_host(shape, width, threshold, place, like),
        Drawn::OnDevice => on_device(shape, width, threshold, place, like),
    }
}

fn on_host(shape: &[i64], width: usize, threshold: u64, place: Place<'_>, like: &Tensor) -> Result<Tensor> {
    let mut mask = Tensor::f_empty(shape, (Kind::Uint8, Device::Cpu))?;
    let memory = bytes::view_mut(&mut mask)?;
    let mut words = vec![0u32; width];
    for (row, &first) in memory.chunks_exact_mut(width.max(1)).zip(place.rows) {
        place.stream.words(first, &mut words);
        for (keep, &word) in row.iter_mut().zip(&words) {
            *keep = u8::from(u64::from(word) >= threshold);
        }
    }
    Ok(mask.f_to_kind(like.kind())?.f_to_device(like.device())?)
}

fn on_device(shape: &[i64], width: usize, threshold: u64, place: Place<'_>, like: &Tensor) -> Result<Tensor> {
    let (rows, like) = (place.rows.len(), (like.kind(), like.device()));
    let mask = Tensor::f_empty([rows as i64, width as i64], like)?;
    let together = (SLAB_WORDS / width.max(1)).max(1);
    for (slab, first) in place.rows.chunks(together).enumerate() {
        let kept = words::rows(&place.stream, first, width, like.1)?.f_ge(threshold as i64)?;
        mask.f_narrow(0, (slab * together) as i64, first.len() as i64)?.f_copy_(&kept)?;
    }
    Ok(mask.f_view(shape)?)
}

/// Drops elements of `x` with probability `p` and scales the others by `1/(1 − p)`; `p = 0` returns `x`.
///
/// # Shapes
/// - `x`: any; `place.rows` has one entry for each row of its last dim
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) where the rows do not fit the shape.
///
/// # Source
/// Srivastava et al. 2014.
pub fn dropout(x: &Tensor, p: f64, place: Place<'_>) -> Result<Tensor> {
    if p == 0.0 {
        return Ok(x.shallow_clone());
    }
    let mask = {
        let _off = autograd::no_grad();
        mask(&x.size(), p, place, x)?
    };
    apply(x, &mask, p)
}

/// Multiplies by a mask drawn with [`mask`], and by `1/(1 − p)`.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where the shapes do not fit.
pub fn apply(x: &Tensor, mask: &Tensor, p: f64) -> Result<Tensor> {
    // In place: no backward needs the product as it was.
    Ok(x.f_mul(mask)?.f_mul_scalar_(1.0 / (1.0 - p))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_draws_the_hosts_masks() {
        let stream = Stream::new(11, "dropout", 3);
        // Rows of one length after the other, rows of a shard, rows that begin anywhere, and none.
        let cases: [(&[i64], &[u64]); 5] = [
            (&[2, 3, 8], &[0, 8, 16, 24, 32, 40]),
            (&[4, 6], &[2, 14, 26, 38]),
            (&[1, 3, 7], &[5, 1_000_003, 1 << 40]),
            (&[5], &[9]),
            (&[0, 4], &[]),
        ];
        for (shape, rows) in cases {
            for (p, kind) in [(0.2, Kind::Float), (0.5, Kind::BFloat16), (1.0, Kind::Double), (0.0, Kind::Float)] {
                let (place, like) = (Place { rows, stream }, Tensor::f_zeros([1], (kind, Device::Cpu)).unwrap());
                let draw = |drawn| mask_by(drawn, shape, p, place, &like).unwrap();
                let (host, device) = (draw(Drawn::OnHost), draw(Drawn::OnDevice));
                assert_eq!((device.size(), device.kind()), (shape.to_vec(), kind));
                assert!(host.equal(&device), "{shape:?} {p} {kind:?}");
            }
        }
    }

    #[test]
    fn slabs_of_rows_are_one_mask() {
        // Three rows make more than one slab.
        let width = SLAB_WORDS as i64 / 2;
        let rows = [3, 1 << 33, 77];
        let place = Place { rows: &rows, stream: Stream::new(1, "slabs", 0) };
        let like = Tensor::f_zeros([1], (Kind::Uint8, Device::Cpu)).unwrap();
        let draw = |drawn| mask_by(drawn, &[3, width], 0.3, place, &like).unwrap();
        assert!(draw(Drawn::OnHost).equal(&draw(Drawn::OnDevice)));
    }

    #[test]
    fn the_device_alone_chooses() {
        assert_eq!(Drawn::of(Device::Cpu), Drawn::OnHost);
        assert_eq!(Drawn::of(Device::Cuda(3)), Drawn::OnDevice);
    }
}
