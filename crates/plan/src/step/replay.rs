//! A step replayed from what its stages were seen to take on some device: the schedule's lists with those times, and from
//! the machine's model everything that ranks wait for each other.
//!
//! A stage that is timed alone has computation in it and nothing else. What its collectives are waited for is added as the
//! model of time has it: a collective that travels behind a product is waited for by what is longer than that product, and
//! products are taken to be as much slower or faster than predicted as the whole stage is. So a replay with the times that
//! the model itself predicts is the model's own step.

use serde::{Deserialize, Serialize};

use crate::{
    cost::{
        layer::{Parts, Passes},
        Collective, CostModel, Group, Terms,
    },
    step::{timeline::Timeline, Estimator},
    Candidate, Error, Precision, RecomputeName, Result, Schedule, StageCosts, Stages,
};

/// What tells products from each other where the machine's own rate is unknown; it cancels out.
const ANY_RATE: f64 = 1e12;

/// A step replayed from measured stages.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replayed {
    /// All of it.
    ///
    /// # Units
    /// Seconds.
    pub seconds: f64,
    /// What the busiest rank of the pipeline spends it on; the parts sum to the whole.
    pub parts: Spent,
    /// The idle share of the pipeline, as [`StepTime::bubble`](crate::StepTime::bubble).
    pub bubble: f64,
    /// Tokens by second and device.
    pub tokens: f64,
    /// Model FLOPs by second and device.
    pub model_flops: f64,
    /// Model FLOPs and those computed again, by second and device.
    pub hardware_flops: f64,
    /// Model FLOPs over the peak of the device on which stages were timed; `None` until that is [known](Self::with_peak).
    pub mfu: Option<f64>,
}

impl Replayed {
    /// Adds the utilisation of a device with such a peak, FLOP a second: of the one on which stages were timed, as
    /// [`Cluster::measured_peak`](crate::Cluster::measured_peak) knows it, and not of the machine that is replayed.
    #[must_use]
    pub fn with_peak(self, peak: Option<f64>) -> Self {
        Self { mfu: peak.map(|peak| self.model_flops / peak), ..self }
    }
}

/// Time of a replayed step by what it is spent on.
///
/// # Units
/// Seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    /// Measured: forwards and backwards, with what the backward computes again.
    pub computation: f64,
    /// Waiting for collectives of the tensor group.
    pub tensor: f64,
    /// Waiting for messages of the context group.
    pub context: f64,
    /// Waiting for other stages.
    pub bubble: f64,
    /// Waiting for collectives of the data ranks, and for the table at both ends.
    pub data: f64,
    /// Measured: the optimizer's update.
    pub optimizer: f64,
}

impl Spent {
    /// The names of the parts, as people read them.
    pub const NAMES: [&'static str; 6] = ["computation", "tensor", "context", "bubble", "data", "optimizer"];

    /// Returns the parts in the order of [`NAMES`](Self::NAMES).
    pub fn parts(&self) -> [f64; 6] {
        [self.computation, self.tensor, self.context, self.bubble, self.data, self.optimizer]
    }

    /// Adds everything up.
    pub fn total(&self) -> f64 {
        self.parts().iter().sum()
    }
}

impl From<Terms> for Spent {
    fn from(terms: Terms) -> Self {
        let Terms { products, attention, elements, tensor, context, recompute, bubble, data, optimizer } = terms;
        Self { computation: products + attention + elements + recompute, tensor, context, bubble, data, optimizer }
    }
}

impl Estimator<'_> {
    /// Replays a layout's step: `stages` are what the computation of each virtual stage takes for one micro-batch on one
    /// rank, without anything that is waited for, `update` what clearing, measuring, clipping and applying the gradients of
    /// the rank with the most of them takes.
    ///
    /// The device's peak need not be known.
    ///
    /// # Errors
    /// As [`Candidate::check`]; [`Error::MeasuredStages`] unless there is one entry for each virtual stage,
    /// [`Error::MeasuredTime`] for a time that is none.
    ///
    /// # Examples
    ///
    /// ```
    /// use mp_plan::{published, Analytic, Candidate, Estimator, StageCosts};
    ///
    /// let row = published::rows()[0];
    /// let (job, cluster) = (row.job()?, row.cluster()?);
    /// let (costs, layout) = (Analytic::new(&cluster), Candidate { micro_batch: 16, ..Candidate::default() });
    /// let mut estimator = Estimator::new(&job, &cluster, &costs);
    /// // 32 micro-batches of 3 seconds on one rank.
    /// let stage = StageCosts { forward: 1.0, backward_input: 1.5, backward_weight: 0.5 };
    /// let replayed = estimator.replay(&layout, &[stage], 0.25)?;
    /// assert_eq!(replayed.seconds, 32.0 * 3.0 + 0.25);
    /// # Ok::<(), mp_plan::Error>(())
    /// ```
    pub fn replay(&mut self, candidate: &Candidate, stages: &[StageCosts], update: f64) -> Result<Replayed> {
        candidate.check(self.job)?;
        let cut = candidate.stages(self.job)?;
        check(stages, &cut, update)?;
        let orders = Schedule::orders(candidate.schedule, &cut, candidate.micro_batches(self.job))?;
        let passes = stages.iter().enumerate().map(|(stage, seen)| self.seen(candidate, &cut, stage, seen)).collect();
        let times = self.between(candidate, &cut, passes);
        let Timeline { seconds, ranks, busiest, bubble } =
            self.timeline_of(candidate, &cut, &orders, &times, Some(update))?;
        let tokens = self.tokens(candidate, seconds);
        let model = self.job.architecture.flops_per_token(self.job.seq);
        Ok(Replayed {
            seconds,
            parts: ranks[busiest].into(),
            bubble,
            tokens,
            model_flops: tokens * model,
            hardware_flops: tokens * (model + self.repeated_flops(candidate, &cut)),
            mfu: None,
        })
    }

