//! Mistakes on purpose, compiled in for tests alone: each is one that real systems have shipped, and acts only where the
//! real one would. What verifies layouts must catch every one of them.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mp_plan::PartitionedParameter;

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Gradients multiplied by the context degree: each rank divides by its own tokens, and all are summed.
    ScaledByContext,
    /// Gradients not divided by the number of micro-batches.
    ScaledByAccumulation,
    /// Gradients summed over the data ranks and not averaged.
    ScaledByData,
    /// Under sequence parallelism, gradients of norms that are not summed over the tensor ranks.
    NormsUnsummed,
    /// A clip norm in which parameters that lie on several tensor ranks count more than once.
    NormCountsReplicas,
    /// A stage that loses its last layer.
    LayerDropped,
    /// Query, key and value slices in another order on tensor ranks.
    SlicesSwapped,
    /// A tied table on two pipeline ranks whose gradients are not summed.
    TiedUnsummed,
    /// Dropout masks that are the same on all data ranks.
    SameMask,
    /// Padded rows of the vocabulary that take part in the softmax.
    PaddingCounts,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::ScaledByContext,
        Self::ScaledByAccumulation,
        Self::ScaledByData,
        Self::NormsUnsummed,
        Self::NormCountsReplicas,
        Self::LayerDropped,
        Self::SlicesSwapped,
        Self::TiedUnsummed,
        Self::SameMask,
        Self::PaddingCounts,
    ];
}

/// One more than the index of the fault that acts; 0 is none.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Ends a fault when it goes.
#[derive(Debug)]
pub struct Injected(
    #[allow(dead_code, reason = "held so that no other test injects meanwhile")] MutexGuard<'static, ()>,
);

impl Drop for Injected {
    fn drop(&mut self) {
        ACTIVE.store(0, Ordering::SeqCst);
    }
}

/// Lets a fault, or none, act in this process until what is returned goes; waits until no other does.
pub fn inject(fault: Option<Fault>) -> Injected {
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    ACTIVE.store(fault.map_or(0, |fault| fault as usize + 1), Ordering::SeqCst);
    Injected(guard)
}

/// Says whether a fault acts.
pub fn active(fault: Fault) -> bool {
    ACTIVE.load(Ordering::SeqCst) == fault as usize + 1
}

/// Returns what gradients are multiplied by.
pub fn gradient_factor(micro_batches: usize, dp: usize, cp: usize) -> f64 {
    let factors =
        [(Fault::ScaledByContext, cp), (Fault::ScaledByAccumulation, micro_batches), (Fault::ScaledByData, dp)];
    factors.into_iter().filter(|(fault, _)| active(*fault)).map(|(_, degree)| degree as f64).product()
}

/// Forgets which data rank draws a mask.
pub fn forget_rank(first_sample: &mut usize) {
    if active(Fault::SameMask) {
        *first_sample = 0;
    }
}

/// Says whether a parameter's gradient is left out of the sum over tensor ranks.
pub fn unsummed(name: &str) -> bool {
    active(Fault::NormsUnsummed) && name.contains("norm")
}

/// Takes its last layer from the last stage of a rank that does not hold the whole model.
pub fn layers(chunks: &[Range<usize>], layers: usize) -> Vec<Range<usize>> {
    let mut chunks = chunks.to_vec();
    let held: usize = chunks.iter().map(Range::len).sum();
    if let (true, true, Some(last)) = (active(Fault::LayerDropped), held < layers, chunks.last_mut()) {
        // The model's last layer is what the exit follows: its stage would lose that too.
        last.end -= usize::from(last.end < layers);
    }
    chunks
}

/// Names the matrix that a tensor rank's slice is taken from.
pub fn slice(parameter: &PartitionedParameter, name: String) -> String {
    if !active(Fault::SlicesSwapped) || parameter.local_shape() == parameter.spec.shape {
        return name;
    }
    for (own, other) in [("query", "key"), ("key", "value"), ("value", "query")] {
        let (own, other) = (format!("attention.{own}."), format!("attention.{other}."));
        if name.contains(&own) {
            return name.replace(&own, &other);
        }
    }
    name
}
