//! A layout as one page for people: a step in time, the memory of each rank, where the matrices lie, and the layouts beside it.
//!
//! The page is one HTML file without scripts and without anything from elsewhere, in light and dark as the reader's system is, and
//! is well-formed XML too. Its size is bounded whatever the layout: ranks of a pipeline have rows, their replicas are named, and
//! what is too much for a picture is drawn in columns or left out with a note.
//!
//! | file | is |
//! |---|---|
//! | `picture.rs` | what is shown of a layout |
//! | `picture/page.rs` | the page around the pictures, and the tables of layouts |
//! | `picture/timeline.rs` | a step in time, in blocks; `columns.rs` where those are too many |
//! | `picture/memory.rs` | bars by component, and the limit |
//! | `picture/matrices.rs` | slices of tensor ranks, layers of stages |
//! | `picture/{svg,parts,axis,rows}.rs` | what they are made of |

mod axis;
mod matrices;
mod memory;
mod page;
mod parts;
mod rows;
mod svg;
mod timeline;

use crate::{
    ranking::{aside, order, recompute},
    words::{scaled, seconds, size},
    Candidate, Cluster, CostModel, Estimate, Estimator, Found, Job, Partition, Plan, RankBytes, RankMemory, Result,
    Schedule, StepTimeline,
};

/// The components of a rank's memory, and those of them that belong to parameters.
const COMPONENTS: usize = RankMemory::NAMES.len();
const STORED: usize = 4;

/// What a page shows.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    candidate: Candidate,
    micro_batches: usize,
    notes: Vec<String>,
    timeline: StepTimeline,
    clock: Clock,
    memory: Vec<RankMemory>,
    /// Which components of it were counted.
    counted: [bool; COMPONENTS],
    limit: Option<usize>,
    plan: Plan,
    estimate: Option<Estimate>,
    found: Option<Found>,
}

/// In what a timeline counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    /// Seconds of a machine.
    Seconds,
    /// Forwards of a layer.
    Forwards,
}

/// What is said of a timeline without a machine's times.
const BY_FLOPS: &str =
    "Times in the first picture are FLOPs, counted in forwards of a layer: messages, collectives and updates \
                        take none there.";

impl Page {
    /// Shows the best layout that a search has found, and the others beside it; where none fits, the one that lacks least.
    ///
    /// # Errors
    /// As [`Candidate::check`].
    ///
    /// # Panics
    /// If the search has found nothing, of which [`search`](crate::search()) makes an error.
    pub fn of_found(job: &Job, cluster: &Cluster, costs: &dyn CostModel, found: &Found) -> Result<Self> {
        let best = found.layouts.first().or(found.misses.first()).expect("a search finds a layout, or fails");
        let candidate = best.candidate;
        let tied = job.architecture.tie_embeddings;
        let micro_batches = candidate.micro_batches(job);
        let schedule = Schedule::new(candidate.schedule, candidate.stages(job)?, micro_batches, tied)?;
        let elements = job.architecture.parameter_count() as f64;
        let partition = Partition::new(&job.architecture, &candidate.mesh()?)?;
        let mut notes = vec![said(job, cluster, candidate.ranks())];
        if !best.fits() {
            notes.push("This layout does not fit: no layout does, and it lacks least.".to_owned());
        }
        let (timeline, clock) = match Estimator::new(job, cluster, costs).step_timeline(&candidate)? {
            Some(timeline) => (timeline, Clock::Seconds),
            None => {
                notes.push(format!("The device's rate is unknown. {BY_FLOPS}"));
                (StepTimeline::by_flops(&schedule, &job.architecture, job.seq, &candidate), Clock::Forwards)
            }
        };
        if clock == Clock::Seconds && candidate.zero >= crate::Zero::Gradients {
            let note = "What ranks wait for their data ranks in each pass is drawn in one piece, at the end.";
            notes.push(note.to_owned());
        }
        Ok(Self {
            title: format!("{} parameters on {} × {}", scaled(elements), candidate.ranks(), cluster.device.name),
            candidate,
            micro_batches,
            notes,
            timeline,
            clock,
            memory: best.memory.clone(),
            counted: [true; COMPONENTS],
            limit: Some(best.limit),
            plan: Plan::new(&partition, job.storage()).cut(&partition, &schedule, candidate.zero),
            estimate: Some(best.clone()),
            found: Some(found.clone()),
        })
    }

