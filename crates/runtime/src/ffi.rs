//! The boundary to the C++ shim: the crate's only unsafe code. What it exports is private to the crate; `memory_of` and
//! `memory_of_mut` ask of their callers what [`crate::bytes`] passes on to its own.
//!
//! Ownership across the boundary: tensors are passed as pointers to heap-allocated `at::Tensor`, which is what a
//! [`Tensor`] holds. Callback contexts are boxes of boxes, owned by the C++ node or hook and freed by it.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_char, c_void, CStr, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{Error, Result};

/// A backward closure: gradients of the outputs in, gradients of the inputs out.
pub(crate) type Backward = Box<dyn FnMut(Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> + Send>;
/// A closure called when a leaf's gradient is complete.
pub(crate) type Ready = Box<dyn FnMut() -> Result<()> + Send>;

extern "C" {
    fn mp_free(message: *mut c_char);
    fn mp_attach(
        inputs: *const *const C_tensor,
        input_count: usize,
        outputs: *const *const C_tensor,
        output_count: usize,
        context: *mut c_void,
    ) -> *mut c_char;
    fn mp_backward(
        outputs: *const *const C_tensor,
        gradients: *const *const C_tensor,
        count: usize,
        retain: bool,
    ) -> *mut c_char;
    fn mp_on_gradient_ready(leaf: *const C_tensor, context: *mut c_void) -> *mut c_char;
    fn mp_fused_adamw(
        parameters: *const *const C_tensor,
        gradients: *const *const C_tensor,
        first: *const *const C_tensor,
        second: *const *const C_tensor,
        count: usize,
        step: f64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        decay: f64,
        epsilon: f64,
    ) -> *mut c_char;
    fn mp_generator_state(on_accelerator: bool, state: *mut *mut C_tensor) -> *mut c_char;
    fn mp_set_generator_state(on_accelerator: bool, state: *const C_tensor) -> *mut c_char;
    fn mp_has_accelerator() -> bool;
    fn mp_memory(device: i32, current: *mut i64, peak: *mut i64, reserved: *mut i64) -> *mut c_char;
    fn mp_reset_peak(device: i32) -> *mut c_char;
    fn mp_host_memory(current: *mut i64, peak: *mut i64);
    fn mp_reset_host_peak();
    fn mp_stream_from_pool(device: i32, high_priority: bool, id: *mut i64) -> *mut c_char;
    fn mp_current_stream(device: i32, id: *mut i64) -> *mut c_char;
    fn mp_set_current_stream(device: i32, id: i64) -> *mut c_char;
    fn mp_synchronize_stream(device: i32, id: i64) -> *mut c_char;
    fn mp_native_stream(device: i32, id: i64, handle: *mut *mut c_void) -> *mut c_char;
    fn mp_record_stream(tensor: *const C_tensor, device: i32, id: i64) -> *mut c_char;
    fn mp_free_memory(device: i32, free: *mut i64, idle: *mut i64) -> *mut c_char;
    fn mp_select_device(device: i32) -> *mut c_char;
    fn mp_synchronize_device(device: i32) -> *mut c_char;
    fn mp_numerics(deterministic: bool, tf32: bool) -> *mut c_char;
    fn mp_pinned(bytes: i64, made: *mut *mut C_tensor) -> *mut c_char;
    fn mp_copy(to: *const C_tensor, from: *const C_tensor, device: i32, id: i64) -> *mut c_char;
    fn mp_flash_forward(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        causal: bool,
        y: *mut *mut C_tensor,
        log_sum: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn mp_flash_backward(
        dy: *const C_tensor,
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        y: *const C_tensor,
        log_sum: *const C_tensor,
        causal: bool,
        dq: *mut *mut C_tensor,
        dk: *mut *mut C_tensor,
        dv: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn mp_event_create(timed: bool, event: *mut *mut c_void) -> *mut c_char;
    fn mp_event_query(event: *mut c_void, done: *mut bool) -> *mut c_char;
    fn mp_event_elapsed(from: *mut c_void, to: *mut c_void, milliseconds: *mut f64) -> *mut c_char;
    fn mp_event_record(event: *mut c_void, device: i32, id: i64) -> *mut c_char;
    fn mp_event_block(event: *mut c_void, device: i32, id: i64) -> *mut c_char;
    fn mp_event_synchronize(event: *mut c_void) -> *mut c_char;
    fn mp_event_free(event: *mut c_void);
    fn mp_keep_freed_memory();
}

/// Turns the shim's answer into a result.
fn check(message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null answer is a NUL-terminated string from malloc that is ours until `mp_free`.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        mp_free(message);
        text
    };
    match text.strip_prefix(CALLBACK) {
        Some(words) => Err(FULL.take().unwrap_or_else(|| Error::Callback(words.to_string()))),
        None => Err(Error::of_torch(&text)),
    }
}

/// Marks messages that come from our own callbacks on their way through the C++ engine.
const CALLBACK: &str = "mp-callback: ";

fn pointers<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<*const C_tensor> {
    tensors.into_iter().map(Tensor::as_ptr).collect()
}

thread_local! {
    /// The memory that a callback of this thread did not get: only words go through the C++ engine, and whoever runs the backward
    /// may know what to do about it.
    static FULL: Cell<Option<Error>> = const { Cell::new(None) };
}

/// Runs a callback's body; errors and panics become a message from malloc.
fn callback(body: impl FnOnce() -> Result<()>) -> *mut c_char {
    let ended = catch_unwind(AssertUnwindSafe(body));
    FULL.set(None);
    let words = match ended {
        Ok(Ok(())) => return std::ptr::null_mut(),
        Ok(Err(Error::Callback(words))) => words,
        Ok(Err(error)) => {
            let words = error.to_string();
            if error.is_out_of_memory() {
                FULL.set(Some(error));
            }
            words
        }
        Err(panic) => {
            let words = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_string())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".to_string());
            format!("panic: {words}")
        }
    };
    let text = CString::new(format!("{CALLBACK}{words}").replace('\0', " ")).unwrap_or_default();
    extern "C" {
        fn strdup(text: *const c_char) -> *mut c_char;
    }
    // SAFETY: `text` is NUL-terminated; the copy comes from malloc, as the C++ side expects.
    unsafe { strdup(text.as_ptr()) }
}

#[no_mangle]
extern "C" fn mp_rust_backward(
    context: *mut c_void,
    gradients: *const *mut C_tensor,
    count: usize,
    results: *mut *mut C_tensor,
    inputs: usize,
) -> *mut c_char {
    callback(|| {
        // SAFETY: `context` is the box made in `attach`; the node calls under its lock, so nobody else holds it. The gradients are `count` pointers, null or to heap tensors that are handed over to us; the results are
        // `inputs` null pointers of the caller's for us to fill.
        let (backward, gradients, results) = unsafe {
            (
                &mut *context.cast::<Backward>(),
                std::slice::from_raw_parts(gradients, count)
                    .iter()
                    .map(|&pointer| (!pointer.is_null()).then(|| Tensor::from_ptr(pointer)))
                    .collect::<Vec<_>>(),
                std::slice::from_raw_parts_mut(results, inputs),
            )
        };
        let _no_gradients = tch::no_grad_guard();
        let given = backward(gradients)?;
        if given.len() != inputs {
            return Err(Error::Callback(format!("{} gradients for {inputs} inputs", given.len())));
        }
        for (slot, gradient) in results.iter_mut().zip(given) {
            if let Some(mut gradient) = gradient {
                *slot = gradient.as_mut_ptr();
                // The C++ side owns it from here.
                std::mem::forget(gradient);
            }
        }
        Ok(())
    })
}

#[no_mangle]
extern "C" fn mp_rust_ready(context: *mut c_void) -> *mut c_char {
    // SAFETY: the box made in `on_gradient_ready`, alive as long as the hook that calls; an accumulator runs once at a
    // time.
    callback(|| unsafe { (*context.cast::<Ready>())() })
}

#[no_mangle]
extern "C" fn mp_rust_drop_backward(context: *mut c_void) {
    // SAFETY: the box made in `attach`, given back exactly once. What it drops are tensors and groups; a panic there
    // must not cross into C++.
    let _ = catch_unwind(|| drop(unsafe { Box::from_raw(context.cast::<Backward>()) }));
}

#[no_mangle]
extern "C" fn mp_rust_drop_ready(context: *mut c_void) {
    // SAFETY: the box made in `on_gradient_ready`, given back exactly once.
    let _ = catch_unwind(|| drop(unsafe { Box::from_raw(context.cast::<Ready>()) }));
}

pub(crate) fn attach(inputs: &[&Tensor], outputs: &[Tensor], backward: Backward) -> Result<()> {
    let (sources, results) = (pointers(inputs.iter().copied()), pointers(outputs));
    let context = Box::into_raw(Box::new(backward)).cast();
    // SAFETY: live tensors with their counts; ownership of `context` passes in every case.
    check(unsafe { mp_attach(sources.as_ptr(), sources.len(), results.as_ptr(), results.len(), context) })
}

pub(crate) fn backward(outputs: &[&Tensor], gradients: &[Option<&Tensor>], retain: bool) -> Result<()> {
    let results = pointers(outputs.iter().copied());
    let given: Vec<_> = gradients.iter().map(|g| g.map_or(std::ptr::null(), Tensor::as_ptr)).collect();
    assert_eq!(results.len(), given.len(), "one gradient, or none, for each output");
    // SAFETY: equally long arrays of live tensors, null only among the gradients.
    check(unsafe { mp_backward(results.as_ptr(), given.as_ptr(), results.len(), retain) })
}

pub(crate) fn on_gradient_ready(leaf: &Tensor, ready: Ready) -> Result<()> {
    let context = Box::into_raw(Box::new(ready)).cast();
    // SAFETY: a live tensor; ownership of `context` passes in every case.
    check(unsafe { mp_on_gradient_ready(leaf.as_ptr(), context) })
}

/// What one fused AdamW call updates, and how; see [`crate::update`].
pub(crate) struct FusedAdamW<'a> {
    pub parameters: &'a [Tensor],
    pub gradients: &'a [Tensor],
    pub first: &'a [Tensor],
    pub second: &'a [Tensor],
    pub step: u64,
    pub lr: f64,
    pub betas: (f64, f64),
    pub decay: f64,
    pub epsilon: f64,
}

