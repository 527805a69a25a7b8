//! A device that has run out of memory, or would: what the rank keeps there, and which settings would need less.
//!
//! Both are the plan's: the allocator does not know what a tensor is for. Settings are looked for near the layout at hand: one of
//! its choices changed, where none of those is enough two of them, and after that the whole space of layouts is searched. A
//! degree and what follows from it are one choice. `used` does the same for a model that is not trained.

mod used;

use std::collections::BTreeMap;

use mp_plan::words::{counted, size};
use mp_plan::{
    cost, search, Candidate, Cluster, Estimate, Estimator, Job, ParallelConfig, ParallelKey, RankMemory, Space,
};
use serde_json::{Map, Value};

pub(crate) use self::used::Used;
use crate::layout::Layout;
use crate::{Config, Error, Result};

/// How many ways out are named.
const MOST: usize = 3;

/// What is known of the rank whose device is full.
pub(crate) struct Full<'a> {
    pub config: &'a Config,
    pub layout: &'a Layout,
    /// What the run is on, where that is known.
    pub machine: Option<&'a Cluster>,
    /// How many ranks share a device.
    pub sharing: usize,
    /// The rank's stage of the pipeline.
    pub stage: usize,
}

/// What a device's allocator says.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    asked: usize,
    total: usize,
    free: usize,
}

impl Full<'_> {
    /// Adds what is kept and what would fit to an error of a device without memory; leaves others as they are.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let Some(refusal) = refusal(&error) else { return error };
        match self.account(refusal) {
            Ok((kept, way_out)) => Error::DeviceMemory { source: Box::new(error), kept, way_out },
            // What cannot be planned, adapters for instance, is told as the device told it.
            Err(_) => error,
        }
    }

    fn account(&self, refusal: Refusal) -> Result<(String, String)> {
        let (job, candidate) = self.layout.planned(self.config)?;
        let preset = Cluster::preset("h100")?;
        let machine = self.machine.unwrap_or(&preset).clone().with_ranks(candidate.ranks());
        let mut around = Around { job: &job, present: candidate, asked: &self.config.parallel, machine: &machine };
        let present = around.estimate(&candidate)?;
        let own = present.memory.get(self.stage).unwrap_or(present.largest());
        // What it lacks is at least what it asked for in vain.
        let least = own.total().saturating_sub(refusal.asked);
        let usable = (1.0 - machine.efficiency.reserve) * refusal.total as f64 / self.sharing.max(1) as f64;
        let room = least.min(usable as usize);
        let ways = around.ways(room)?;
        Ok((kept(own), way_out(&ways, candidate.ranks(), room)))
    }
}

/// Finds a device's refusal in an error, or what was refused in its place.
fn refusal(error: &Error) -> Option<Refusal> {
    if let Error::Memory { memory: "device", rank_bytes, ranks, free } = *error {
        let own = free / ranks.max(1) as u64;
        return Some(Refusal { asked: rank_bytes.saturating_sub(own) as usize, total: free as usize, free: 0 });
    }
    let (Error::Runtime(inner) | Error::Model(mp_model::Error::Runtime(inner))) = error else { return None };
    match *inner {
        mp_runtime::Error::DeviceOutOfMemory { bytes, total, free, .. } => {
            Some(Refusal { asked: bytes as usize, total: total as usize, free: free as usize })
        }
        _ => None,
    }
}

/// Words what a rank keeps, largest first.
fn kept(memory: &RankMemory) -> String {
    let mut parts: Vec<(&str, usize)> = RankMemory::NAMES.into_iter().zip(memory.parts()).collect();
    parts.retain(|(_, bytes)| *bytes > 0);
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let parts: Vec<String> = parts.iter().map(|(name, bytes)| format!("{name} {}", size(*bytes))).collect();
    format!("{} at its fullest: {}", size(memory.total()), parts.join(", "))
}

/// Words the ways out.
fn way_out(ways: &[Way], ranks: usize, room: usize) -> String {
    if ways.is_empty() {
        let ranks = counted(ranks, "rank");
        return format!(
            "no layout of {ranks} keeps less than {}: start more ranks, or make the model smaller",
            size(room)
        );
    }
    worded(ways)
}

fn worded(ways: &[Way]) -> String {
    let word = |way: &Way| format!("{} ({})", way.settings.join(" "), size(way.bytes));
    format!("by the same plan there is room with {}", ways.iter().map(word).collect::<Vec<_>>().join(", or with "))
}

/// Settings that need less.
#[derive(Debug, PartialEq)]
struct Way {
    settings: Vec<String>,
    /// What the fullest rank keeps.
    bytes: usize,
}

/// The layouts around the present one.
struct Around<'a> {
    job: &'a Job,
    present: Candidate,
    /// What the configuration fixes of it.
    asked: &'a ParallelConfig,
    machine: &'a Cluster,
}

