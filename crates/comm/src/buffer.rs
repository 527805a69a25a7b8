//! Typed views of the memory that ranks exchange.
//!
//! Blocking calls borrow ([`Buffer`], [`BufferMut`]); non-blocking calls own ([`OwnedBuffer`]), since a request that
//! is forgotten must never leave the library writing into freed memory.
//!
//! Memory lies on the host or on a device ([`Place`]). What lies on a device is a [`DeviceMemory`]: an owner that says
//! where it is. The host cannot read it, so that [`Buffer::bytes`] has an answer for host memory alone.

pub(crate) mod device;
mod host;
pub(crate) mod lent;
mod owned;

pub use self::device::{DeviceMemory, DeviceRun};
pub(crate) use self::host::{Host, HostMut};
pub use self::owned::{ByteBuffer, OwnedBuffer};
use crate::{Error, Result};

/// The element kinds that travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// bfloat16; sums accumulate in `f32`.
    Bf16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Byte.
    U8,
}

impl Kind {
    /// Returns the size of one element in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Kind::F64 | Kind::I64 => 8,
            Kind::F32 | Kind::I32 => 4,
            Kind::Bf16 => 2,
            Kind::U8 => 1,
        }
    }
}

/// A Rust type that is one of the [`Kind`]s.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// The kind of this type.
    const KIND: Kind;
}

macro_rules! element {
    ($($t:ty => $k:ident),*) => { $(impl Element for $t { const KIND: Kind = Kind::$k; })* };
}
element!(f64 => F64, f32 => F32, half::bf16 => Bf16, i64 => I64, i32 => I32, u8 => U8);

/// Where a buffer's memory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the memory that this process reads and writes itself.
    Host,
    /// On the device of this index, out of the host's reach.
    Device(usize),
}

/// Checks that so many bytes at an address hold whole, aligned elements.
fn check(kind: Kind, address: usize, bytes: usize) -> Result<()> {
    if bytes > 0 && (!address.is_multiple_of(kind.bytes()) || !bytes.is_multiple_of(kind.bytes())) {
        return Err(Error::Layout { kind, bytes, align: 1 << address.trailing_zeros().min(12) });
    }
    Ok(())
}

/// A borrowed run of elements to read.
#[derive(Debug, Clone, Copy)]
pub struct Buffer<'a> {
    kind: Kind,
    memory: Memory<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Memory<'a> {
    Host(&'a [u8]),
    Device(DeviceRun<'a>),
}

impl<'a> Buffer<'a> {
    /// Views a slice of elements.
    pub fn new<T: Element>(elements: &'a [T]) -> Self {
        Self { kind: T::KIND, memory: Memory::Host(bytemuck::cast_slice(elements)) }
    }

    /// Views bytes as elements of `kind`.
    ///
    /// # Errors
    /// [`Error::Layout`] where length or alignment do not fit the kind.
    pub fn from_bytes(kind: Kind, bytes: &'a [u8]) -> Result<Self> {
        check(kind, bytes.as_ptr() as usize, bytes.len())?;
        Ok(Self { kind, memory: Memory::Host(bytes) })
    }

    /// Views memory on a device as elements of `kind`.
    ///
    /// # Errors
    /// [`Error::Layout`] where length or alignment do not fit the kind.
    pub fn on_device(kind: Kind, memory: &'a dyn DeviceMemory) -> Result<Self> {
        let run = DeviceRun::new(memory);
        check(kind, run.address(), run.bytes())?;
        Ok(Self { kind, memory: Memory::Device(run) })
    }

    /// Views a run of whole elements that was checked with its buffer.
    pub(crate) fn of_run(kind: Kind, run: DeviceRun<'a>) -> Self {
        Self { kind, memory: Memory::Device(run) }
    }

    /// Returns the element kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.byte_len() / self.kind.bytes()
    }

    /// Returns the length in bytes.
    pub fn byte_len(&self) -> usize {
        match self.memory {
            Memory::Host(bytes) => bytes.len(),
            Memory::Device(run) => run.bytes(),
        }
    }

    /// Says whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.byte_len() == 0
    }

    /// Says where the memory lies.
    pub fn place(&self) -> Place {
        self.device().map_or(Place::Host, |run| Place::Device(run.device()))
    }

    /// Returns the memory itself, or `None` where the host cannot read it.
    pub fn bytes(&self) -> Option<&'a [u8]> {
        match self.memory {
            Memory::Host(bytes) => Some(bytes),
            Memory::Device(_) => None,
        }
    }

    /// Returns the run of device memory, or `None` for memory of the host.
    pub fn device(&self) -> Option<DeviceRun<'a>> {
        match self.memory {
            Memory::Host(_) => None,
            Memory::Device(run) => Some(run),
        }
    }
}