pub(crate) fn fused_adamw(call: &FusedAdamW<'_>) -> Result<()> {
    let count = call.parameters.len();
    assert!([call.gradients, call.first, call.second].iter().all(|list| list.len() == count));
    // SAFETY: four arrays of `count` live tensors.
    check(unsafe {
        mp_fused_adamw(
            pointers(call.parameters).as_ptr(),
            pointers(call.gradients).as_ptr(),
            pointers(call.first).as_ptr(),
            pointers(call.second).as_ptr(),
            count,
            call.step as f64,
            call.lr,
            call.betas.0,
            call.betas.1,
            call.decay,
            call.epsilon,
        )
    })
}

pub(crate) fn generator_state(on_accelerator: bool) -> Result<Tensor> {
    let mut state = std::ptr::null_mut();
    // SAFETY: on success the shim leaves a heap tensor that is ours.
    unsafe {
        check(mp_generator_state(on_accelerator, &mut state))?;
        Ok(Tensor::from_ptr(state))
    }
}

pub(crate) fn set_generator_state(on_accelerator: bool, state: &Tensor) -> Result<()> {
    // SAFETY: a live tensor.
    check(unsafe { mp_set_generator_state(on_accelerator, state.as_ptr()) })
}

pub(crate) fn has_accelerator() -> bool {
    // SAFETY: no arguments.
    unsafe { mp_has_accelerator() }
}