impl Around<'_> {
    fn estimate(&mut self, candidate: &Candidate) -> Result<Estimate> {
        let costs = cost::of(self.machine);
        Ok(Estimator::new(self.job, self.machine, &*costs).estimate(candidate)?)
    }

    /// Finds the fewest changes by which all ranks keep at most `room`, and of each kind the fastest layout.
    fn ways(&mut self, room: usize) -> Result<Vec<Way>> {
        let costs = cost::of(self.machine);
        let mut estimator = Estimator::new(self.job, self.machine, &*costs);
        let ranks = self.present.ranks();
        let space = Space::of(self.job, ranks);
        for changes in 1..=2 {
            // By what is changed: its fastest layout.
            let mut best: BTreeMap<Vec<&str>, Estimate> = BTreeMap::new();
            for candidate in space.candidates(self.job, ranks) {
                let changed = changed(&self.present, &candidate);
                if changed.len() != changes || self.strands(&candidate) {
                    continue;
                }
                let estimate = estimator.estimate(&candidate)?;
                let better = |known: &Estimate| slowness(&estimate) < slowness(known);
                if estimate.largest().total() <= room && best.get(&changed).is_none_or(better) {
                    best.insert(changed, estimate);
                }
            }
            if !best.is_empty() {
                let mut best: Vec<Estimate> = best.into_values().collect();
                best.sort_by(|one, other| slowness(one).total_cmp(&slowness(other)));
                return Ok(best.iter().take(MOST).map(|estimate| self.way(estimate)).collect());
            }
        }
        let mut within = self.machine.clone();
        (within.node.memory_bytes, within.device.memory_bytes, within.efficiency.reserve) = (0, room.max(1), 0.0);
        let found = search(self.job, &within, &*costs, &space, ranks, 1)?;
        let stands = |estimate: &&Estimate| !self.strands(&estimate.candidate);
        Ok(found.layouts.iter().filter(stands).map(|estimate| self.way(estimate)).collect())
    }

    /// Says whether an option that the configuration sets would have no effect any more, and be refused beside the others.
    fn strands(&self, candidate: &Candidate) -> bool {
        let [present, other] = [&self.present, candidate].map(|candidate| self.keys(candidate));
        ParallelKey::ALL.into_iter().any(|key| {
            let goes = present.contains_key(key.name()) && !other.contains_key(key.name());
            // What is computed again can be set to nothing.
            goes && key != ParallelKey::Recompute && !key.is_open(self.asked)
        })
    }

    fn way(&self, estimate: &Estimate) -> Way {
        let [present, other] = [&self.present, &estimate.candidate].map(|candidate| self.keys(candidate));
        // With other degrees a micro-batch that is left open is another one, too.
        let moves = estimate.candidate.degrees() != self.present.degrees();
        let follows = |key: &ParallelKey| moves && *key == ParallelKey::MicroBatch && key.is_open(self.asked);
        let differs = |key: &ParallelKey| present.get(key.name()) != other.get(key.name()) || follows(key);
        let word = |key: ParallelKey| match other.get(key.name()) {
            Some(value) => {
                Some(format!("parallel.{}={}", key.name(), value.as_str().map_or(value.to_string(), Into::into)))
            }
            // All else that a layout leaves out has no effect there.
            None if key == ParallelKey::Recompute => Some("parallel.recompute=none".into()),
            None => None,
        };
        let settings = ParallelKey::ALL.into_iter().filter(differs).filter_map(word).collect();
        Way { settings, bytes: estimate.largest().total() }
    }

    /// Writes a layout as keys of `[parallel]`.
    fn keys(&self, candidate: &Candidate) -> Map<String, Value> {
        match serde_json::to_value(candidate.parallel(self.job)) {
            Ok(Value::Object(keys)) => keys,
            other => unreachable!("a section is an object: {other:?}"),
        }
    }
}

/// Returns what is to be small: the predicted time, or where none is predicted the memory.
fn slowness(estimate: &Estimate) -> f64 {
    estimate.time.map_or(estimate.largest().total() as f64, |time| time.seconds)
}

/// Lists the choices in which two layouts differ.
fn changed(one: &Candidate, other: &Candidate) -> Vec<&'static str> {
    let degrees = one.degrees() != other.degrees();
    let piped = one.pp != other.pp;
    let choices = [
        ("degrees", degrees),
        ("micro_batch", one.micro_batch != other.micro_batch),
        ("zero", one.zero != other.zero),
        ("recompute", (one.recompute, one.recompute_every) != (other.recompute, other.recompute_every)),
        ("sequence_parallel", one.tp == other.tp && one.sequence_parallel != other.sequence_parallel),
        ("schedule", !piped && (one.schedule, one.chunks) != (other.schedule, other.chunks)),
    ];
    choices.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests;
