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
