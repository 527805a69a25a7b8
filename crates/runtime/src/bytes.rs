//! Tensors as plain memory: what communication and files read and write.
//!
//! A tensor is a handle; others may share its storage, and the borrow checker does not see them. While a view from here
//! lives, its user must not write to the same storage through another handle, nor read it while the view is mutable:
//! that is the one promise of this module that its callers keep, as they do with any two handles of one tensor.

use crate::{ffi, Error, Result, Tensor};

fn length(what: &'static str, tensor: &Tensor) -> Result<usize> {
    let kind = tensor.kind();
    if tensor.device() != tch::Device::Cpu || !tensor.is_contiguous() {
        let wanted = "a contiguous one in host memory";
        return Err(Error::Tensor { what, shape: tensor.size(), kind, wanted });
    }
    Ok(tensor.numel() * kind.elt_size_in_bytes())
}

/// Views a contiguous host tensor's elements as bytes.
///
/// # Errors
/// [`Error::Tensor`] if it is not contiguous or lies on a device.
pub fn view(tensor: &Tensor) -> Result<&[u8]> {
    let bytes = length("reading a tensor's memory", tensor)?;
    Ok(ffi::memory_of(tensor, bytes))
}

/// Views a contiguous host tensor's elements as bytes to overwrite.
///
/// # Errors
/// [`Error::Tensor`] if it is not contiguous or lies on a device.
pub fn view_mut(tensor: &mut Tensor) -> Result<&mut [u8]> {
    let bytes = length("writing a tensor's memory", tensor)?;
    Ok(ffi::memory_of_mut(tensor, bytes))
}

/// A contiguous host tensor lent to an operation that outlives the call that starts it.
///
/// Until the operation gives it back, other handles to the same storage must not be written, and read only where the
/// operation does no more than that: what is being sent may be computed with.
#[derive(Debug)]
pub struct Lent {
    tensor: Tensor,
    bytes: usize,
}

impl Lent {
    /// Lends a tensor's memory.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is not contiguous or lies on a device.
    pub fn new(tensor: &Tensor) -> Result<Self> {
        let bytes = length("lending a tensor's memory", tensor)?;
        Ok(Self { tensor: tensor.shallow_clone(), bytes })
    }

    /// Returns the memory to read and overwrite.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        ffi::memory_of_mut(&mut self.tensor, self.bytes)
    }
}

/// The memory of a contiguous tensor on a CUDA device: where it lies, in plain numbers, and a handle that keeps it.
///
/// While an operation writes to it, other handles to the same storage must not be used, as with [`Lent`].
#[derive(Debug)]
pub struct OnDevice {
    tensor: Tensor,
    device: usize,
    bytes: usize,
}

impl OnDevice {
    /// Takes another handle to the tensor's memory.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is not contiguous or not on a CUDA device.
    pub fn new(tensor: &Tensor) -> Result<Self> {
        let kind = tensor.kind();
        match tensor.device() {
            tch::Device::Cuda(device) if tensor.is_contiguous() => {
                // Memory has no gradient.
                let held = tensor.f_detach()?;
                Ok(Self { tensor: held, device, bytes: tensor.numel() * kind.elt_size_in_bytes() })
            }
            _ => {
                let (what, wanted) = ("handing a tensor's memory over", "a contiguous one on a CUDA device");
                Err(Error::Tensor { what, shape: tensor.size(), kind, wanted })
            }
        }
    }

    /// Returns the device's index.
    pub fn device(&self) -> usize {
        self.device
    }

    /// Returns where the memory begins, in the device's own addresses.
    pub fn address(&self) -> usize {
        self.tensor.data_ptr() as usize
    }

    /// Returns the length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the handle.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Views some of the bytes.
    ///
    /// # Errors
    /// As [`run`].
    pub fn run(&self, start: usize, count: usize) -> Result<Tensor> {
        run(&self.tensor, start, count)
    }
}

/// Views some bytes of a contiguous tensor, wherever it lies.
///
/// # Shapes
/// - returns `[count]`, bytes
///
/// # Errors
/// [`Error::Torch`] if the tensor is not contiguous, or has not as many.
pub fn run(tensor: &Tensor, start: usize, count: usize) -> Result<Tensor> {
    Ok(tensor.f_view([-1])?.f_view_dtype(tch::Kind::Uint8)?.f_narrow(0, start as i64, count as i64)?)
}

/// Makes a host tensor of `shape` from the bytes of its elements.
///
/// # Errors
/// [`Error::Tensor`] where the length does not fit.
pub fn tensor(bytes: &[u8], shape: &[i64], kind: tch::Kind) -> Result<Tensor> {
    let mut made = Tensor::f_empty(shape, (kind, tch::Device::Cpu))?;
    let memory = view_mut(&mut made)?;
    if memory.len() != bytes.len() {
        let wanted = "as many bytes as its elements take";
        return Err(Error::Tensor { what: "making a tensor from bytes", shape: shape.to_vec(), kind, wanted });
    }
    memory.copy_from_slice(bytes);
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn runs_are_views_of_any_kind_and_shape() {
        let half = |value: f32| (value.to_bits() >> 16) as u16;
        let tensor = Tensor::f_from_slice(&[1.0f32, 2.0, 3.0, 4.0]).unwrap().f_to_kind(Kind::BFloat16).unwrap();
        let square = tensor.f_view([2, 2]).unwrap();
        let expected: Vec<u8> = [2.0, 3.0].iter().flat_map(|&value| half(value).to_ne_bytes()).collect();
        assert_eq!(Vec::<u8>::try_from(run(&square, 2, 4).unwrap()).unwrap(), expected);
        let scalar = Tensor::f_scalar_tensor(1.0, (Kind::Double, tch::Device::Cpu)).unwrap();
        assert_eq!(Vec::<u8>::try_from(run(&scalar, 0, 8).unwrap()).unwrap(), 1.0f64.to_ne_bytes());
        let _ = run(&tensor, 0, 8).unwrap().f_zero_().unwrap();
        assert_eq!(tensor.f_abs().unwrap().f_max().unwrap().f_double_value(&[]).unwrap(), 0.0);
        assert!(run(&tensor, 6, 4).is_err());
        assert!(run(&square.f_transpose(0, 1).unwrap(), 0, 2).is_err());
    }

    #[test]
    fn memory_of_the_host_is_no_devices() {
        let tensor = Tensor::f_from_slice(&[1i64, 2]).unwrap();
        let error = OnDevice::new(&tensor).unwrap_err();
        assert!(matches!(error, Error::Tensor { wanted: "a contiguous one on a CUDA device", .. }), "{error}");
    }
}
