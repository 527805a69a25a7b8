//! Custom autograd functions written in Rust, backward with given gradients, and gradient-ready hooks.
//!
//! A function computes its outputs without recording, then [`attach`]es a closure that turns the gradients of the
//! outputs into those of the inputs. The closure owns what it saved and is dropped as soon as the graph has been walked
//! (or is thrown away), so nothing outlives a step. It must not hold its own outputs: a node that owns its output is
//! owned by it. Hold `output.detach()` where the output is needed.

use crate::{ffi, Result, Tensor};

/// Makes `outputs` results of a function of `inputs`.
///
/// `backward` receives one gradient for each output (`None` where nothing flowed) and returns one for each input. It
/// runs without recording. Where no input requires a gradient, or inside [`no_grad`], nothing is recorded and `backward`
/// is dropped.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where libtorch refuses, for an integer output for instance. Errors and panics
/// inside `backward` come back from [`backward`] as [`Error::Callback`](crate::Error::Callback).
///
/// # Examples
/// ```
/// use mp_runtime::{autograd, Tensor};
///
/// let x = Tensor::from_slice(&[1.0, 2.0, 3.0]).set_requires_grad(true);
/// let y = { let _off = autograd::no_grad(); x.f_square()? };
/// let saved = x.detach();
/// autograd::attach(&[&x], &[y.shallow_clone()], move |gradients| {
///     let g = gradients[0].as_ref().expect("y is used");
///     Ok(vec![Some(g.f_mul(&saved)?.f_mul_scalar(2.0)?)])
/// })?;
/// autograd::backward(&[&y.f_sum(None)?], &[None], false)?;
/// assert_eq!(Vec::<f64>::try_from(x.grad())?, [2.0, 4.0, 6.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn attach<F>(inputs: &[&Tensor], outputs: &[Tensor], backward: F) -> Result<()>
where
    F: FnMut(Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> + Send + 'static,
{
    ffi::attach(inputs, outputs, Box::new(backward))
}

/// Walks the graph backwards from `outputs`, on this thread, on a device as on the host: what closures start is in the order of
/// the graph, and on this thread's stream. (libtorch would walk a device's part on a thread of its own for each device, which
/// ranks that are threads of one process would share.)
///
/// `gradients[i]` is the gradient of `outputs[i]`; `None` stands for 1 and needs a scalar. With `retain` the graph can
/// be walked again.
///
/// # Errors
/// Whatever libtorch or a callback on the way raises.
pub fn backward(outputs: &[&Tensor], gradients: &[Option<&Tensor>], retain: bool) -> Result<()> {
    ffi::backward(outputs, gradients, retain)
}

/// Calls `ready` each time the gradient of `leaf` has been accumulated in a backward pass. A leaf has one such closure:
/// the last one given.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) if `leaf` is no leaf that requires a gradient.
pub fn on_gradient_ready(leaf: &Tensor, ready: impl FnMut() -> Result<()> + Send + 'static) -> Result<()> {
    ffi::on_gradient_ready(leaf, Box::new(ready))
}

/// Runs `body` recording, on this thread: what a backward that computes something again needs, since it runs without.
///
/// A panic in `body` leaves the thread recording; inside a backward that ends with the backward.
pub fn record<T>(body: impl FnOnce() -> T) -> T {
    tch::with_grad(body)
}

/// Stops recording until the guard is dropped, on this thread.
pub fn no_grad() -> tch::NoGradGuard {
    tch::no_grad_guard()
}
