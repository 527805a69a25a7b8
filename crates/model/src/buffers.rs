//! A tensor's memory as communicators take it: the bytes of a tensor in host memory, the place of one on a device.

use mp_comm::{Buffer, BufferMut, ByteBuffer, DeviceMemory, OwnedBuffer};
use mp_runtime::bytes::{self, Lent, OnDevice};
use mp_runtime::{Device, Tensor};

use crate::{Error, Result};

/// A tensor on a device: the owner that communication keeps while its memory is in use.
#[derive(Debug)]
pub struct DeviceTensor(OnDevice);

impl DeviceTensor {
    /// Takes another handle to a contiguous tensor on a device.
    ///
    /// # Errors
    /// [`Error::Runtime`] if it is not contiguous or lies in host memory.
    pub fn new(tensor: &Tensor) -> Result<Self> {
        Ok(Self(OnDevice::new(tensor)?))
    }

    /// Returns its memory, to copy parts of and to keep.
    pub(crate) fn memory(&self) -> &OnDevice {
        &self.0
    }
}

impl DeviceMemory for DeviceTensor {
    fn device(&self) -> usize {
        self.0.device()
    }
    fn address(&self) -> usize {
        self.0.address()
    }
    fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

/// A tensor's memory on loan to a communicator.
struct LentTensor(Lent);

impl ByteBuffer for LentTensor {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}

/// Returns the kind that a tensor's elements travel as.
pub(crate) fn kind(tensor: &Tensor) -> Result<mp_comm::Kind> {
    use mp_runtime::Kind;
    Ok(match tensor.kind() {
        Kind::Double => mp_comm::Kind::F64,
        Kind::Float => mp_comm::Kind::F32,
        Kind::BFloat16 => mp_comm::Kind::Bf16,
        Kind::Int64 => mp_comm::Kind::I64,
        Kind::Int => mp_comm::Kind::I32,
        Kind::Uint8 => mp_comm::Kind::U8,
        other => return Err(Error::Kind(other)),
    })
}

/// Where a tensor's memory lies, and the way to it.
#[derive(Debug)]
enum Memory<H> {
    Host(H),
    Device(DeviceTensor),
}

/// A contiguous tensor to send.
#[derive(Debug)]
pub(crate) struct Sent<'a> {
    kind: mp_comm::Kind,
    memory: Memory<&'a [u8]>,
}

impl<'a> Sent<'a> {
    /// Views a tensor.
    pub(crate) fn new(tensor: &'a Tensor) -> Result<Self> {
        let memory = match tensor.device() {
            Device::Cpu => Memory::Host(bytes::view(tensor)?),
            _ => Memory::Device(DeviceTensor::new(tensor)?),
        };
        Ok(Self { kind: kind(tensor)?, memory })
    }

    /// Returns the view that a call takes.
    pub(crate) fn buffer(&self) -> Result<Buffer<'_>> {
        Ok(match &self.memory {
            Memory::Host(bytes) => Buffer::from_bytes(self.kind, bytes)?,
            Memory::Device(tensor) => Buffer::on_device(self.kind, tensor)?,
        })
    }
}

/// A contiguous tensor to receive into.
#[derive(Debug)]
pub(crate) struct Received<'a> {
    kind: mp_comm::Kind,
    memory: Memory<&'a mut [u8]>,
}

impl<'a> Received<'a> {
    /// Views a tensor.
    pub(crate) fn new(tensor: &'a mut Tensor) -> Result<Self> {
        let kind = kind(tensor)?;
        let memory = match tensor.device() {
            Device::Cpu => Memory::Host(bytes::view_mut(tensor)?),
            _ => Memory::Device(DeviceTensor::new(tensor)?),
        };
        Ok(Self { kind, memory })
    }

    /// Returns the view that a call takes.
    pub(crate) fn buffer(&mut self) -> Result<BufferMut<'_>> {
        Ok(match &mut self.memory {
            Memory::Host(bytes) => BufferMut::from_bytes(self.kind, bytes)?,
            Memory::Device(tensor) => BufferMut::on_device(self.kind, tensor)?,
        })
    }
}

/// Lends a contiguous tensor to a non-blocking operation.
pub(crate) fn lend(tensor: &Tensor) -> Result<OwnedBuffer> {
    let kind = kind(tensor)?;
    Ok(match tensor.device() {
        Device::Cpu => OwnedBuffer::new(kind, Box::new(LentTensor(Lent::new(tensor)?)))?,
        _ => OwnedBuffer::on_device(kind, Box::new(DeviceTensor::new(tensor)?))?,
    })
}

#[cfg(test)]
mod tests {
    use mp_comm::Place;
    use mp_runtime::Kind;

    use super::*;

    #[test]
    fn a_tensor_of_the_host_is_its_bytes() {
        let mut tensor = Tensor::f_from_slice(&[1.0f32, 2.0, 3.0]).unwrap();
        let sent = Sent::new(&tensor).unwrap();
        let buffer = sent.buffer().unwrap();
        assert_eq!((buffer.place(), buffer.kind(), buffer.len()), (Place::Host, mp_comm::Kind::F32, 3));
        assert_eq!(buffer.bytes().unwrap()[4..8], 2.0f32.to_ne_bytes());
        let mut received = Received::new(&mut tensor).unwrap();
        received.buffer().unwrap().bytes_mut().unwrap()[..4].copy_from_slice(&9.0f32.to_ne_bytes());
        assert_eq!(tensor.f_double_value(&[0]).unwrap(), 9.0);
        let lent = lend(&tensor).unwrap();
        assert_eq!((lent.place(), lent.byte_len()), (Place::Host, 12));
    }

    #[test]
    fn what_does_not_travel_is_refused() {
        let tensor = Tensor::f_from_slice(&[1.0f32, 2.0]).unwrap();
        let error = DeviceTensor::new(&tensor).unwrap_err().to_string();
        assert!(error.contains("on a CUDA device"), "{error}");
        let kind = tensor.f_to_kind(Kind::Half).unwrap();
        assert!(matches!(Sent::new(&kind), Err(Error::Kind(Kind::Half))));
        let strided = Tensor::f_zeros([4, 4], (Kind::Float, Device::Cpu)).unwrap().f_transpose(0, 1).unwrap();
        assert!(matches!(Sent::new(&strided), Err(Error::Runtime(_))));
    }
}
