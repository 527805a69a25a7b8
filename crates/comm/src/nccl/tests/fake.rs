//! Builds the fake NCCL, binds it to the fake devices, and tells it how to misbehave.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void, CString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::fake::wires;
use crate::nccl::Library;

/// Compiles the fake into a folder of its own, with these macros defined.
pub(super) fn build(defines: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, file) =
        (concat!(env!("CARGO_MANIFEST_DIR"), "/src/nccl/tests/fake_nccl.c"), folder.path().join("libnccl.so.2"));
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread", source, "-o"];
    let status =
        Command::new(compiler).args(defines.iter().map(|define| format!("-D{define}"))).args(flags).arg(&file).status();
    assert!(status.expect("a C compiler").success(), "the fake compiles");
    (folder, file)
}

/// How the fake misbehaves in one function.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// It returns a code.
    Fails(c_int),
    /// What it queues never ends by itself.
    Hangs,
    /// What it queues hangs, and an error is reported later.
    Later,
}

/// An open fake.
pub(super) struct FakeNccl {
    pub(super) library: Arc<Library>,
    file: libloading::Library,
    _folder: tempfile::TempDir,
}

/// What the fake reaches devices by.
#[repr(C)]
struct Wires {
    queue: unsafe extern "C" fn(usize, unsafe extern "C" fn(*mut c_void), *mut c_void),
    read: unsafe extern "C" fn(usize, *mut c_void, usize) -> c_int,
    write: unsafe extern "C" fn(usize, *const c_void, usize) -> c_int,
    range: unsafe extern "C" fn(usize, *mut u64, *mut u64, *mut u64) -> c_int,
}

static WIRES: Wires = Wires { queue, read, write, range };

/// What a piece of the fake's work takes.
struct Data(*mut c_void);

// SAFETY: the fake hands it to one piece of work, which takes the fake's own lock.
unsafe impl Send for Data {}

unsafe extern "C" fn queue(stream: usize, work: unsafe extern "C" fn(*mut c_void), data: *mut c_void) {
    let data = Data(data);
    wires::queue(stream, move || {
        let Data(data) = { data };
        // SAFETY: the fake's own function with what it gave for it, once; the library is never closed.
        unsafe { work(data) }
    });
}

unsafe extern "C" fn read(address: usize, into: *mut c_void, bytes: usize) -> c_int {
    let found = wires::read(address, bytes);
    // SAFETY: the fake made room for so many bytes.
    unsafe { std::ptr::copy_nonoverlapping(found.as_ptr(), into.cast(), bytes) };
    1
}

unsafe extern "C" fn write(address: usize, from: *const c_void, bytes: usize) -> c_int {
    // SAFETY: the fake has so many bytes there.
    wires::write(address, unsafe { std::slice::from_raw_parts(from.cast(), bytes) });
    1
}

unsafe extern "C" fn range(address: usize, start: *mut u64, bytes: *mut u64, device: *mut u64) -> c_int {
    let Some(found) = wires::range(address) else { return 0 };
    // SAFETY: three places of the fake's own.
    unsafe { (*start, *bytes, *device) = (found.0 as u64, found.1 as u64, found.2 as u64) };
    1
}

impl FakeNccl {
    pub(super) fn new() -> Self {
        let (folder, path) = build(&[]);
        let library = Library::open_at(&path, &path).expect("the fake opens");
        let open = |path: &Path| {
            // SAFETY: a library without initialisers.
            unsafe { libloading::Library::new(path) }.expect("the fake opens")
        };
        // Its threads may outlive the test: it is never closed.
        std::mem::forget(open(&path));
        let fake = Self { library, file: open(&path), _folder: folder };
        // SAFETY: the function's type is that of the C file; what it is given lives for ever.
        unsafe { fake.file.get::<unsafe extern "C" fn(*const Wires)>(b"fake_bind\0").expect("bind")(&WIRES) };
        fake
    }

    pub(super) fn misbehave(&self, function: &str, fault: Fault) {
        let name = CString::new(function).expect("a name");
        let (how, code) = match fault {
            Fault::Fails(code) => (1, code),
            Fault::Hangs => (2, 0),
            Fault::Later => (3, 0),
        };
        type Misbehave = unsafe extern "C" fn(*const c_char, c_int, c_int);
        // SAFETY: the function's type is that of the C file; the name lives during the call.
        unsafe { self.file.get::<Misbehave>(b"fake_misbehave\0").expect("a function")(name.as_ptr(), how, code) };
    }

    /// How many communicators were aborted, and destroyed in order.
    pub(super) fn ended(&self) -> (c_int, c_int) {
        let count = |name: &[u8]| {
            // SAFETY: the function's type is that of the C file.
            unsafe { self.file.get::<unsafe extern "C" fn() -> c_int>(name).expect("a function")() }
        };
        (count(b"fake_aborts\0"), count(b"fake_destroys\0"))
    }
}
