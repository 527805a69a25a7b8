//! The memory of a fake device, and its page-locked memory of the host.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::lane::Lane;
use super::{lock, FakeDevice, Inner};
use crate::{ByteBuffer, DeviceMemory, Pinned};

/// What reused memory holds.
const REUSED: u8 = 0xDD;
/// What arrives of host memory that was touched under way.
const TOUCHED: u8 = 0xEE;

/// Bytes that only work on a stream reads and writes.
pub(super) struct Block(Mutex<Vec<u8>>);

impl Block {
    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }

    pub(super) fn read(&self, run: Range<usize>) -> Vec<u8> {
        lock(&self.0)[run].to_vec()
    }

    pub(super) fn write(&self, start: usize, bytes: &[u8]) {
        lock(&self.0)[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

/// One allocation. Freed memory is reused at once, by work of the compute stream.
pub(super) struct FakeMemory {
    device: Arc<Inner>,
    address: usize,
    block: Arc<Block>,
    bytes: usize,
    kept: Mutex<Vec<Arc<Lane>>>,
}

impl FakeMemory {
    pub(super) fn new(device: &Arc<Inner>, bytes: usize) -> Self {
        // No two devices of a process have an address in common, as with a unified address space.
        static NEXT: AtomicUsize = AtomicUsize::new(0x10_0000_0000);
        let room = (bytes + 1).next_multiple_of(256);
        let address = NEXT.fetch_add(room, Ordering::Relaxed);
        let block = Arc::new(Block(Mutex::new(vec![0; bytes])));
        lock(&device.memory).insert(address, Arc::clone(&block));
        #[cfg(all(test, not(feature = "shuttle")))]
        super::wires::add_block(address, device.index, &block);
        Self { device: Arc::clone(device), address, block, bytes, kept: Mutex::default() }
    }

    pub(super) fn is_of(&self, device: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.device, device)
    }

    pub(super) fn block(&self) -> Arc<Block> {
        Arc::clone(&self.block)
    }

    pub(super) fn keep(&self, lane: Arc<Lane>) {
        lock(&self.kept).push(lane);
    }
}

impl DeviceMemory for FakeMemory {
    fn device(&self) -> usize {
        self.device.index
    }
    fn address(&self) -> usize {
        self.address
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for FakeMemory {
    fn drop(&mut self) {
        lock(&self.device.memory).remove(&self.address);
        let kept: Vec<(Arc<Lane>, u64)> = lock(&self.kept).drain(..).map(|lane| (lane.clone(), lane.mark())).collect();
        let block = Arc::clone(&self.block);
        if let Ok(compute) = self.device.lane(FakeDevice::COMPUTE) {
            compute.queue(move || {
                kept.iter().for_each(|(lane, mark)| lane.wait(*mark));
                lock(&block.0).fill(REUSED);
            });
        }
    }
}

/// Host memory that copies reach. They do not touch its bytes from their own thread: what has arrived lies beside them
/// until the owner looks.
pub(super) struct FakePinned {
    /// Whole words, so that elements of any kind are aligned.
    words: Vec<u64>,
    bytes: usize,
    arrived: Arc<Mutex<Vec<Arrival>>>,
    leaving: Vec<Arc<Mutex<Leaving>>>,
}

/// What a copy to the host has brought, and where it belongs.
type Arrival = (usize, Vec<u8>);

/// What a copy from the host will bring.
struct Leaving {
    bytes: Vec<u8>,
    taken: bool,
}

impl FakePinned {
    pub(super) fn new(bytes: usize) -> Self {
        Self { words: vec![0; bytes.div_ceil(8)], bytes, arrived: Arc::default(), leaving: Vec::new() }
    }

    /// Prepares for bytes to arrive.
    pub(super) fn arrival(&self, at: usize, bytes: usize) -> impl FnOnce(Vec<u8>) + Send + use<> {
        assert!(at + bytes <= self.bytes, "{bytes} bytes at {at} of {}", self.bytes);
        let arrived = Arc::clone(&self.arrived);
        move |bytes| lock(&arrived).push((at, bytes))
    }

    /// Prepares for bytes to leave.
    pub(super) fn departure(&mut self, at: usize, bytes: usize) -> impl FnOnce() -> Vec<u8> + Send + use<> {
        self.look();
        let leaving = Arc::new(Mutex::new(Leaving { bytes: self.memory()[at..at + bytes].to_vec(), taken: false }));
        self.leaving.retain(|leaving| !lock(leaving).taken);
        self.leaving.push(Arc::clone(&leaving));
        move || {
            let mut leaving = lock(&leaving);
            leaving.taken = true;
            std::mem::take(&mut leaving.bytes)
        }
    }

    fn memory(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.bytes]
    }

    fn look(&mut self) {
        let arrived = std::mem::take(&mut *lock(&self.arrived));
        for (at, bytes) in arrived {
            self.memory()[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

impl ByteBuffer for FakePinned {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.look();
        for leaving in self.leaving.drain(..) {
            lock(&leaving).bytes.fill(TOUCHED);
        }
        self.memory()
    }
}

impl Pinned for FakePinned {}