    /// Makes a stage's passes of what its computation was seen to take, and of what is waited for in it.
    fn seen(&self, candidate: &Candidate, stages: &Stages, stage: usize, seen: &StageCosts) -> Passes {
        let parts = |pace: f64, silent: bool| {
            let costs = AtPace { costs: self.costs, pace, silent };
            Parts::of(self.job, candidate, &costs, self.cluster.node.devices)
        };
        let predicted = parts(1.0, true).stage(candidate, stages, stage).total();
        let measured = seen.forward + seen.backward_input + seen.backward_weight;
        let pace = if predicted > 0.0 { measured / predicted } else { 1.0 };
        let mut waits = waits(candidate, &parts(pace, false), &parts(pace, true)).stage(candidate, stages, stage);
        waits.forward.products += seen.forward;
        waits.input.products += seen.backward_input;
        waits.weight.products += seen.backward_weight;
        waits
    }
}

/// Refuses what no stages can have taken.
fn check(stages: &[StageCosts], cut: &Stages, update: f64) -> Result<()> {
    let times = |costs: &StageCosts| [costs.forward, costs.backward_input, costs.backward_weight];
    if stages.len() != cut.count() {
        return Err(Error::MeasuredStages { given: stages.len(), stages: cut.count() });
    }
    let mut times = stages.iter().flat_map(times).chain([update]);
    match times.find(|time| !(time.is_finite() && *time >= 0.0)) {
        None => Ok(()),
        Some(seconds) => Err(Error::MeasuredTime { seconds }),
    }
}

/// Takes what is waited for in the parts of a model: what they take less what they take where nothing is sent.
fn waits(candidate: &Candidate, full: &Parts, silent: &Parts) -> Parts {
    let terms = |full: Terms, silent: Terms| Terms {
        tensor: (full.tensor - silent.tensor).max(0.0),
        context: (full.context - silent.context).max(0.0),
        ..Terms::default()
    };
    let passes = |full: &Passes, silent: &Passes| Passes {
        forward: terms(full.forward, silent.forward),
        input: terms(full.input, silent.input),
        weight: terms(full.weight, silent.weight),
    };
    let layer = passes(&full.layer, &silent.layer);
    // A layer that is computed again communicates again.
    let again = if candidate.recompute == RecomputeName::Full { layer.forward } else { Terms::default() };
    Parts { layer, again, entrance: passes(&full.entrance, &silent.entrance), exit: passes(&full.exit, &silent.exit) }
}

/// A machine that computes at another pace, and perhaps sends in no time.
struct AtPace<'a> {
    costs: &'a dyn CostModel,
    /// What computation takes, in parts of what the machine takes.
    pace: f64,
    silent: bool,
}

