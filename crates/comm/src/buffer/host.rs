//! Runs of elements that are known to lie in the host's memory: what a backend works with once it has checked.

use super::Kind;

/// Elements to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host<'a> {
    kind: Kind,
    bytes: &'a [u8],
}

impl<'a> Host<'a> {
    /// Takes bytes that hold whole elements of `kind`.
    pub(crate) fn new(kind: Kind, bytes: &'a [u8]) -> Self {
        Self { kind, bytes }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() / self.kind.bytes()
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// Elements to overwrite.
#[derive(Debug)]
pub(crate) struct HostMut<'a> {
    kind: Kind,
    bytes: &'a mut [u8],
}

impl<'a> HostMut<'a> {
    /// Takes bytes that hold whole elements of `kind`.
    pub(crate) fn new(kind: Kind, bytes: &'a mut [u8]) -> Self {
        Self { kind, bytes }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() / self.kind.bytes()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// Gives the memory up for as long as it was borrowed.
    pub(crate) fn into_bytes(self) -> &'a mut [u8] {
        self.bytes
    }
}
