//! Memory that a non-blocking operation owns until it completes.
//!
//! An operation under way hands out its memory piece by piece while the library still writes earlier pieces. So the
//! owner is asked where its memory is once, when the buffer is made, and is not touched again until it is dropped:
//! whatever it would answer the next time, nothing rests on it. Memory on a device is never handed out; its owner is
//! just kept.
#![allow(unsafe_code)]

use std::ops::Range;
use std::ptr::NonNull;

use super::device::{DeviceMemory, DeviceRun};
use super::{check, Buffer, BufferMut, Element, Host, HostMut, Kind, Memory, MemoryMut, Place};
use crate::Result;

/// Memory with an owner of another crate, a tensor's for instance.
pub trait ByteBuffer: Send {
    /// Returns the memory to read and overwrite; asked once.
    fn bytes_mut(&mut self) -> &mut [u8];
}

impl<T: Element> ByteBuffer for Vec<T> {
    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(self)
    }
}

/// A run of elements handed to a non-blocking call until it completes.
pub struct OwnedBuffer {
    kind: Kind,
    owner: Owner,
    /// Where the host's memory begins; dangling for memory on a device.
    start: NonNull<u8>,
    bytes: usize,
}

/// Who frees the memory.
enum Owner {
    /// From a box; a pointer, since moving a box claims what is inside, which the library may be writing.
    Host(NonNull<dyn ByteBuffer>),
    /// Claims nothing that the library writes: that lies on the device.
    Device(Box<dyn DeviceMemory>),
}

// SAFETY: either owner is `Send`, and it and its bytes are reached through this buffer alone.
unsafe impl Send for OwnedBuffer {}

impl std::fmt::Debug for OwnedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("OwnedBuffer");
        shown.field("kind", &self.kind).field("len", &self.len()).field("place", &self.place()).finish()
    }
}

impl Drop for OwnedBuffer {
    fn drop(&mut self) {
        if let Owner::Host(owner) = self.owner {
            // SAFETY: made from a box by `hold`, which is its only other user; views borrow this buffer and are gone.
            drop(unsafe { Box::from_raw(owner.as_ptr()) });
        }
    }
}

impl<T: Element> From<Vec<T>> for OwnedBuffer {
    fn from(elements: Vec<T>) -> Self {
        Self::hold(T::KIND, Box::new(elements))
    }
}

impl OwnedBuffer {
    /// Takes memory that holds elements of `kind`.
    ///
    /// # Errors
    /// [`Error::Layout`](crate::Error::Layout) where length or alignment do not fit the kind.
    pub fn new(kind: Kind, memory: Box<dyn ByteBuffer>) -> Result<Self> {
        let held = Self::hold(kind, memory);
        check(kind, held.start.as_ptr() as usize, held.bytes)?;
        Ok(held)
    }

    /// Takes memory on a device that holds elements of `kind`.
    ///
    /// # Errors
    /// [`Error::Layout`](crate::Error::Layout) where length or alignment do not fit the kind.
    pub fn on_device(kind: Kind, memory: Box<dyn DeviceMemory>) -> Result<Self> {
        let bytes = memory.bytes();
        check(kind, memory.address(), bytes)?;
        Ok(Self { kind, owner: Owner::Device(memory), start: NonNull::dangling(), bytes })
    }

    /// Asks the owner for its memory, the one time.
    fn hold(kind: Kind, memory: Box<dyn ByteBuffer>) -> Self {
        // SAFETY: a box is never null.
        let mut owner = unsafe { NonNull::new_unchecked(Box::into_raw(memory)) };
        let mut held = Self { kind, owner: Owner::Host(owner), start: NonNull::dangling(), bytes: 0 };
        // SAFETY: the only access to the owner until its drop, so that the answer may be borrowed for as long: with a
        // leaked box the compiler would grant the same. Should it panic, `held` frees the owner.
        let memory = unsafe { owner.as_mut() }.bytes_mut();
        held.bytes = memory.len();
        held.start = NonNull::from(memory).cast();
        held
    }

