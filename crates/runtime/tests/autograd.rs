//! Custom functions: their gradients, what they leave behind, and how they fail.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use mp_runtime::kernels::dropout::{dropout, Place};
use mp_runtime::kernels::rms_norm;
use mp_runtime::kernels::rotary::{frequencies, rotate, Angles};
use mp_runtime::rng::Stream;
use mp_runtime::{autograd, device, Device, Error, Kind, Result, Tensor};

/// `x³` as a custom function.
fn cube(x: &Tensor) -> Result<Tensor> {
    let y = {
        let _off = autograd::no_grad();
        x.f_pow_tensor_scalar(3)?
    };
    let saved = x.detach();
    autograd::attach(&[x], &[y.shallow_clone()], move |gradients| {
        let Some(gradient) = &gradients[0] else { return Ok(vec![None]) };
        Ok(vec![Some(gradient.f_mul(&saved.f_square()?)?.f_mul_scalar(3.0)?)])
    })?;
    Ok(y)
}

fn random(shape: &[i64], name: &str) -> Tensor {
    let count = shape.iter().product::<i64>() as u64;
    Tensor::from_slice(&Stream::new(1, name, 0).normals(0..count)).view(shape)
}

/// Compares the gradient of `sum(f(x) · w)` with central differences in double precision.
///
/// The error of a central difference is h²/6 · f''' + ε/h; with h = 1e-5 and values of order 1, below 1e-8.
fn check_gradient(shape: &[i64], f: impl Fn(&Tensor) -> Result<Tensor>) {
    check_gradient_at(&random(shape, "x"), f);
}

fn check_gradient_at(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) {
    let x = x.copy().set_requires_grad(true);
    let y = f(&x).unwrap();
    let w = random(&y.size(), "w");
    autograd::backward(&[&y], &[Some(&w)], false).unwrap();
    let gradient = x.grad();
    let h = 1e-5;
    for index in 0..x.numel() as i64 {
        let value = |shift: f64| {
            let moved = x.detach().copy();
            let _ = moved.view(-1).narrow(0, index, 1).f_add_scalar_(shift).unwrap();
            f(&moved).unwrap().f_mul(&w).unwrap().sum(None).double_value(&[])
        };
        let difference = (value(h) - value(-h)) / (2.0 * h);
        let given = gradient.view(-1).double_value(&[index]);
        assert!((difference - given).abs() < 1e-8, "element {index}: {given} against {difference}");
    }
}

#[test]
fn a_custom_function_has_the_gradient_of_its_formula() {
    check_gradient(&[2, 3], cube);
}

#[test]
fn a_root_mean_square_norm_has_the_gradient_of_its_formula() {
    // Rows of order 1 and of order ε: in the latter ε takes part.
    let (shape, epsilon) = ([2, 3, 4], 1e-2);
    let (x, w) = (random(&shape, "rows") * Tensor::from_slice(&[1.0, 0.1]).view([2, 1, 1]), random(&[4], "scale"));
    let norm = |x: &Tensor, w: &Tensor| -> Result<Tensor> {
        let (y, r) = rms_norm::forward(&x.detach(), &w.detach(), epsilon)?;
        let (saved, scale) = (x.detach(), w.detach());
        autograd::attach(&[x, w], &[y.shallow_clone()], move |gradients| {
            let Some(dy) = &gradients[0] else { return Ok(vec![None, None]) };
            let (dx, dw) = rms_norm::backward(dy, &saved, &scale, &r)?;
            Ok(vec![Some(dx), Some(dw)])
        })?;
        Ok(y)
    };
    check_gradient_at(&x, |x| norm(x, &w));
    check_gradient_at(&w, |w| norm(&x, w));
}

#[test]
fn rotary_positions_turn_gradients_back() {
    let angles = Angles::new(5, &frequencies(4, 10_000.0), Kind::Double, Device::Cpu).unwrap();
    check_gradient(&[2, 5, 3, 4], |x| rotate(x, &angles));
}