/// Bytes allocated now, at most since the last reset, and at most reserved from the device.
pub(crate) fn memory(device: i32) -> Result<(i64, i64, i64)> {
    let (mut current, mut peak, mut reserved) = (0, 0, 0);
    // SAFETY: three integers of ours to write to.
    check(unsafe { mp_memory(device, &mut current, &mut peak, &mut reserved) })?;
    Ok((current, peak, reserved))
}

pub(crate) fn reset_peak(device: i32) -> Result<()> {
    // SAFETY: an integer.
    check(unsafe { mp_reset_peak(device) })
}

/// Bytes that tensors on the host hold now, and at most since the last reset.
pub(crate) fn host_memory() -> (i64, i64) {
    let (mut current, mut peak) = (0, 0);
    // SAFETY: two integers of ours to write to.
    unsafe { mp_host_memory(&mut current, &mut peak) };
    (current, peak)
}

pub(crate) fn reset_host_peak() {
    // SAFETY: no arguments; atomics are read and written.
    unsafe { mp_reset_host_peak() }
}

pub(crate) fn stream_from_pool(device: i32, high_priority: bool) -> Result<i64> {
    let mut id = 0;
    // SAFETY: an integer of ours to write to.
    check(unsafe { mp_stream_from_pool(device, high_priority, &mut id) })?;
    Ok(id)
}

