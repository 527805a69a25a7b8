//! What the machine at hand does: rates and times as a training step meets them, measured by all ranks at once.
//!
//! | file | is |
//! |---|---|
//! | `measure.rs` | what is measured in which order, and the machine made of it |
//! | `measure/bench.rs` | one operation timed by all ranks |
//! | `measure/compute.rs` | products, sweeps over memory, attention |
//! | `measure/starts.rs` | what operations take within a step: their starts, and how much slower they work there |
//! | `measure/nodes.rs` | which ranks share a node |
//! | `measure/links.rs` | collectives and messages |
//! | `measure/file.rs` | the machine as a file |
//!
//! Ranks of a node share its cores, its caches and its memory, so that all of them compute while one is timed. What counts
//! is a quick one of the repetitions, for others on the machine only make one longer, and the mean over the ranks.

mod bench;
mod compute;
mod file;
mod links;
mod nodes;
mod starts;

use std::sync::Arc;

use mp_comm::{BufferMut, Communicator, ReduceOp};
use mp_plan::cluster::measured::{Points, Product};
use mp_plan::cluster::{Efficiency, Peak};
use mp_plan::{Cluster, Precision};
use mp_runtime::{device, Device};

use crate::crowd::ranks_a_memory;
use crate::Result;

pub use file::text;

use bench::Bench;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// What one run needs, in its precision, in about two seconds.
    Quick(Precision),
    /// All precisions, in ten to twenty seconds.
    Full,
}

impl Effort {
    fn precisions(self) -> Vec<Precision> {
        match self {
            Effort::Quick(precision) => vec![precision],
            Effort::Full => vec![Precision::Fp32, Precision::Bf16, Precision::Fp64],
        }
    }
}

/// Hears what is being measured, on every rank.
pub trait Listener {
    /// A part begins.
    fn begin(&mut self, _what: &str) {}
}

/// Hears nothing.
impl Listener for () {}

/// Measures the machine that the ranks of `world` are on: each of their nodes has as many devices as ranks were started on it.
/// Collective; all ranks get the same numbers.
///
/// # Errors
/// On all ranks: [`Error::Nodes`](crate::Error::Nodes) where nodes do not have equal blocks of consecutive ranks; what an
/// operation or a collective fails with.
pub fn measure(
    world: &Arc<dyn Communicator>,
    device: Device,
    effort: Effort,
    listener: &mut dyn Listener,
) -> Result<Cluster> {
    // Steps and collectives that are only timed are none of the run's, whoever listens to those.
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
        measured(world, device, effort, listener)
    })
}

fn measured(
    world: &Arc<dyn Communicator>,
    device: Device,
    effort: Effort,
    listener: &mut dyn Listener,
) -> Result<Cluster> {
    let devices = nodes::devices(&**world)?;
    let sharing = ranks_a_memory(&**world, device)?;
    let bench = Bench::new(&**world, device, effort);
    let mut points = Points::default();
    for precision in effort.precisions() {
        listener.begin(&format!("products in {}", precision.name()));
        *points.products.of_mut(precision) = compute::products(&bench, precision)?;
        listener.begin(&format!("attention in {}", precision.name()));
        *points.attention.of_mut(precision) = compute::attention(&bench, precision)?;
    }
    listener.begin("operations element by element");
    points.memory = compute::sweeps(&bench)?;
    listener.begin("operations within a step");
    // Of a layer on one rank, which no link concerns.
    let plain = cluster(&bench, world.size(), (devices, sharing), points.clone())?;
    let within = starts::within_a_step(&bench, &plain, effort.precisions()[0])?;
    if world.size() > 1 {
        listener.begin("collectives and messages");
        points.collectives = links::collectives(&bench, world, devices)?;
        points.messages = links::messages(&bench, world, devices)?;
    }
    let mut cluster = cluster(&bench, world.size(), (devices, sharing), points)?;
    (cluster.efficiency.launch, cluster.efficiency.program) = (within.launch, within.program);
    Ok(cluster)
}