impl CostModel for AtPace<'_> {
    fn peak(&self, precision: Precision) -> Option<f64> {
        self.costs.peak(precision)
    }

    fn product(&self, count: usize, shape: [usize; 3], precision: Precision) -> f64 {
        let seconds = match self.costs.peak(precision) {
            Some(_) => self.costs.product(count, shape, precision),
            None => 2.0 * (count as f64) * shape.iter().map(|&len| len as f64).product::<f64>() / ANY_RATE,
        };
        self.pace * seconds
    }

    fn attention(&self, flop: f64, precision: Precision) -> Option<f64> {
        self.costs.attention(flop, precision).map(|seconds| self.pace * seconds)
    }

    fn memory(&self, bytes: f64, starts: usize) -> f64 {
        self.pace * self.costs.memory(bytes, starts)
    }

    fn collective(&self, what: Collective, bytes: f64, group: Group) -> f64 {
        if self.silent {
            0.0
        } else {
            self.costs.collective(what, bytes, group)
        }
    }

    fn message(&self, bytes: f64, inside_node: bool) -> f64 {
        if self.silent {
            0.0
        } else {
            self.costs.message(bytes, inside_node)
        }
    }

    fn overlap(&self) -> f64 {
        self.costs.overlap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::measured::Points;
    use crate::{Analytic, Architecture, Cluster, ContextForm, Executor, Job, ModelConfig, Space};

    fn job(context: ContextForm, executor: Executor) -> Job {
        let model = ModelConfig { hidden: 512, layers: 4, heads: 8, ffn: 2048, ..ModelConfig::default() };
        Job {
            architecture: Architecture::resolve(&model, 4096, 512).unwrap(),
            seq: 512,
            global_batch: 16,
            precision: Precision::Bf16,
            moments: 2,
            bucket_elements: 1 << 18,
            context,
            within_documents: false,
            split: Vec::new(),
            executor,
        }
    }

    /// Neither a data sheet's peak nor another device's is that of the device that stages were timed on.
    #[test]
    fn utilisation_is_of_a_device_that_was_measured() {
        let mut cluster = Cluster::preset("h100").unwrap().with_ranks(1);
        let (job, costs) = (job(ContextForm::Ring, Executor::ENGINE), Analytic::new(&cluster));
        let stage = StageCosts { forward: 1.0, backward_input: 1.0, backward_weight: 1.0 };
        let replayed = Estimator::new(&job, &cluster, &costs).replay(&Candidate::default(), &[stage], 1.0).unwrap();
        let mfu =
            |cluster: &Cluster, device: &str| replayed.with_peak(cluster.measured_peak(device, Precision::Bf16)).mfu;
        assert_eq!(mfu(&cluster, "H100-SXM"), None, "a data sheet");
        cluster.measured = Some(Points::default());
        assert_eq!(mfu(&cluster, "H100-SXM"), Some(replayed.model_flops / 989e12));
        assert_eq!(mfu(&cluster, "H200"), None, "another device");
        cluster.device.peak.bf16 = None;
        assert_eq!(mfu(&cluster, "H100-SXM"), None, "not measured in this precision");
    }

    /// What is waited for, taken from the whole and added again, is what it was.
    #[test]
    fn stages_that_take_what_the_model_says_make_the_models_step() {
        let mut cluster = Cluster::preset("h100").unwrap().with_ranks(8);
        cluster.node.devices = 4;
        // So slow that hardly anything hides, and so fast that almost all does.
        for (bandwidth, overlap, context, executor) in [
            (0.01, 1.0, ContextForm::Ring, Executor::ENGINE),
            (1.0, 1.0, ContextForm::Ring, Executor::ENGINE),
            (0.1, 0.25, ContextForm::Ring, Executor::ENGINE),
            (0.1, 1.0, ContextForm::AllToAll, Executor::ENGINE),
            (0.1, 1.0, ContextForm::Ring, Executor::MEGATRON_2021),
        ] {
            let mut cluster = cluster.clone();
            cluster.efficiency.overlap = overlap;
            cluster.node.bandwidth *= bandwidth;
            cluster.network.bandwidth *= bandwidth;
            let (job, costs) = (job(context, executor), Analytic::new(&cluster));
            let mut estimator = Estimator::new(&job, &cluster, &costs);
            for candidate in Space::of(&job, 8).candidates(&job, 8) {
                let stages = candidate.stages(&job).unwrap();
                let silent = AtPace { costs: &costs, pace: 1.0, silent: true };
                let parts = Parts::of(&job, &candidate, &silent, cluster.node.devices);
                let seen = |stage: usize| {
                    let passes = parts.stage(&candidate, &stages, stage);
                    StageCosts {
                        forward: passes.forward.total(),
                        backward_input: passes.input.total(),
                        backward_weight: passes.weight.total(),
                    }
                };
                let seen: Vec<StageCosts> = (0..stages.count()).map(seen).collect();
                let time = estimator.estimate(&candidate).unwrap().time.unwrap();
                let replayed = estimator.replay(&candidate, &seen, time.terms.optimizer).unwrap();
                // Sums of the same numbers in another order.
                let close = |one: f64, other: f64| (one - other).abs() <= 1e-9 * time.seconds;
                assert!(close(replayed.seconds, time.seconds), "{candidate:?}: {replayed:?} {time:?}");
                assert!(close(replayed.parts.total(), replayed.seconds), "{candidate:?}: {replayed:?}");
                assert!((replayed.bubble - time.bubble).abs() < 1e-9, "{candidate:?}: {replayed:?} {time:?}");
                assert!((replayed.hardware_flops / time.hardware_flops - 1.0).abs() < 1e-9, "{candidate:?}");
            }
        }
    }
}
