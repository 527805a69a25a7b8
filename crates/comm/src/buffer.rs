//! Typed views of the memory that ranks exchange.
//!
//! Blocking calls borrow ([`Buffer`], [`BufferMut`]); non-blocking calls own ([`OwnedBuffer`]), since a request that
//! is forgotten must never leave the library writing into freed memory.

pub(crate) mod lent;
mod owned;

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

fn check(kind: Kind, bytes: &[u8]) -> Result<()> {
    let address = bytes.as_ptr() as usize;
    if !bytes.is_empty() && (!address.is_multiple_of(kind.bytes()) || !bytes.len().is_multiple_of(kind.bytes())) {
        return Err(Error::Layout { kind, bytes: bytes.len(), align: 1 << address.trailing_zeros().min(12) });
    }
    Ok(())
}

/// A borrowed run of elements to read.
#[derive(Debug, Clone, Copy)]
pub struct Buffer<'a> {
    kind: Kind,
    bytes: &'a [u8],
}

impl<'a> Buffer<'a> {
    /// Views a slice of elements.
    pub fn new<T: Element>(elements: &'a [T]) -> Self {
        Self { kind: T::KIND, bytes: bytemuck::cast_slice(elements) }
    }

    /// Views bytes as elements of `kind`.
    ///
    /// # Errors
    /// [`Error::Layout`] where length or alignment do not fit the kind.
    pub fn from_bytes(kind: Kind, bytes: &'a [u8]) -> Result<Self> {
        check(kind, bytes)?;
        Ok(Self { kind, bytes })
    }

    /// Returns the element kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.bytes()
    }

    /// Says whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the memory itself.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// A borrowed run of elements to overwrite.
#[derive(Debug)]
pub struct BufferMut<'a> {
    kind: Kind,
    bytes: &'a mut [u8],
}

impl<'a> BufferMut<'a> {
    /// Views a slice of elements.
    pub fn new<T: Element>(elements: &'a mut [T]) -> Self {
        Self { kind: T::KIND, bytes: bytemuck::cast_slice_mut(elements) }
    }

    /// Views bytes as elements of `kind`.
    ///
    /// # Errors
    /// [`Error::Layout`] where length or alignment do not fit the kind.
    pub fn from_bytes(kind: Kind, bytes: &'a mut [u8]) -> Result<Self> {
        check(kind, bytes)?;
        Ok(Self { kind, bytes })
    }

    /// Returns the element kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.bytes()
    }

    /// Says whether there is nothing to receive.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reborrows to read.
    pub fn as_buffer(&self) -> Buffer<'_> {
        Buffer { kind: self.kind, bytes: self.bytes }
    }

    /// Returns the memory itself.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// Gives the memory up for as long as it was borrowed.
    pub fn into_bytes(self) -> &'a mut [u8] {
        self.bytes
    }
}
