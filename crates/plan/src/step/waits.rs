//! What ranks of a layout wait for each other outside a layer: messages between stages, sums over the data ranks, and what
//! ends a step.

use crate::{
    cost::{Collective, Group},
    memory::Elements,
    step::Estimator,
    Axis, Candidate, Job, Stages, Zero,
};

impl Estimator<'_> {
    /// Returns the time of a message between stages.
    pub(super) fn transfer(&self, candidate: &Candidate) -> f64 {
        let devices = self.cluster.node.devices;
        let (degree, neighbours) = candidate.neighbours(Axis::Pp, devices);
        let inside = neighbours == degree;
        let whole = (candidate.tokens(self.job) * self.job.architecture.hidden) as f64
            * self.job.precision.parameter_bytes() as f64;
        if candidate.sequence_parallel {
            return self.costs.message(whole / candidate.tp as f64, inside);
        }
        if !self.job.executor.scatters {
            return self.costs.message(whole, inside);
        }
        let tensor = Group::of(candidate.neighbours(Axis::Tp, devices));
        self.costs.message(whole / candidate.tp as f64, inside)
            + self.costs.collective(Collective::AllGather, whole, tensor)
    }

    /// Returns what a rank waits for its gradients' sums over the data ranks, `last` seconds of backward in front of which
    /// hide what is ready: all but the last bucket.
    pub(super) fn reduction(
        &self,
        candidate: &Candidate,
        elements: &Elements,
        last: f64,
        work: f64,
        micro_batches: usize,
    ) -> f64 {
        let group = Group::of(candidate.neighbours(Axis::Dp, self.cluster.node.devices));
        if group.size == 1 {
            return 0.0;
        }
        let buckets = elements.buckets.max(1) as f64;
        let collective = |what, bytes: f64| buckets * self.costs.collective(what, bytes / buckets, group);
        let gradients = (elements.all * self.job.precision.state_bytes()) as f64;
        let values = (elements.all * self.job.precision.parameter_bytes()) as f64;
        let hides = if self.job.executor.hides_data { self.costs.overlap() } else { 0.0 };
        let behind = |time: f64, window: f64| {
            let hidden = (window * (1.0 - 1.0 / buckets)).min(hides * time);
            (time - hidden).max(time / buckets)
        };
        match candidate.zero {
            Zero::Replicated => behind(collective(Collective::AllReduce, gradients), last),
            Zero::Optimizer => {
                behind(collective(Collective::ReduceScatter, gradients), last)
                    + collective(Collective::AllGather, values)
            }
            Zero::Gradients => {
                micro_batches as f64 * behind(collective(Collective::ReduceScatter, gradients), last)
                    + collective(Collective::AllGather, values)
            }
            Zero::Parameters => {
                let forward = work - last;
                let gathered = collective(Collective::AllGather, values);
                let scattered = collective(Collective::ReduceScatter, gradients);
                micro_batches as f64 * (behind(gathered, forward) + behind(gathered + scattered, last))
            }
        }
    }

    /// Returns the time of the sum over the two ranks of a table that is both embedding and head.
    pub(super) fn ends_of_table(&self, candidate: &Candidate, stages: &Stages) -> f64 {
        let architecture = &self.job.architecture;
        if !architecture.tie_embeddings || stages.tied_ranks().is_none() {
            return 0.0;
        }
        let rows = architecture.vocab.div_ceil(candidate.tp);
        let bytes = (rows * architecture.hidden * self.job.precision.state_bytes()) as f64;
        let (degree, neighbours) = candidate.neighbours(Axis::Pp, self.cluster.node.devices);
        let group = Group { size: 2, neighbours: if neighbours == degree { 2 } else { 1 } };
        self.costs.collective(Collective::AllReduce, bytes, group)
    }

    /// Returns the time in which all ranks agree on the gradient's norm and on the loss.
    pub(super) fn norm(&self, candidate: &Candidate) -> f64 {
        let devices = self.cluster.node.devices;
        let group = Group { size: candidate.ranks(), neighbours: devices.min(candidate.ranks()) };
        2.0 * self.costs.collective(Collective::AllReduce, 8.0, group)
    }

    /// Returns the time of clearing, measuring, clipping and applying a rank's gradients.
    pub(super) fn update(&self, candidate: &Candidate, elements: &Elements) -> f64 {
        let Job { precision, moments, .. } = self.job;
        let (value, state) = (precision.parameter_bytes(), precision.state_bytes());
        let masters = if precision.has_master() { 2 * state + value } else { 2 * value };
        // Read for the norm, scaled, read for the update; what is updated is read and written.
        let own = elements.own * (4 * state + masters + 2 * moments * state);
        let cleared = if candidate.zero >= Zero::Gradients { elements.own } else { elements.all };
        self.costs.memory((own + cleared * state) as f64, 4)
    }
}
