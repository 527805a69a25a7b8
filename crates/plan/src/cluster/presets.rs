//! Machines that many people have, by name.
//!
//! Rates are those of data sheets: NVIDIA A100 80GB SXM (312 TFLOP/s in 16 bits, 2,039 GB/s, third NVLink: 300 GB/s each
//! way), H100 SXM (989 TFLOP/s, 3.35 TB/s, fourth NVLink: 450 GB/s each way) and H200 (as H100, 141 GB at 4.8 TB/s), in
//! nodes of eight with one network card a device: 200 Gb/s HDR InfiniBand with A100, 400 Gb/s NDR with the others. 32 bits
//! are TF32 with A100 and later where torch is told so, and plain here, as torch does by default.
//!
//! The shares of [`Efficiency`], but for that of fused attention, are fitted on published runs of A100 machines, and the others
//! carry them over; but `matrix` and `attention` of H100 and H200 were set with two published runs on H100 in view. See
//! `docs/results/planner.md`.

use super::{Cluster, Device, Efficiency, Network, Node, Peak};
use crate::{Error, Result};

/// 2³⁰ bytes.
const GIB: usize = 1 << 30;

impl Default for Efficiency {
    /// Returns the shares fitted on machines of A100.
    fn default() -> Self {
        Self {
            // cuBLAS comes to about 270 of 312 TFLOP/s on the largest products.
            matrix: 0.86,
            // A tile of 256 × 128 on 108 processors.
            matrix_half: 128.0,
            // Not fitted: those runs dropped attention weights, which no fused kernel does. FlashAttention-2 comes to 50 to 73 %
            // forward and less backward (Dao 2023, arXiv:2307.08691).
            attention: 0.5,
            // Copies come to 1.75 of 2.04 TB/s.
            memory: 0.85,
            // All-reduces over eight devices show 230 of 300 GB/s.
            node: 0.77,
            network: 0.8,
            overlap: 1.0,
            launch: 5e-6,
            program: 1.0,
            reserve: 0.08,
        }
    }
}

impl Cluster {
    /// The names of all presets.
    pub const PRESETS: [&'static str; 4] = ["a100-80", "h100", "h200", "cpu"];

    /// Returns a machine by name: one node of it; [`with_ranks`](Self::with_ranks) makes it larger.
    ///
    /// # Errors
    /// [`Error::Preset`], which lists the names.
    pub fn preset(name: &str) -> Result<Self> {
        match name {
            "a100-80" => Ok(a100()),
            "h100" => Ok(h100()),
            "h200" => Ok(h200()),
            "cpu" => Ok(cpu()),
            _ => Err(Error::Preset { name: name.to_owned() }),
        }
    }
}

fn a100() -> Cluster {
    Cluster {
        node: Node { count: 1, devices: 8, memory_bytes: 0, bandwidth: 300e9, latency: 6e-6 },
        device: Device {
            name: "A100-80GB".into(),
            memory_bytes: 80 * GIB,
            memory_bandwidth: 2.039e12,
            peak: Peak { bf16: Some(312e12), fp32: Some(19.5e12), fp64: Some(19.5e12) },
        },
        network: Network { bandwidth: 25e9, latency: 12e-6 },
        efficiency: Efficiency::default(),
        measured: None,
        set_aside: 0,
    }
}

fn h100() -> Cluster {
    Cluster {
        node: Node { count: 1, devices: 8, memory_bytes: 0, bandwidth: 450e9, latency: 6e-6 },
        device: Device {
            name: "H100-SXM".into(),
            memory_bytes: 80 * GIB,
            memory_bandwidth: 3.35e12,
            peak: Peak { bf16: Some(989e12), fp32: Some(67e12), fp64: Some(67e12) },
        },
        network: Network { bandwidth: 50e9, latency: 12e-6 },
        // At 700 W the clock falls under full load: large products come to 650 of 989 TFLOP/s.
        efficiency: Efficiency { matrix: 0.66, attention: 0.4, ..Efficiency::default() },
        measured: None,
        set_aside: 0,
    }
}

fn h200() -> Cluster {
    let h100 = h100();
    let device =
        Device { name: "H200".into(), memory_bytes: 141_000_000_000, memory_bandwidth: 4.8e12, ..h100.device.clone() };
    Cluster { device, ..h100 }
}

/// A host of 64 cores and two sockets, a rank for every eight; messages go through memory. A core is taken to do 32 FLOP in
/// 32 bits at each of 2.5 · 10⁹ ticks a second, half as many in 64 bits; what it does in bfloat16 differs from host to host,
/// so that no peak is stated.
fn cpu() -> Cluster {
    let peak = Peak { bf16: None, fp32: Some(640e9), fp64: Some(320e9) };
    Cluster {
        node: Node { count: 1, devices: 8, memory_bytes: 256 * GIB, bandwidth: 5e9, latency: 2e-6 },
        device: Device { name: "CPU".into(), memory_bytes: 0, memory_bandwidth: 25e9, peak },
        network: Network { bandwidth: 1.25e9, latency: 20e-6 },
        efficiency: Efficiency { launch: 2e-6, attention: 0.4, overlap: 0.0, ..Efficiency::default() },
        measured: None,
        set_aside: 0,
    }
}