pub(crate) fn current_stream(device: i32) -> Result<i64> {
    let mut id = 0;
    // SAFETY: an integer of ours to write to.
    check(unsafe { mp_current_stream(device, &mut id) })?;
    Ok(id)
}

pub(crate) fn set_current_stream(device: i32, id: i64) -> Result<()> {
    // SAFETY: `id` came from the shim for this device.
    check(unsafe { mp_set_current_stream(device, id) })
}

pub(crate) fn synchronize_stream(device: i32, id: i64) -> Result<()> {
    // SAFETY: `id` came from the shim for this device.
    check(unsafe { mp_synchronize_stream(device, id) })
}

/// The device library's own handle of a stream, as a number.
pub(crate) fn native_stream(device: i32, id: i64) -> Result<usize> {
    let mut handle = std::ptr::null_mut();
    // SAFETY: `id` came from the shim for this device; a pointer of ours to write to.
    check(unsafe { mp_native_stream(device, id, &mut handle) })?;
    Ok(handle as usize)
}

pub(crate) fn record_stream(tensor: &Tensor, device: i32, id: i64) -> Result<()> {
    // SAFETY: a live tensor; `id` came from the shim for this device.
    check(unsafe { mp_record_stream(tensor.as_ptr(), device, id) })
}

/// Bytes that the device has free, and that the allocator holds beside tensors.
pub(crate) fn free_memory(device: i32) -> Result<(i64, i64)> {
    let (mut free, mut idle) = (0, 0);
    // SAFETY: two integers of ours to write to.
    check(unsafe { mp_free_memory(device, &mut free, &mut idle) })?;
    Ok((free, idle))
}

pub(crate) fn select_device(device: i32) -> Result<()> {
    // SAFETY: an integer.
    check(unsafe { mp_select_device(device) })
}

pub(crate) fn synchronize_device(device: i32) -> Result<()> {
    // SAFETY: an integer.
    check(unsafe { mp_synchronize_device(device) })
}

pub(crate) fn numerics(deterministic: bool, tf32: bool) -> Result<()> {
    // SAFETY: plain flags. One of them adds a variable to the environment, before devices are used by any thread.
    check(unsafe { mp_numerics(deterministic, tf32) })
}