#[test]
fn rotary_positions_are_their_formula() {
    let theta = 100.0f64;
    let angles = Angles::new(4, &frequencies(4, theta), Kind::Double, Device::Cpu).unwrap();
    let x = random(&[1, 4, 1, 4], "x");
    let y = rotate(&x, &angles).unwrap();
    for position in 0..4i64 {
        for i in 0..2i64 {
            let angle = position as f64 * theta.powf(-2.0 * i as f64 / 4.0);
            let (x1, x2) = (x.double_value(&[0, position, 0, i]), x.double_value(&[0, position, 0, i + 2]));
            assert!((y.double_value(&[0, position, 0, i]) - (x1 * angle.cos() - x2 * angle.sin())).abs() < 1e-15);
            assert!((y.double_value(&[0, position, 0, i + 2]) - (x2 * angle.cos() + x1 * angle.sin())).abs() < 1e-15);
        }
    }
}

#[test]
fn dropout_keeps_its_share_and_does_not_depend_on_the_cut() {
    let stream = Stream::new(3, "layer", 1);
    let (rows, width, p) = (200u64, 50u64, 0.25);
    let x = Tensor::ones([rows as i64, width as i64], (Kind::Double, Device::Cpu));
    let starts: Vec<u64> = (0..rows).map(|row| row * width).collect();
    let whole = dropout(&x, p, Place { rows: &starts, stream }).unwrap();
    let half = dropout(&x.narrow(0, 100, 100), p, Place { rows: &starts[100..], stream }).unwrap();
    assert_eq!(whole.narrow(0, 100, 100), half);
    let kept = whole.ne(0.0).sum(Kind::Int64).int64_value(&[]) as f64;
    let n = (rows * width) as f64;
    // Five standard deviations of a binomial count.
    assert!((kept - n * (1.0 - p)).abs() < 5.0 * (n * p * (1.0 - p)).sqrt(), "{kept} of {n}");
    assert!((whole.max().double_value(&[]) - 1.0 / (1.0 - p)).abs() < 1e-15);
}

#[test]
fn given_gradients_and_retained_graphs() {
    let x = random(&[3], "x").set_requires_grad(true);
    let y = x.f_square().unwrap();
    let given = Tensor::from_slice(&[1.0, 10.0, 100.0]);
    autograd::backward(&[&y], &[Some(&given)], true).unwrap();
    autograd::backward(&[&y], &[Some(&given)], false).unwrap();
    let expected = x.detach() * 4.0 * given;
    assert!((x.grad() - expected).abs().max().double_value(&[]) < 1e-13);
}

#[test]
fn a_second_walk_over_a_freed_function_is_an_error() {
    let y = cube(&random(&[3], "x").set_requires_grad(true)).unwrap().sum(None);
    autograd::backward(&[&y], &[None], false).unwrap();
    let error = autograd::backward(&[&y], &[None], false).unwrap_err();
    assert!(matches!(error, Error::Torch(_)), "{error}");
}

#[test]
fn errors_and_panics_in_a_backward_come_back_as_errors() {
    for panics in [false, true] {
        let x = random(&[3], "x").set_requires_grad(true);
        let y = x.detach();
        autograd::attach(&[&x], &[y.shallow_clone()], move |_| {
            assert!(!panics, "the closure panicked at {}", 42);
            Err(Error::Callback("the closure failed at 42".into()))
        })
        .unwrap();
        let error = autograd::backward(&[&y.sum(None)], &[None], false).unwrap_err();
        assert!(matches!(&error, Error::Callback(words) if words.contains("42")), "{error}");
    }
}

#[test]
fn memory_that_a_backward_lacks_comes_back_as_such() {
    let x = random(&[3], "x").set_requires_grad(true);
    let refused = || Error::DeviceOutOfMemory { device: 1, bytes: 7, total: 9, free: 2, allocated: None, idle: None };
    // From a backward within a backward, too, and not for what fails later.
    for (lacks, inside) in [(true, false), (true, true), (false, false)] {
        let y = x.detach();
        autograd::attach(&[&x], &[y.shallow_clone()], move |_| match (lacks, inside) {
            (true, false) => Err(refused()),
            (true, true) => autograd::record(|| {
                let within = random(&[3], "within").set_requires_grad(true);
                let made = within.detach();
                autograd::attach(&[&within], &[made.shallow_clone()], move |_| Err(refused()))?;
                autograd::backward(&[&made.sum(None)], &[None], false)?;
                Ok(vec![None])
            }),
            _ => Err(Error::Callback("something else".into())),
        })
        .unwrap();
        let error = autograd::backward(&[&y.sum(None)], &[None], false).unwrap_err();
        match lacks {
            true => assert!(matches!(error, Error::DeviceOutOfMemory { bytes: 7, .. }), "{error}"),
            false => assert!(matches!(error, Error::Callback(_)), "{error}"),
        }
    }
}

