//! A layout in one line, as a run says it first: the degrees, and of the options those that do something.

use mp_model::context::Form;
use mp_model::recompute::Recompute;
use mp_model::regions::Between;
use mp_plan::words::counted;
use mp_plan::{Axis, Zero};

use super::Layout;
use crate::config::Precision;

impl Layout {
    /// Writes in words what cuts model and batch, and the numbers it is trained in: `pp=2 × dp=1 × tp=2, schedule zb-v with
    /// 2 chunks, 8 micro-batches, sequence parallel, bf16` for instance. What is not in use is not spoken of.
    pub fn words(&self, precision: Precision) -> String {
        let mesh = &self.partition.mesh;
        let spoken = |axis: &Axis| matches!(axis, Axis::Dp | Axis::Tp) || mesh.degree(*axis) > 1;
        let axes = [Axis::Pp, Axis::Dp, Axis::Cp, Axis::Tp].into_iter().filter(spoken);
        let degrees: Vec<String> = axes.map(|axis| format!("{axis}={}", mesh.degree(axis))).collect();
        let mut words = vec![degrees.join(" × ")];
        words.extend(self.pipeline());
        let micro_batches = self.batches.micro_batches();
        if micro_batches > 1 {
            words.push(counted(micro_batches, "micro-batch"));
        }
        if self.form == Form::AllToAll {
            words.push("all-to-all".into());
        }
        if self.between == Between::SequenceSharded {
            words.push("sequence parallel".into());
        }
        if self.zero > Zero::Replicated {
            words.push(format!("ZeRO {}", self.zero));
        }
        match self.recompute {
            Recompute::None => {}
            Recompute::Selective => words.push("recompute selective".into()),
            Recompute::Full { every: 1 } => words.push("recompute full".into()),
            Recompute::Full { every } => words.push(format!("recompute full every {every} layers")),
        }
        if precision != Precision::Fp32 {
            words.push(precision.name().into());
        }
        words.join(", ")
    }

    /// Names the schedule, where there are several stages.
    fn pipeline(&self) -> Option<String> {
        let (name, stages) = (self.schedule.name, &self.schedule.stages);
        match (stages.pp(), stages.chunks()) {
            (1, _) => None,
            (_, 1) => Some(format!("schedule {name}")),
            (_, chunks) => Some(format!("schedule {name} with {chunks} chunks")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn words(sets: &[&str], world: usize) -> String {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        let config = Config::load(None, None, &sets).unwrap();
        Layout::new(&config, 256, world).unwrap().words(config.train.precision)
    }

    #[test]
    fn what_does_something_is_named_and_nothing_else() {
        assert_eq!(words(&[], 1), "dp=1 × tp=1");
        assert_eq!(words(&[], 4), "dp=2 × tp=2, sequence parallel");
        assert_eq!(
            words(&["parallel.sequence_parallel=false", "parallel.micro_batch=8"], 2),
            "dp=1 × tp=2, 2 micro-batches"
        );
        assert_eq!(
            words(&["parallel.pp=2", "parallel.tp=1", "parallel.schedule=zb-v", "train.precision=bf16"], 2),
            "pp=2 × dp=1 × tp=1, schedule zb-v with 2 chunks, 8 micro-batches, bf16"
        );
        assert_eq!(
            words(
                &["parallel.pp=2", "parallel.tp=1", "parallel.cp=2", "parallel.zero=1", "parallel.recompute=full"],
                4
            ),
            "pp=2 × dp=1 × cp=2 × tp=1, schedule 1f1b, 8 micro-batches, ZeRO 1, recompute full"
        );
        assert_eq!(
            words(
                &[
                    "parallel.cp=2",
                    "parallel.context=all-to-all",
                    "parallel.recompute=full",
                    "parallel.recompute_every=2"
                ],
                2
            ),
            "dp=1 × cp=2 × tp=1, all-to-all, recompute full every 2 layers"
        );
        assert_eq!(
            words(&["model.dropout=0.1", "parallel.recompute=selective"], 1),
            "dp=1 × tp=1, recompute selective"
        );
    }
}