/// Page-locked bytes of the host.
pub(crate) fn pinned(bytes: usize) -> Result<Tensor> {
    let mut made = std::ptr::null_mut();
    // SAFETY: on success the shim leaves a heap tensor that is ours.
    unsafe {
        check(mp_pinned(bytes as i64, &mut made))?;
        Ok(Tensor::from_ptr(made))
    }
}

/// Queues a copy.
pub(crate) fn copy(to: &Tensor, from: &Tensor, device: i32, stream: i64) -> Result<()> {
    // SAFETY: live tensors; the stream's id came from the shim for this device. The library keeps what the queued copy
    // needs of page-locked memory; of the device's, whoever queues it does.
    check(unsafe { mp_copy(to.as_ptr(), from.as_ptr(), device, stream) })
}

/// Attends by the flash kernel of a device: the result and the logarithm of the denominator.
pub(crate) fn flash_forward([q, k, v]: [&Tensor; 3], causal: bool) -> Result<(Tensor, Tensor)> {
    let (mut y, mut log_sum) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: live tensors; on success the shim leaves two heap tensors that are ours.
    unsafe {
        check(mp_flash_forward(q.as_ptr(), k.as_ptr(), v.as_ptr(), causal, &mut y, &mut log_sum))?;
        Ok((Tensor::from_ptr(y), Tensor::from_ptr(log_sum)))
    }
}

/// The gradients of queries, keys and values.
pub(crate) fn flash_backward(
    dy: &Tensor,
    [q, k, v]: [&Tensor; 3],
    y: &Tensor,
    log_sum: &Tensor,
    causal: bool,
) -> Result<[Tensor; 3]> {
    let [mut dq, mut dk, mut dv] = [std::ptr::null_mut(); 3];
    let given = [dy, q, k, v, y, log_sum].map(|tensor| tensor.as_ptr());
    let [dy, q, k, v, y, log_sum] = given;
    // SAFETY: live tensors; on success the shim leaves three heap tensors that are ours.
    unsafe {
        check(mp_flash_backward(dy, q, k, v, y, log_sum, causal, &mut dq, &mut dk, &mut dv))?;
        Ok([dq, dk, dv].map(|gradient| Tensor::from_ptr(gradient)))
    }
}

/// A `c10::Event`.
#[derive(Debug)]
pub(crate) struct RawEvent(*mut c_void);

// SAFETY: an event is a handle that libtorch allows to be recorded and waited for from any thread; this type has one
// owner and its methods that change it take `&mut self`.
unsafe impl Send for RawEvent {}

impl RawEvent {
    pub(crate) fn new(timed: bool) -> Result<Self> {
        let mut event = std::ptr::null_mut();
        // SAFETY: a pointer of ours to write to.
        check(unsafe { mp_event_create(timed, &mut event) })?;
        Ok(Self(event))
    }

    pub(crate) fn record(&mut self, device: i32, stream: i64) -> Result<()> {
        // SAFETY: a live event; the stream's id came from the shim.
        check(unsafe { mp_event_record(self.0, device, stream) })
    }

    pub(crate) fn block(&mut self, device: i32, stream: i64) -> Result<()> {
        // SAFETY: a live event; the stream's id came from the shim.
        check(unsafe { mp_event_block(self.0, device, stream) })
    }

    pub(crate) fn query(&mut self) -> Result<bool> {
        let mut done = false;
        // SAFETY: a live event; a flag of ours to write to.
        check(unsafe { mp_event_query(self.0, &mut done) })?;
        Ok(done)
    }

    /// Milliseconds from this mark to a later one.
    pub(crate) fn elapsed(&mut self, later: &mut Self) -> Result<f64> {
        let mut milliseconds = 0.0;
        // SAFETY: two live events; a number of ours to write to.
        check(unsafe { mp_event_elapsed(self.0, later.0, &mut milliseconds) })?;
        Ok(milliseconds)
    }

    pub(crate) fn synchronize(&mut self) -> Result<()> {
        // SAFETY: a live event.
        check(unsafe { mp_event_synchronize(self.0) })
    }
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        // SAFETY: made by `mp_event_create`, freed once.
        unsafe { mp_event_free(self.0) }
    }
}

