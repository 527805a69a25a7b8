//! Layouts whose stages were timed on a device at hand, beside what the model of time predicts of them: as programs read it
//! and as people do.

use std::fmt::Write;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{
    ranking::order,
    words::{aligned, runs, seconds, span},
    Architecture, Cluster, Ranked, Replayed, Spent, TimedStage,
};

/// What a job would take on a cluster if every device of it were the one at hand, as `mp-cli plan --simulate --json` writes
/// it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhatIf {
    /// The model.
    pub model: Architecture,
    /// The machine, whose links and messages are the model's.
    pub cluster: Cluster,
    /// What stages were timed on.
    pub device: Bench,
    /// The layouts, in the order in which the model of time has them.
    pub layouts: Vec<Simulated>,
}

/// What stages were timed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bench {
    /// What people call it, its threads included.
    pub name: String,
    /// Threads of the rank.
    pub threads: usize,
}

/// One layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Simulated {
    /// The layout and what the model of time predicts of it, whose keys stand beside these.
    #[serde(flatten)]
    pub predicted: Ranked,
    /// The step with the measured times.
    pub replayed: Replayed,
    /// What was measured, by virtual stage.
    pub stages: Vec<TimedStage>,
    /// What the update of the rank that owns most was measured to take.
    pub update_seconds: f64,
}

impl WhatIf {
    /// Writes tables for people.
    pub fn table(&self) -> String {
        let name = &self.device.name;
        let mut text = format!("as if every device were the one at hand ({name}), and links as the cluster's:\n\n");
        let head = ["", "tp", "pp", "dp", "cp", "schedule", "micro", "predicted", "replayed"];
        let head = head.into_iter().chain(Spent::NAMES).chain(["tokens/s", "MFU"]).map(str::to_owned).collect();
        let layouts = self.layouts.iter().enumerate().map(|(index, layout)| layout.row(index + 1));
        text += &aligned(&std::iter::once(head).chain(layouts).collect::<Vec<_>>(), &[]);
        text += "\none micro-batch through each virtual stage, on one rank:\n\n";
        let head =
            ["", "stages", "layers", "timed", "forward", "backward", "of it weights"].map(str::to_owned).to_vec();
        let stages = self.layouts.iter().enumerate().flat_map(|(index, layout)| layout.stage_rows(index + 1));
        text += &aligned(&std::iter::once(head).chain(stages).collect::<Vec<_>>(), &[]);
        if self.layouts.iter().flat_map(|layout| &layout.stages).any(|stage| stage.timed.len() > 1) {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "\nwhere two numbers of layers were timed, a whole stage has no room here or would take too long: its time is \
                 read from those two"
            );
        }
        text
    }
}

impl Simulated {
    fn row(&self, number: usize) -> Vec<String> {
        let (candidate, replayed) = (&self.predicted.candidate, &self.replayed);
        let degrees = [number, candidate.tp, candidate.pp, candidate.dp, candidate.cp].map(|degree| degree.to_string());
        let unknown = || "n/a".to_owned();
        let part = |part: f64| if part > 0.0 { seconds(part) } else { "-".to_owned() };
        degrees
            .into_iter()
            .chain([order(candidate), candidate.micro_batch.to_string()])
            .chain([self.predicted.step_seconds.map_or_else(unknown, seconds), seconds(replayed.seconds)])
            .chain(replayed.parts.parts().map(part))
            .chain([format!("{:.0}", replayed.tokens)])
            .chain([replayed.mfu.map_or_else(unknown, |mfu| format!("{:.1} %", 100.0 * mfu))])
            .collect()
    }

    /// Writes a row for each run of stages that were timed as one.
    fn stage_rows(&self, number: usize) -> Vec<Vec<String>> {
        let row = |(index, run): (usize, Range<usize>)| {
            let TimedStage { layers, timed, seconds: costs } = &self.stages[run.start];
            let number = if index == 0 { number.to_string() } else { String::new() };
            let timed = timed.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            let backward = costs.backward_input + costs.backward_weight;
            let weights = if costs.backward_weight > 0.0 { seconds(costs.backward_weight) } else { "-".to_owned() };
            vec![number, span(&run), layers.to_string(), timed, seconds(costs.forward), seconds(backward), weights]
        };
        runs(&self.stages).into_iter().enumerate().map(row).collect()
    }
}