/// Makes a machine of the points, with so many devices on a node, and so many ranks that share a memory; what operations take
/// within a step is still to come.
fn cluster(bench: &Bench<'_>, ranks: usize, (devices, sharing): (usize, usize), points: Points) -> Result<Cluster> {
    let device = bench.device();
    let best = |precision: Precision| {
        let rates = points.products.of(precision).iter().map(|product| product.3);
        rates.fold(None, |best: Option<f64>, rate| Some(best.map_or(rate, |best| best.max(rate))))
    };
    let peak = Peak { bf16: best(Precision::Bf16), fp32: best(Precision::Fp32), fp64: best(Precision::Fp64) };
    let preset = Cluster::preset("cpu").expect("a preset that there is");
    let links = links::rates(&points.collectives, preset.node, preset.network);
    let free = bench.least(device::free_bytes(device).unwrap_or(0) as f64)? as usize;
    let precision = bench.effort().precisions()[0];
    let memory_bandwidth = points.memory.last().map_or(preset.device.memory_bandwidth, |point| point[1]);
    // An accelerator has memory of its own, a host's ranks share theirs.
    let (shared, own) = match (device, free) {
        // The system does not say; the layout is then chosen as if there were enough.
        (_, 0) => (preset.node.memory_bytes, 0),
        (Device::Cpu, free) => (free, 0),
        (_, free) => (0, free / sharing),
    };
    let node = mp_plan::cluster::Node { count: ranks.div_ceil(devices), devices, memory_bytes: shared, ..links.0 };
    Ok(Cluster {
        node,
        device: mp_plan::cluster::Device { name: named(device), memory_bytes: own, memory_bandwidth, peak },
        network: links.1,
        efficiency: Efficiency {
            matrix: 1.0,
            matrix_half: half(points.products.of(precision), best(precision)),
            attention: share(points.attention.of(precision), best(precision)),
            memory: 1.0,
            node: 1.0,
            network: 1.0,
            // MPI moves messages only inside calls, and the cores that compute are those that copy.
            overlap: if device == Device::Cpu { 0.0 } else { 1.0 },
            launch: 0.0,
            program: 1.0,
            reserve: Efficiency::default().reserve,
        },
        measured: Some(points),
        set_aside: 0,
    })
}

/// Returns the length at which a cube's rate is what was measured of the middle one, for where points are not asked.
fn half(products: &[Product], peak: Option<f64>) -> f64 {
    let cubes: Vec<&Product> =
        products.iter().filter(|product| product.0 == product.1 && product.1 == product.2).collect();
    let (Some(peak), Some(cube)) = (peak, cubes.get(cubes.len() / 2)) else { return 0.0 };
    cube.0 as f64 * ((peak / cube.3).cbrt() - 1.0).max(0.0)
}

/// Returns the best rate of attention as a share of the peak; what machines have where it was not measured.
fn share(points: &[[f64; 2]], peak: Option<f64>) -> f64 {
    let best = points.iter().map(|point| point[1]).fold(0.0, f64::max);
    let peak = peak.filter(|_| best > 0.0);
    peak.map_or(Efficiency::default().attention, |peak| (best / peak).min(1.0))
}

/// Names what a rank computes with, as a measured file has it: of a host the processor and a rank's threads. `None` where the
/// system does not say which it is, so that others would be called alike.
pub fn processor(device: Device) -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let (_, model) = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'))?;
    (device == Device::Cpu).then(|| with_threads(model.trim()))
}

/// The same, with a name for what has none.
pub fn named(device: Device) -> String {
    processor(device).unwrap_or_else(|| match device {
        Device::Cpu => with_threads("CPU"),
        other => format!("{other:?}"),
    })
}

fn with_threads(model: &str) -> String {
    format!("{model}, {}", mp_plan::words::counted(device::threads(), "thread"))
}

impl Bench<'_> {
    /// Returns the least value of any rank.
    fn least(&self, value: f64) -> Result<f64> {
        let mut values = [value];
        self.world().all_reduce(BufferMut::new(&mut values), ReduceOp::Min)?;
        Ok(values[0])
    }
}