    /// Returns the element kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.bytes / self.kind.bytes()
    }

    /// Says whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the length in bytes.
    pub fn byte_len(&self) -> usize {
        self.bytes
    }

    /// Says where the memory lies.
    pub fn place(&self) -> Place {
        self.device().map_or(Place::Host, |run| Place::Device(run.device()))
    }

    /// Returns the run of device memory, or `None` for memory of the host.
    pub fn device(&self) -> Option<DeviceRun<'_>> {
        match &self.owner {
            Owner::Host(_) => None,
            // As long as it was when it was checked, whatever the owner says now.
            Owner::Device(memory) => Some(DeviceRun::new(&**memory).part(0..self.bytes)),
        }
    }

    /// Borrows to read.
    pub fn as_buffer(&self) -> Buffer<'_> {
        let memory = self.device().map_or_else(|| Memory::Host(self.run(0..self.bytes)), Memory::Device);
        Buffer { kind: self.kind, memory }
    }

    /// Borrows to overwrite.
    pub fn as_buffer_mut(&mut self) -> BufferMut<'_> {
        let (kind, bytes) = (self.kind, self.bytes);
        if let Owner::Host(_) = self.owner {
            return BufferMut { kind, memory: MemoryMut::Host(self.run_mut(0..bytes)) };
        }
        let run = self.device().unwrap_or_else(|| unreachable!("memory that is not the host's"));
        BufferMut { kind, memory: MemoryMut::Device(run) }
    }

    /// Borrows to read what a backend has checked to be the host's.
    pub(crate) fn as_host(&self) -> Host<'_> {
        Host::new(self.kind, self.run(0..self.bytes))
    }

    /// Borrows to overwrite what a backend has checked to be the host's.
    pub(crate) fn as_host_mut(&mut self) -> HostMut<'_> {
        HostMut::new(self.kind, self.run_mut(0..self.bytes))
    }

    /// Borrows some bytes to read, and claims nothing about the others.
    ///
    /// # Panics
    /// If the range is not within the buffer, or the buffer on a device.
    pub(crate) fn run(&self, range: Range<usize>) -> &[u8] {
        self.within(&range);
        // SAFETY: a part of what `hold` was given, which stays valid while the owner is not touched.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(range.start), range.len()) }
    }

    /// Borrows some bytes to overwrite, and claims nothing about the others, which the library may be writing.
    ///
    /// # Panics
    /// If the range is not within the buffer, or the buffer on a device.
    pub(crate) fn run_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        self.within(&range);
        // SAFETY: as for `run`; `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) }
    }

    fn within(&self, range: &Range<usize>) {
        assert!(matches!(self.owner, Owner::Host(_)), "the host reads memory of a device");
        assert!(range.start <= range.end && range.end <= self.bytes, "bytes {range:?} of {}", self.bytes);
    }

    /// Copies the elements out.
    ///
    /// # Panics
    /// If `T` is not of this buffer's kind, or the buffer on a device.
    pub fn to_vec<T: Element>(&self) -> Vec<T> {
        assert_eq!(T::KIND, self.kind, "element type of another kind");
        bytemuck::pod_collect_to_vec(self.run(0..self.bytes))
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::Arc;

    use super::*;
    use crate::Error;

    /// Counts what is done to it.
    #[derive(Default)]
    struct Seen {
        asked: AtomicUsize,
        dropped: AtomicUsize,
    }

    /// Hands out other memory each time, and frees what it handed out before.
    struct Restless(Vec<u8>, Arc<Seen>);

    impl ByteBuffer for Restless {
        fn bytes_mut(&mut self) -> &mut [u8] {
            self.1.asked.fetch_add(1, Ordering::Relaxed);
            self.0 = vec![0; 16];
            &mut self.0
        }
    }

    impl Drop for Restless {
        fn drop(&mut self) {
            self.1.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_owner_is_asked_once() {
        let seen = Arc::new(Seen::default());
        let mut buffer = OwnedBuffer::new(Kind::U8, Box::new(Restless(Vec::new(), Arc::clone(&seen)))).expect("bytes");
        for (i, byte) in (0..16).zip(1..) {
            buffer.run_mut(i..i + 1)[0] = byte;
        }
        buffer.as_buffer_mut().bytes_mut().expect("host memory")[15] = 99;
        let expected: Vec<u8> = (1..16).chain([99]).collect();
        assert_eq!((buffer.to_vec::<u8>(), buffer.as_buffer().bytes()), (expected.clone(), Some(&expected[..])));
        assert_eq!((seen.asked.load(Ordering::Relaxed), seen.dropped.load(Ordering::Relaxed)), (1, 0));
        drop(buffer);
        assert_eq!((seen.asked.load(Ordering::Relaxed), seen.dropped.load(Ordering::Relaxed)), (1, 1));
    }

    #[test]
    fn an_owner_that_does_not_fit_is_freed() {
        struct Odd(Box<[u8; 7]>, Arc<Seen>);
        impl ByteBuffer for Odd {
            fn bytes_mut(&mut self) -> &mut [u8] {
                &mut self.0[..]
            }
        }
        impl Drop for Odd {
            fn drop(&mut self) {
                self.1.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        let seen = Arc::new(Seen::default());
        let refused = OwnedBuffer::new(Kind::F64, Box::new(Odd(Box::new([0; 7]), Arc::clone(&seen))));
        assert!(matches!(refused, Err(Error::Layout { kind: Kind::F64, bytes: 7, .. })));
        assert_eq!(seen.dropped.load(Ordering::Relaxed), 1);
    }

    /// Device memory that is nowhere.
    struct Nowhere(usize, usize, Arc<Seen>);

    impl DeviceMemory for Nowhere {
        fn device(&self) -> usize {
            3
        }
        fn address(&self) -> usize {
            self.0
        }
        fn bytes(&self) -> usize {
            self.1
        }
    }

    impl Drop for Nowhere {
        fn drop(&mut self) {
            self.2.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_host_gets_no_view_of_device_memory() {
        let seen = Arc::new(Seen::default());
        let memory = Nowhere(0x1000, 32, Arc::clone(&seen));
        let mut buffer = OwnedBuffer::on_device(Kind::F64, Box::new(memory)).expect("four elements");
        assert_eq!((buffer.len(), buffer.place()), (4, Place::Device(3)));
        assert_eq!(buffer.as_buffer().bytes(), None);
        assert_eq!(buffer.as_buffer_mut().bytes_mut(), None);
        assert_eq!(buffer.as_buffer_mut().into_bytes(), None);
        let run = buffer.device().expect("a run").part(8..24);
        assert_eq!((run.address(), run.start(), run.bytes()), (0x1008, 8, 16));
        drop(buffer);
        assert_eq!(seen.dropped.load(Ordering::Relaxed), 1);
        for (address, bytes) in [(0x1004, 32), (0x1000, 31)] {
            let odd = OwnedBuffer::on_device(Kind::F64, Box::new(Nowhere(address, bytes, Arc::clone(&seen))));
            assert!(matches!(odd, Err(Error::Layout { kind: Kind::F64, .. })));
        }
        assert_eq!(seen.dropped.load(Ordering::Relaxed), 3);
    }

    #[test]
    #[should_panic(expected = "the host reads memory of a device")]
    fn device_memory_is_not_copied_out_by_the_host() {
        let memory = Nowhere(0x1000, 32, Arc::default());
        OwnedBuffer::on_device(Kind::F64, Box::new(memory)).expect("four elements").to_vec::<f64>();
    }

    #[test]
    #[should_panic(expected = "bytes 3..9 of 8")]
    fn a_run_beyond_the_end_is_refused() {
        OwnedBuffer::from(vec![0f64]).run_mut(3..9);
    }
}