/// A borrowed run of elements to overwrite.
#[derive(Debug)]
pub struct BufferMut<'a> {
    kind: Kind,
    memory: MemoryMut<'a>,
}

#[derive(Debug)]
enum MemoryMut<'a> {
    Host(&'a mut [u8]),
    Device(DeviceRun<'a>),
}

impl<'a> BufferMut<'a> {
    /// Views a slice of elements.
    pub fn new<T: Element>(elements: &'a mut [T]) -> Self {
        Self { kind: T::KIND, memory: MemoryMut::Host(bytemuck::cast_slice_mut(elements)) }
    }

    /// Views bytes as elements of `kind`.
    ///
    /// # Errors
    /// [`Error::Layout`] where length or alignment do not fit the kind.
    pub fn from_bytes(kind: Kind, bytes: &'a mut [u8]) -> Result<Self> {
        check(kind, bytes.as_ptr() as usize, bytes.len())?;
        Ok(Self { kind, memory: MemoryMut::Host(bytes) })
    }

    /// Views memory on a device as elements of `kind`.
    ///
    /// # Errors
    /// [`Error::Layout`] where length or alignment do not fit the kind.
    pub fn on_device(kind: Kind, memory: &'a mut dyn DeviceMemory) -> Result<Self> {
        let run = DeviceRun::new(memory);
        check(kind, run.address(), run.bytes())?;
        Ok(Self { kind, memory: MemoryMut::Device(run) })
    }

    /// Views a run of whole elements that was checked with its buffer.
    pub(crate) fn of_run(kind: Kind, run: DeviceRun<'a>) -> Self {
        Self { kind, memory: MemoryMut::Device(run) }
    }

    /// Returns the element kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.as_buffer().len()
    }

    /// Returns the length in bytes.
    pub fn byte_len(&self) -> usize {
        self.as_buffer().byte_len()
    }

    /// Says whether there is nothing to receive.
    pub fn is_empty(&self) -> bool {
        self.byte_len() == 0
    }

    /// Says where the memory lies.
    pub fn place(&self) -> Place {
        self.as_buffer().place()
    }

    /// Reborrows to read.
    pub fn as_buffer(&self) -> Buffer<'_> {
        let memory = match &self.memory {
            MemoryMut::Host(bytes) => Memory::Host(bytes),
            MemoryMut::Device(run) => Memory::Device(*run),
        };
        Buffer { kind: self.kind, memory }
    }

    /// Returns the memory itself, or `None` where the host cannot write it.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.memory {
            MemoryMut::Host(bytes) => Some(bytes),
            MemoryMut::Device(_) => None,
        }
    }

    /// Gives the memory up for as long as it was borrowed, or `None` where the host cannot write it.
    pub fn into_bytes(self) -> Option<&'a mut [u8]> {
        match self.memory {
            MemoryMut::Host(bytes) => Some(bytes),
            MemoryMut::Device(_) => None,
        }
    }

    /// Returns the run of device memory, or `None` for memory of the host.
    pub fn device(&self) -> Option<DeviceRun<'a>> {
        match self.memory {
            MemoryMut::Host(_) => None,
            MemoryMut::Device(run) => Some(run),
        }
    }
}
