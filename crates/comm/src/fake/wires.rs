//! What a device library in a test does to fake devices: by handle, and by address.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use super::lane::Lane;
use super::lock;
use super::memory::Block;

static LANES: Mutex<Vec<Weak<Lane>>> = Mutex::new(Vec::new());
static BLOCKS: Mutex<BTreeMap<usize, (usize, Weak<Block>)>> = Mutex::new(BTreeMap::new());

pub(super) fn add_lane(lane: &Arc<Lane>) {
    lock(&LANES).push(Arc::downgrade(lane));
}

pub(super) fn add_block(address: usize, device: usize, block: &Arc<Block>) {
    lock(&BLOCKS).insert(address, (device, Arc::downgrade(block)));
}

/// Queues work on the stream of a handle.
pub(crate) fn queue(handle: usize, work: impl FnOnce() + Send + 'static) {
    let lane = lock(&LANES).iter().filter_map(Weak::upgrade).find(|lane| Arc::as_ptr(lane) as usize == handle);
    lane.expect("a stream of a fake device").queue(work);
}

/// Finds the allocation around an address: where it begins, its length, its device.
pub(crate) fn range(address: usize) -> Option<(usize, usize, usize)> {
    let blocks = lock(&BLOCKS);
    let (start, (device, block)) = blocks.range(..=address).next_back()?;
    let bytes = block.upgrade()?.len();
    (address < start + bytes).then_some((*start, bytes, *device))
}

fn block(address: usize, bytes: usize) -> (Arc<Block>, usize) {
    let blocks = lock(&BLOCKS);
    let (start, (_, block)) = blocks.range(..=address).next_back().expect("memory of a fake device");
    let block = block.upgrade().expect("memory that is allocated");
    assert!(address + bytes <= start + block.len(), "{bytes} bytes at {address:#x}");
    (block, address - start)
}

pub(crate) fn read(address: usize, bytes: usize) -> Vec<u8> {
    let (block, start) = block(address, bytes);
    block.read(start..start + bytes)
}

pub(crate) fn write(address: usize, content: &[u8]) {
    let (block, start) = block(address, content.len());
    block.write(start, content);
}