pub(crate) fn keep_freed_memory() {
    // SAFETY: no arguments; tells malloc when to give memory back.
    unsafe { mp_keep_freed_memory() }
}

/// Opens a shared library for the whole process, for good, without using its symbols.
pub(crate) fn open_library(name: &str) -> Result<()> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: runs the library's initialisers; only libtorch's own libraries are opened, which expect it.
    match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            // Its registrations live in libtorch's tables from now on.
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => {
            let reason = error.to_string();
            // The loader names it, too.
            let reason = reason.strip_prefix(&format!("{name}: ")).unwrap_or(&reason).to_owned();
            Err(Error::Library { library: name.to_string(), reason })
        }
    }
}

/// The CUDA driver's own number of a device, which is its in every process.
pub(crate) fn identity(device: i32) -> Result<[u8; 16]> {
    use libloading::os::unix::{Library, Symbol, RTLD_LOCAL, RTLD_NOW};
    type Prepare = unsafe extern "C" fn(u32) -> i32;
    type Find = unsafe extern "C" fn(*mut i32, i32) -> i32;
    type Number = unsafe extern "C" fn(*mut u8, i32) -> i32;
    const DRIVER: &str = "libcuda.so.1";
    let refused = |reason: String| Error::Library { library: DRIVER.to_string(), reason };
    let loader = |error: libloading::Error| refused(error.to_string());
    let answered = |function: &str, code: i32| match code {
        0 => Ok(()),
        code => Err(refused(format!("{function} answers {code} for device {device}"))),
    };
    let (mut handle, mut number) = (0, [0u8; 16]);
    // SAFETY: the driver's library, which libtorch has open; the types are those of `cuda.h`, and the number is 16 bytes
    // long. The functions are used while the library is open.
    unsafe {
        let driver = Library::open(Some(DRIVER), RTLD_NOW | RTLD_LOCAL).map_err(loader)?;
        let prepare: Symbol<Prepare> = driver.get(b"cuInit\0").map_err(loader)?;
        let find: Symbol<Find> = driver.get(b"cuDeviceGet\0").map_err(loader)?;
        // The first of its name does not tell the parts of a divided device apart.
        let ask: Symbol<Number> =
            driver.get(b"cuDeviceGetUuid_v2\0").or_else(|_| driver.get(b"cuDeviceGetUuid\0")).map_err(loader)?;
        answered("cuInit", prepare(0))?;
        answered("cuDeviceGet", find(&mut handle, device))?;
        answered("cuDeviceGetUuid", ask(number.as_mut_ptr(), handle))?;
    }
    Ok(number)
}

/// The memory of a contiguous CPU tensor.
pub(crate) fn memory_of(tensor: &Tensor, bytes: usize) -> &[u8] {
    // SAFETY: the caller checked that the tensor is contiguous on the CPU with `bytes` bytes; it is borrowed meanwhile.
    unsafe { slice(tensor.data_ptr(), bytes) }
}

/// The memory of a contiguous CPU tensor, to overwrite.
pub(crate) fn memory_of_mut(tensor: &mut Tensor, bytes: usize) -> &mut [u8] {
    let start = tensor.data_ptr().cast::<u8>();
    if bytes == 0 {
        return &mut [];
    }
    // SAFETY: as above; the borrow is exclusive. Other handles to the same storage are what every tensor has; they
    // belong to the same thread of work, which waits for the borrow to end before it computes on.
    unsafe { std::slice::from_raw_parts_mut(start, bytes) }
}

/// # Safety
/// `start` points to `bytes` initialised bytes that outlive `'a`, or `bytes` is 0.
unsafe fn slice<'a>(start: *mut c_void, bytes: usize) -> &'a [u8] {
    if bytes == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(start.cast::<u8>(), bytes) }
}
