//! `mp-cli plan --measure`: the machine at hand, measured and written as a cluster's file.

use std::path::Path;
use std::time::SystemTime;

use mp_plan::{Cluster, Collective};
use mp_train::agree::agree;
use mp_train::measure::{self, measure, Effort, Listener};
use mp_train::run_folder::timestamp;

use crate::args::Plan;
use crate::destination::Destination;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::threads;
use crate::wire::{equip, Equipment, World};

/// Measures on all ranks, and writes on the first.
///
/// # Errors
/// An input error for a file that cannot be written, before anything is measured; what measuring fails with.
pub fn run(args: &Plan, file: &Path, world: &World) -> Result<(), Failure> {
    let communicator = world.communicator();
    let opened = || {
        let config = args.configuration.load()?;
        threads::check(config.train.threads)?;
        let file = world.is_first().then(|| Destination::new("--measure", file)).transpose()?;
        Ok((config, file, Screen::open(&args.output, world.is_first())?))
    };
    let (config, destination, mut screen) = agree(&**communicator, opened())?;
    threads::prepare(&**communicator, config.train.threads)?;
    let Equipment { device, communicator, .. } = equip(communicator, &config)?.tell(&screen);
    let cluster = measure(&communicator, device, Effort::Full, &mut Told(&screen))?;
    let text = || measure::text(&cluster, communicator.size(), &format!("{} UTC", timestamp(SystemTime::now())));
    agree(&*communicator, destination.map_or(Ok(()), |mut destination| destination.write(&text())))?;
    for line in summary(&cluster) {
        screen.line(&line);
    }
    screen.line(&format!("written to {}", file.display()));
    Ok(screen.result(&cluster)?)
}

/// Tells a person what is being measured.
struct Told<'a>(&'a Screen);

impl Listener for Told<'_> {
    fn begin(&mut self, what: &str) {
        self.0.line(&format!("measuring {what}"));
    }
}

/// Says the most telling numbers.
fn summary(cluster: &Cluster) -> Vec<String> {
    let peak = cluster.device.peak;
    let peaks = [("fp32", peak.fp32), ("bf16", peak.bf16), ("fp64", peak.fp64)];
    let peaks = peaks.into_iter().filter_map(|(name, rate)| Some(format!("{name} {:.1}", rate? / 1e9)));
    let mut lines = vec![
        format!("products    {} GFLOP/s a rank at best", peaks.collect::<Vec<_>>().join(", ")),
        format!("memory      {:.1} GB/s a rank", cluster.device.memory_bandwidth / 1e9),
        format!("operations  {:.1} µs each beside their work", cluster.efficiency.launch * 1e6),
    ];
    let groups = cluster.measured.iter().flat_map(|points| &points.collectives);
    for group in groups.filter(|group| group.what == Collective::AllReduce) {
        let said = |[bytes, seconds]: [f64; 2]| format!("{:.1} µs for {bytes} bytes", seconds * 1e6);
        let ends = [group.points.first(), group.points.last()].map(|point| point.copied().map_or("-".into(), said));
        let ranks = format!("{} ranks, {} on a node", group.ranks, group.neighbours);
        lines.push(format!("all-reduce  of {ranks}: {}", ends.join(", ")));
    }
    lines
}
