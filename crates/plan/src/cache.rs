//! What keys and values of seen positions take while a model writes.

use crate::Architecture;

/// Returns the bytes that a rank's keys and values take: `2 · layers · rows · length · heads · k · element`, with the
/// layers of its stages and its key/value heads, a `tp`-th of them or, where there are fewer than ranks, one.
///
/// # Units
/// Bytes.
///
/// # Examples
/// ```
/// use mp_plan::{cache_bytes, Architecture, ModelConfig};
///
/// let config = ModelConfig { hidden: 64, heads: 8, kv_heads: 2, ..ModelConfig::default() };
/// let architecture = Architecture::resolve(&config, 256, 128)?;
/// // Four layers, one sequence of 100 positions, two heads of width 8, in single precision.
/// assert_eq!(cache_bytes(&architecture, 4, 1, 100, 1, 4), 2 * 4 * 100 * 2 * 8 * 4);
/// assert_eq!(cache_bytes(&architecture, 4, 1, 100, 4, 4), 2 * 4 * 100 * 8 * 4);
/// # Ok::<(), mp_plan::Error>(())
/// ```
pub fn cache_bytes(
    architecture: &Architecture,
    layers: usize,
    rows: usize,
    length: usize,
    tp: usize,
    element_bytes: usize,
) -> usize {
    let heads = (architecture.kv_heads / tp).max(1);
    2 * layers * rows * length * heads * architecture.head_dim * element_bytes
}