#[test]
fn too_few_gradients_are_an_error() {
    let x = random(&[3], "x").set_requires_grad(true);
    let y = x.detach();
    autograd::attach(&[&x], &[y.shallow_clone()], |_| Ok(vec![])).unwrap();
    let error = autograd::backward(&[&y.sum(None)], &[None], false).unwrap_err();
    assert!(error.to_string().contains("0 gradients for 1 inputs"), "{error}");
}

#[test]
fn exceptions_of_libtorch_come_back_as_errors() {
    let x = random(&[3], "x");
    let error = autograd::backward(&[&x], &[None], false).unwrap_err();
    assert!(matches!(error, Error::Torch(_)), "{error}");
    assert!(matches!(autograd::on_gradient_ready(&x, || Ok(())), Err(Error::Torch(_))));
}

#[test]
fn hooks_fire_once_a_backward_and_their_errors_come_back() {
    let x = random(&[3], "x").set_requires_grad(true);
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    autograd::on_gradient_ready(&x, move || {
        if seen.fetch_add(1, Ordering::SeqCst) == 2 {
            return Err(Error::Callback("third time".into()));
        }
        Ok(())
    })
    .unwrap();
    for expected in 1..=2 {
        autograd::backward(&[&cube(&x).unwrap().sum(None)], &[None], false).unwrap();
        assert_eq!(count.load(Ordering::SeqCst), expected);
    }
    let error = autograd::backward(&[&cube(&x).unwrap().sum(None)], &[None], false).unwrap_err();
    assert!(matches!(error, Error::Callback(_)), "{error}");
}

#[test]
fn closures_are_dropped_with_their_graph() {
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let count = Arc::new(AtomicUsize::new(0));
    let function = |x: &Tensor| {
        let (y, token) = (x.detach(), Dropped(Arc::clone(&count)));
        autograd::attach(&[x], &[y.shallow_clone()], move |gradients| {
            let _held = &token;
            Ok(gradients)
        })
        .unwrap();
        y
    };
    let x = random(&[3], "x").set_requires_grad(true);
    let walked = function(&x);
    autograd::backward(&[&walked.sum(None)], &[None], false).unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 1, "after its backward");
    drop(function(&x));
    assert_eq!(count.load(Ordering::SeqCst), 2, "thrown away unused");
    let _off = autograd::no_grad();
    let _ = function(&x);
    assert_eq!(count.load(Ordering::SeqCst), 3, "never recorded");
}

/// A leak of the smallest tensor (some 200 bytes with its node) at each call would add 20 MB.
#[test]
fn a_hundred_thousand_calls_do_not_grow_memory() {
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4096
    };
    let x = random(&[3], "x").set_requires_grad(true);
    let step = || {
        autograd::backward(&[&cube(&x).unwrap().sum(None)], &[None], false).unwrap();
        let _ = x.grad().zero_();
    };
    (0..10_000).for_each(|_| step());
    let before = resident();
    (0..100_000).for_each(|_| step());
    let grown = resident() - before;
    assert!(grown < 4 << 20, "{grown} bytes");
}

#[test]
fn generator_states_replay() {
    let state = device::generator_state(false).unwrap();
    let first = Tensor::rand([4], (Kind::Float, Device::Cpu));
    device::set_generator_state(false, &state).unwrap();
    assert_eq!(first, Tensor::rand([4], (Kind::Float, Device::Cpu)));
}

#[test]
fn without_an_accelerator_its_calls_are_errors() {
    if device::has_accelerator() {
        return;
    }
    let words = device::memory(Device::Cuda(0)).unwrap_err().to_string();
    assert!(words.contains("no accelerator"), "{words}");
    assert!(mp_runtime::stream::Stream::current(0).is_err());
    assert!(mp_runtime::stream::Event::new().is_err());
    assert!(device::generator_state(true).is_err());
}
