//! `mp-cli plan --simulate`: stages of layouts timed on the device at hand, and the whole cluster's step replayed from that.

use mp_plan::what_if::{Bench, Simulated, WhatIf};
use mp_plan::{Cluster, CostModel, Estimate, Estimator, Found, Job, ParallelConfig, Ranked};
use mp_train::{measure, trial, Config, Error};

use crate::args::Plan;
use crate::failure::{refused, Failure};
use crate::screen::Screen;
use crate::threads;
use crate::wire::equip_alone;

/// How many layouts are simulated where nobody says.
const LAYOUTS: usize = 3;

/// What a search was for.
pub struct Searched<'a> {
    pub config: &'a Config,
    pub job: &'a Job,
    pub cluster: &'a Cluster,
    pub costs: &'a dyn CostModel,
    pub found: &'a Found,
}

/// Says how many layouts are asked for: of a configuration that fixes all degrees the best one, unless a number is given.
pub fn layouts(args: &Plan, parallel: &ParallelConfig) -> mp_train::Result<Option<usize>> {
    // Three of the four leave no choice for the last one.
    let set = [parallel.tp, parallel.pp, parallel.cp, parallel.dp].iter().filter(|&&degree| degree > 0).count();
    let fixed = set >= 3;
    match args.simulate {
        Some(Some(0)) => Err(refused("--simulate", 0, "must be at least 1")),
        Some(None) => Ok(Some(if fixed { 1 } else { LAYOUTS })),
        Some(number) => Ok(number),
        None => Ok(None),
    }
}

/// Times the best layouts, and says what the cluster would take with such devices.
///
/// # Errors
/// An input error if no layout fits, or a stage has no room on this machine.
pub fn run(screen: &mut Screen, searched: &Searched<'_>, layouts: usize) -> Result<(), Failure> {
    let Searched { config, job, cluster, costs, found } = searched;
    if found.layouts.is_empty() {
        let rule =
            "no layout fits that machine, so none is simulated; take more ranks, a smaller model, or more memory";
        return Err(refused("--simulate", layouts, rule).into());
    }
    let device = equip_alone(config)?;
    let threads = rank_threads(config, cluster, found.layouts[0].candidate.ranks())?;
    mp_runtime::device::prepare(threads);
    let peak = measure::processor(device).and_then(|name| cluster.measured_peak(&name, job.precision));
    let mut estimator = Estimator::new(job, cluster, *costs);
    let mut simulate = |estimate: &Estimate| -> Result<Simulated, Failure> {
        let timed = trial::time(config, job, &estimate.candidate, device)?;
        let seen: Vec<_> = timed.stages.iter().map(|stage| stage.seconds).collect();
        let replayed = estimator.replay(&estimate.candidate, &seen, timed.update_seconds).map_err(Error::from)?;
        let replayed = replayed.with_peak(peak);
        let predicted = Ranked::new(estimate);
        Ok(Simulated { predicted, replayed, stages: timed.stages, update_seconds: timed.update_seconds })
    };
    let simulated = found.layouts.iter().take(layouts).map(&mut simulate).collect::<Result<_, _>>()?;
    let device = Bench { name: measure::named(device), threads };
    let what_if = WhatIf { model: job.architecture.clone(), cluster: (*cluster).clone(), device, layouts: simulated };
    screen.line("");
    screen.line(what_if.table().trim_end());
    Ok(screen.result(&what_if)?)
}

/// Returns the threads of a rank: as many as it would have here beside the other ranks of a node.
fn rank_threads(config: &Config, cluster: &Cluster, ranks: usize) -> mp_train::Result<usize> {
    threads::check(config.train.threads)?;
    match config.train.threads {
        0 => Ok((threads::cores() / cluster.node.devices.min(ranks)).max(1)),
        chosen => Ok(chosen),
    }
}
