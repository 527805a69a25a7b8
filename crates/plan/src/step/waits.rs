//! What ranks of a layout wait for each other outside a layer: messages between stages, sums over the data ranks, and what
//! ends a step: sums over tensor ranks of gradients that each has a part of, and the few numbers on which ranks agree.

use crate::{
    cost::{Collective, Group, Terms},
    memory::{Elements, Partial, Pieces},
    step::Estimator,
    Axis, Candidate, Job, Stages, Zero,
};

/// Bytes of a squared norm and of a loss.
const NUMBER: f64 = 8.0;
/// Bytes of what all ranks tell each other at the end of a step: whether loss and norm are numbers, and what was read.
const READ: f64 = 40.0;

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
        let each = |what, buckets: f64, bytes: f64| buckets * self.costs.collective(what, bytes / buckets, group);
        let collective = |what, bytes: f64| each(what, buckets, bytes);
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
                let scattered = collective(Collective::ReduceScatter, gradients);
                let Pieces { count, elements: embedded } = elements.entrance;
                let entrance = match count {
                    0 => 0.0,
                    count => {
                        let bytes = (embedded * self.job.precision.parameter_bytes()) as f64;
                        each(Collective::AllGather, count as f64, bytes)
                    }
                };
                let gathered = collective(Collective::AllGather, values);
                // The entrance's backward multiplies by nothing; its table, where it is the head too, is there for the exit as well.
                let (first, second) = match self.job.architecture.tie_embeddings {
                    true => (gathered + entrance, gathered),
                    false => (gathered, gathered - entrance),
                };
                micro_batches as f64 * (behind(first, forward) + behind(second + scattered, last))
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

    /// Returns what a rank takes to complete gradients that its tensor ranks have parts of: to put them side by side, to sum, and
    /// to copy them back.
    pub(super) fn completion(&self, candidate: &Candidate, elements: &Elements) -> Terms {
        let tensor = Group::of(candidate.neighbours(Axis::Tp, self.cluster.node.devices));
        let Partial { cut, shared, sharers } = elements.partial;
        let parts = if candidate.zero >= Zero::Optimizer { candidate.data() } else { 1 };
        let sum = |Pieces { count, elements }: Pieces, size: usize| {
            if count == 0 || size <= 1 {
                return Terms::default();
            }
            let bytes = (elements * self.job.precision.state_bytes()) as f64 / parts as f64;
            let group = Group { size, neighbours: tensor.neighbours.min(size) };
            Terms {
                tensor: self.costs.collective(Collective::AllReduce, bytes, group),
                data: self.costs.memory(4.0 * bytes, 1 + count.div_ceil(parts)),
                ..Terms::default()
            }
        };
        let cut = if candidate.sequence_parallel { sum(cut, tensor.size) } else { Terms::default() };
        cut + sum(shared, sharers)
    }

    /// Returns the time in which ranks agree: on the gradient's norm those that own different elements of it, tensor ranks, data
    /// ranks with parts of their own, and stages; on the loss data ranks and stages; and all on whether both are numbers.
    ///
    /// Stages come to the first of these when they are done, so that it is where they wait for each other.
    pub(super) fn agreement(&self, candidate: &Candidate) -> Terms {
        let devices = self.cluster.node.devices;
        let sum = |bytes: f64, group| self.costs.collective(Collective::AllReduce, bytes, group);
        let number = |axis| sum(NUMBER, Group::of(candidate.neighbours(axis, devices)));
        let own = if candidate.zero >= Zero::Optimizer { 2.0 } else { 1.0 };
        let world = Group { size: candidate.ranks(), neighbours: devices.min(candidate.ranks()) };
        Terms {
            data: number(Axis::Tp) + own * number(Axis::Dp) + sum(READ, world),
            bubble: 2.0 * number(Axis::Pp),
            ..Terms::default()
        }
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