    /// Shows a layout on no machine in particular: its memory with what passes keep, where the plan has it, else what lies
    /// there between steps alone.
    ///
    /// # Panics
    /// If plan and schedule are not of one layout.
    pub fn of_layout(plan: Plan, schedule: &Schedule, seq: usize) -> Self {
        let candidate = plan.candidate();
        let mut notes = vec![format!("No machine was named. {BY_FLOPS}")];
        let passes = !plan.memory.is_empty();
        if !passes {
            notes
                .push("Memory is that of parameters and what belongs to them; what passes keep is not counted.".into());
        }
        let parameters = scaled(plan.elements as f64);
        let ranks = plan.mesh.size();
        Self {
            title: format!("{parameters} parameters over {ranks} {}", if ranks == 1 { "rank" } else { "ranks" }),
            candidate,
            micro_batches: schedule.micro_batches,
            notes,
            timeline: StepTimeline::by_flops(schedule, &plan.architecture, seq, &candidate),
            clock: Clock::Forwards,
            memory: if passes { plan.memory.clone() } else { stored(&plan) },
            counted: std::array::from_fn(|component| passes || component < STORED),
            limit: None,
            plan,
            estimate: None,
            found: None,
        }
    }

    /// Writes the page.
    pub fn html(&self) -> String {
        page::html(self)
    }

    /// Writes the first picture alone, the step in time, as an SVG file with its own style.
    pub fn timeline_svg(&self) -> String {
        timeline::svg(&self.timeline, self.clock).replacen(
            "<title ",
            &format!("<style>\n{}</style>\n{}<title ", page::STYLE, page::PATTERN),
            1,
        )
    }

    /// Lists what is shown in numbers.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let Candidate { micro_batch, zero, sequence_parallel, .. } = self.candidate;
        let mut facts = vec![
            ("mesh", self.candidate.degrees().to_string()),
            ("replicas", replicas(&self.candidate)),
            ("schedule", order(&self.candidate)),
            ("micro-batches", format!("{} of {micro_batch}", self.micro_batches)),
            ("ZeRO stage", zero.to_string()),
            ("recompute", recompute(&self.candidate)),
            ("sequence", if sequence_parallel { "cut over tensor ranks" } else { "whole" }.to_owned()),
        ];
        if let Some(time) = self.estimate.as_ref().and_then(|estimate| estimate.time) {
            facts.push(("step", seconds(time.seconds)));
            facts.push(("tokens/s a device", format!("{:.0}", time.tokens)));
            facts.push(("model TFLOP/s a device", format!("{:.1}", time.model_flops / 1e12)));
            facts.push(("MFU", format!("{:.1} %", 100.0 * time.mfu)));
            facts.push(("bubble", format!("{:.1} %", 100.0 * time.bubble)));
        }
        let fullest = self.memory.iter().map(RankMemory::total).max().unwrap_or(0);
        facts.push(("fullest rank", size(fullest)));
        facts
    }
}

/// Says what is trained, and on what.
fn said(job: &Job, cluster: &Cluster, ranks: usize) -> String {
    let precision = job.precision.name();
    let devices = match cluster.node.devices.min(ranks) {
        1 => "Each device is a node".to_owned(),
        devices => format!("{devices} devices share a node"),
    };
    let (batch, seq, memory) = (job.global_batch, job.seq, size(cluster.rank_memory()));
    format!(
        "Trained in {precision}, with {batch} sequences of {seq} tokens a step. {devices}; a rank may fill {memory}: {}.",
        aside(&cluster.room())
    )
}

/// Takes what each rank of a pipeline stores between steps.
fn stored(plan: &Plan) -> Vec<RankMemory> {
    let of = |bytes: &RankBytes| RankMemory {
        parameters: bytes.parameters,
        gradients: bytes.gradients,
        master: bytes.master,
        moments: bytes.moments,
        ..RankMemory::default()
    };
    match plan.stages.as_slice() {
        [] => vec![of(&plan.rank_bytes)],
        stages => stages.iter().map(|stages| of(&stages.bytes)).collect(),
    }
}

/// Says how many ranks hold the same.
fn replicas(candidate: &Candidate) -> String {
    match candidate.data() {
        1 => "none".to_owned(),
        data => format!("{data} ranks hold each part"),
    }
}

impl Clock {
    /// Chooses the unit in which times up to `end` have digits before the point, with its name.
    fn unit(self, end: f64) -> (f64, &'static str) {
        match self {
            Self::Forwards => (1.0, "forwards of a layer"),
            Self::Seconds if end >= 2.0 => (1.0, "seconds"),
            Self::Seconds if end >= 2e-3 => (1e-3, "milliseconds"),
            Self::Seconds => (1e-6, "microseconds"),
        }
    }

    /// Writes a time.
    fn write(self, time: f64) -> String {
        match self {
            Self::Forwards => format!("{time:.1}"),
            Self::Seconds => seconds(time),
        }
    }
}
