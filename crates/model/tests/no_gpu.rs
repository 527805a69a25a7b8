//! Buffers on a device over libtorch's own streams, events and page-locked memory, on a CUDA runtime without a GPU whose copies are
//! late: see `tests/no_gpu/runtime.c` of mp-runtime. The test passes over machines without PyTorch's CUDA library, as those of the
//! program do.

#[path = "../../runtime/tests/no_gpu/harness.rs"]
mod harness;

use std::process::Command;
use std::sync::{Arc, Mutex};

use mp_comm::conformance::{self, Bench};
use mp_comm::staged::Staged;
use mp_comm::{threads, Accelerator, DeviceMemory, DeviceRun, Error};
use mp_model::accelerator::Cuda;
use mp_model::buffers::DeviceTensor;
use mp_runtime::device::Numerics;
use mp_runtime::{autograd, device, Device, Kind, Tensor};

use self::harness::Harness;

/// Set where this is the process with the runtime.
const WITHIN: &str = "MP_WITHIN_NO_GPU";
const RANKS: usize = 2;

/// Runs a test's body in a process with the runtime, where there is a library for it; returns what that process said.
fn within(test: &str, body: impl FnOnce()) -> Option<String> {
    if std::env::var_os(WITHIN).is_some() {
        body();
        return None;
    }
    let harness = Harness::new()?;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(WITHIN, "1");
    command.env("FAKE_STREAMS", "1");
    harness.surround(&mut command, RANKS);
    let ended = command.output().unwrap();
    let said = format!("{}\n{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    Some(said)
}

#[test]
fn staged_conforms_over_libtorchs_streams() {
    // On ranks that are threads, each with a device.
    within("staged_conforms_over_libtorchs_streams", || {
        device::prepare(1);
        let reports = threads::run(RANKS, |comm| {
            let device = Arc::new(Cuda::new(comm.rank().0));
            device.select()?;
            let (index, staged) = (device.index(), Arc::new(Staged::new(comm, device.clone())?));
            conformance::run_on(&Bench::on_device(staged, device, Arc::new(move |bytes| allocate(index, bytes))))
        });
        reports.iter().for_each(|report| assert!(report.failures.is_empty() && report.passed > 20, "{report}"));
    });
}

#[test]
fn what_communicates_has_a_stream_of_high_priority() {
    let said = within("what_communicates_has_a_stream_of_high_priority", || {
        device::prepare(1);
        let device = Cuda::new(0);
        println!("side is stream {}", device.handle(device.side().unwrap()).unwrap());
    });
    let Some(said) = said else { return };
    let (_, side) = said.split_once("side is stream ").expect("the line of the test");
    let side = side.lines().next().unwrap();
    let lowest = |line: &str| line.starts_with("stream ") && line.ends_with(" has priority 0");
    assert!(said.contains(&format!("stream {side} has priority -")) && said.lines().any(lowest), "{said}");
}

#[test]
fn what_is_to_be_deterministic_is_refused_where_libtorch_has_no_such_kernel() {
    within("what_is_to_be_deterministic_is_refused_where_libtorch_has_no_such_kernel", || {
        device::prepare(1);
        // Which of two elements for one place stays is not said.
        let put = || {
            let places = Tensor::from_slice(&[1i64, 1]).to_device(Device::Cuda(0));
            let elements = Tensor::f_zeros([2], (Kind::Float, Device::Cuda(0)))?;
            Tensor::f_zeros([3], (Kind::Float, Device::Cuda(0)))?.f_put_(&places, &elements, false)
        };
        for deterministic in [false, true] {
            device::set_numerics(Numerics { deterministic, tf32: false }).unwrap();
            let refused = put().err().map(|error| error.to_string());
            assert_eq!(refused.is_some(), deterministic, "{refused:?}");
            assert!(refused.is_none_or(|words| words.contains("deterministic")));
        }
        assert_eq!(std::env::var("CUBLAS_WORKSPACE_CONFIG").as_deref(), Ok(":4096:8"));
    });
}

#[test]
fn kept_memory_is_not_reused_before_its_stream_is_through() {
    within("kept_memory_is_not_reused_before_its_stream_is_through", || {
        device::prepare(1);
        let device = Cuda::new(0);
        let (compute, side) = (device.current().unwrap(), device.side().unwrap());
        let settle = |stream| {
            let mut end = device.event().unwrap();
            end.record(stream).unwrap();
            end.synchronize().unwrap();
        };
        let (memory, mut host) = (allocate(0, 4096).unwrap(), device.pinned(4096).unwrap());
        let address = memory.address();
        host.bytes_mut().fill(7);
        device.copy_up(&mut *host, 0, DeviceRun::new(&*memory), compute).unwrap();
        settle(compute);
        host.bytes_mut().fill(0);
        device.copy_down(DeviceRun::new(&*memory), &mut *host, 0, side).unwrap();
        device.keep(&*memory, side).unwrap();
        drop(memory);
        // What is computed next, in memory of the same size.
        let next = Tensor::f_zeros([4096], (Kind::Uint8, Device::Cuda(0))).unwrap();
        settle(compute);
        settle(side);
        assert!(host.bytes_mut().iter().all(|byte| *byte == 7) && next.data_ptr() as usize != address);
        // Then it is free again.
        let again = allocate(0, 4096).unwrap();
        assert_eq!(again.address(), address);
    });
}

#[test]
fn a_backward_on_a_device_stays_on_the_thread_that_asks() {
    within("a_backward_on_a_device_stays_on_the_thread_that_asks", || {
        device::prepare(1);
        let leaf = Tensor::f_zeros([4], (Kind::Float, Device::Cuda(0))).unwrap().set_requires_grad(true);
        let y = {
            let _off = autograd::no_grad();
            leaf.f_mul_scalar(2.0).unwrap()
        };
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (in_function, in_hook) = (Arc::clone(&seen), Arc::clone(&seen));
        let own = move |name: &'static str| (name, std::thread::current().id());
        autograd::attach(&[&leaf], &[y.shallow_clone()], move |mut gradients| {
            in_function.lock().unwrap().push(own("function"));
            Ok(vec![gradients.remove(0)])
        })
        .unwrap();
        autograd::on_gradient_ready(&leaf, move || {
            in_hook.lock().unwrap().push(own("hook"));
            Ok(())
        })
        .unwrap();
        autograd::backward(&[&y.f_sum(None::<Kind>).unwrap()], &[None], false).unwrap();
        assert_eq!(*seen.lock().unwrap(), [own("function"), own("hook")]);
    });
}

fn allocate(device: usize, bytes: usize) -> mp_comm::Result<Box<dyn DeviceMemory>> {
    let failed =
        |error: &dyn std::fmt::Display| Error::Device { device, doing: "allocating", message: error.to_string() };
    let tensor =
        Tensor::f_empty([bytes as i64], (Kind::Uint8, Device::Cuda(device))).map_err(|error| failed(&error))?;
    Ok(Box::new(DeviceTensor::new(&tensor).map_err(|error| failed(&error))?))
}
