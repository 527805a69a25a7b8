//! The fake device is late, in order, and unforgiving.

use super::*;

/// Fills memory of a device, on its compute stream, and forgets the host memory it used.
fn fill(device: &FakeDevice, memory: &dyn DeviceMemory, byte: u8) {
    let mut host = device.pinned(memory.bytes()).expect("host memory");
    host.bytes_mut().fill(byte);
    device.copy_up(&mut *host, 0, DeviceRun::new(memory), FakeDevice::COMPUTE).expect("a copy");
}

#[test]
fn nothing_happens_before_somebody_waits() {
    let device = FakeDevice::new(0, Pace::Late);
    let memory = device.allocate(4);
    fill(&device, &*memory, 7);
    let mut host = device.pinned(4).expect("host memory");
    let side = device.side().expect("a stream");
    // Not ordered after the compute stream: it finds what was there before.
    device.copy_down(DeviceRun::new(&*memory), &mut *host, 0, side).expect("a copy");
    assert_eq!(host.bytes_mut(), [0; 4]);
    let mut event = device.event().expect("an event");
    event.record(side).expect("a mark");
    event.synchronize().expect("the copy");
    assert_eq!(host.bytes_mut(), [0; 4]);

    crate::accelerator::order(&device, FakeDevice::COMPUTE, side).expect("an order");
    device.copy_down(DeviceRun::new(&*memory), &mut *host, 0, side).expect("a copy");
    event.record(side).expect("a mark");
    event.synchronize().expect("the copy");
    assert_eq!(host.bytes_mut(), [7; 4]);
}

#[test]
fn host_memory_that_is_touched_under_way_arrives_spoiled() {
    let device = FakeDevice::new(0, Pace::Late);
    let memory = device.allocate(2);
    let mut host = device.pinned(2).expect("host memory");
    host.bytes_mut().fill(5);
    device.copy_up(&mut *host, 0, DeviceRun::new(&*memory), FakeDevice::COMPUTE).expect("a copy");
    host.bytes_mut().fill(6);
    device.copy_down(DeviceRun::new(&*memory), &mut *host, 0, FakeDevice::COMPUTE).expect("a copy");
    let mut event = device.event().expect("an event");
    event.record(FakeDevice::COMPUTE).expect("a mark");
    event.synchronize().expect("the copies");
    assert_eq!(host.bytes_mut(), [0xEE; 2]);
}

#[test]
fn freed_memory_is_reused_unless_it_is_kept() {
    let device = FakeDevice::new(0, Pace::Late);
    let read_after_free = |kept: bool| {
        let memory = device.allocate(2);
        fill(&device, &*memory, 3);
        let side = device.side().expect("a stream");
        crate::accelerator::order(&device, FakeDevice::COMPUTE, side).expect("an order");
        let mut host = device.pinned(2).expect("host memory");
        device.copy_down(DeviceRun::new(&*memory), &mut *host, 0, side).expect("a copy");
        if kept {
            device.keep(&*memory, side).expect("kept");
        }
        drop(memory);
        // What is computed next happens before the copy, which nobody has waited for.
        for stream in [FakeDevice::COMPUTE, side] {
            let mut event = device.event().expect("an event");
            event.record(stream).expect("a mark");
            event.synchronize().expect("all that is queued");
        }
        host.bytes_mut().to_vec()
    };
    assert_eq!((read_after_free(true), read_after_free(false)), (vec![3; 2], vec![0xDD; 2]));
    assert_eq!(device.allocated_bytes(), 0);
}

#[test]
fn what_is_told_is_recorded() {
    let device = FakeDevice::new(0, Pace::Prompt);
    let (memory, side) = (device.allocate(8), device.side().expect("a stream"));
    let mut event = device.event().expect("an event");
    event.record(side).expect("a mark");
    event.block(FakeDevice::COMPUTE).expect("an order");
    device.copy_across(DeviceRun::new(&*memory).part(0..4), DeviceRun::new(&*memory).part(4..8), side).expect("a copy");
    event.synchronize().expect("an event");
    let name = EventName(0);
    let expected = [
        Step::Record(side, name),
        Step::Block(FakeDevice::COMPUTE, name),
        Step::Across(side, 4),
        Step::Synchronize(name),
    ];
    assert_eq!(device.take_log(), expected);
    assert_eq!(device.take_log(), []);
}
