//! The count of what tensors on the host hold, in exact bytes. One test in a process of its own: the count is the process's.

use mp_runtime::device::{memory, reset_peak, MemoryStats};
use mp_runtime::{Device, Kind, Tensor};

const FLOATS: (Kind, Device) = (Kind::Float, Device::Cpu);

fn held() -> u64 {
    memory(Device::Cpu).unwrap().current_bytes
}

fn peak() -> u64 {
    memory(Device::Cpu).unwrap().peak_bytes
}

#[test]
fn every_byte_of_a_tensor_counts_while_it_lives() {
    let before = held();
    reset_peak(Device::Cpu).unwrap();
    assert_eq!(peak(), before);
    let odd = Tensor::f_zeros([7, 11], FLOATS).unwrap();
    let narrow = Tensor::f_zeros([3], (Kind::BFloat16, Device::Cpu)).unwrap();
    assert_eq!(held() - before, 7 * 11 * 4 + 3 * 2);
    assert_eq!(odd.data_ptr() as usize % 64, 0, "as libtorch aligns");

    // Views and other handles are no memory; a copy is.
    let (handle, view) = (odd.shallow_clone(), odd.f_narrow(0, 2, 3).unwrap());
    assert_eq!(held() - before, 314);
    drop(odd);
    assert_eq!(held() - before, 314, "two handles are left");
    drop((handle, view));
    assert_eq!(held() - before, 6);
    assert_eq!(
        memory(Device::Cpu).unwrap(),
        MemoryStats { current_bytes: before + 6, peak_bytes: before + 314, reserved_bytes: None }
    );

    // The peak is that since it was reset, with what was alive then.
    reset_peak(Device::Cpu).unwrap();
    drop(Tensor::f_zeros([5], FLOATS).unwrap());
    assert_eq!(peak() - before, 26);
    drop(narrow);
    assert_eq!(held(), before);

    memory_of_others_is_not_counted(before);
    resized_tensors_count_what_they_have(before);
    empty_tensors_are_nothing(before);
    raw_memory_of_a_library_comes_back(before);
    threads_count_together(before);
    refused_memory_leaves_no_trace(before);
}

/// What is made of a slice is a copy, and the tensor's own; the slice's memory is none of libtorch's.
fn memory_of_others_is_not_counted(before: u64) {
    let data = vec![1.0f32; 1024];
    assert_eq!(held(), before);
    let copy = Tensor::f_from_slice(&data).unwrap();
    assert_eq!(held() - before, 4096);
    // Lent to whoever communicates, it stays what it is.
    let lent = mp_runtime::bytes::Lent::new(&copy).unwrap();
    assert_eq!(held() - before, 4096);
    drop(copy);
    assert_eq!(held() - before, 4096, "who it is lent to still has it");
    drop(lent);
    assert_eq!(held(), before);
}

/// A tensor that grows is moved: for a moment there are both. One that shrinks keeps its memory.
fn resized_tensors_count_what_they_have(before: u64) {
    let mut tensor = Tensor::f_zeros([10], FLOATS).unwrap();
    reset_peak(Device::Cpu).unwrap();
    let _ = tensor.f_resize_([100]).unwrap();
    assert_eq!((held() - before, peak() - before), (400, 440));
    let _ = tensor.f_resize_([1]).unwrap();
    assert_eq!(held() - before, 400);
    drop(tensor);
    assert_eq!(held(), before);
}

fn empty_tensors_are_nothing(before: u64) {
    let empty = Tensor::f_zeros([0], FLOATS).unwrap();
    assert_eq!(held(), before);
    drop(empty);
    assert_eq!(held(), before);
}

/// oneDNN asks for memory of its own where it multiplies narrow numbers, and gives it back by its address alone.
fn raw_memory_of_a_library_comes_back(before: u64) {
    let narrow = |rows| Tensor::f_ones([rows, 256], (Kind::BFloat16, Device::Cpu)).unwrap();
    for _ in 0..4 {
        let product = narrow(64).f_linear(&narrow(128), None::<Tensor>).unwrap();
        assert_eq!(product.double_value(&[0, 0]), 256.0);
    }
    assert_eq!(held(), before);
}

/// What one thread makes another may free.
fn threads_count_together(before: u64) {
    let make = |_| std::thread::spawn(|| (0..200).map(|n| Tensor::f_zeros([n], FLOATS).unwrap()).collect::<Vec<_>>());
    let made: Vec<Vec<Tensor>> = (0..4).map(make).collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect();
    assert_eq!(held() - before, 4 * 4 * (199 * 200 / 2));
    let free = |tensors: Vec<Tensor>| std::thread::spawn(move || drop(tensors));
    made.into_iter().map(free).collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(held(), before);
}

fn refused_memory_leaves_no_trace(before: u64) {
    reset_peak(Device::Cpu).unwrap();
    let refused = Tensor::f_zeros([1 << 50], (Kind::Double, Device::Cpu)).unwrap_err();
    assert!(refused.to_string().contains("tried to allocate 9007199254740992 bytes"), "{refused}");
    assert_eq!((held(), peak()), (before, before));
}
