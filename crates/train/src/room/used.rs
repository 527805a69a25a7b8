//! A model that is used and not trained is no layout of the planner's: its weights are counted, and what becomes of them in
//! another precision and under other degrees.

use mp_plan::words::{counted, size};
use mp_plan::{Axis, Degrees, Zero};

use super::{refusal, worded, Way, MOST};
use crate::config::Precision;
use crate::layout::Layout;
use crate::{Config, Error, Result};

/// A model that is used on a device.
pub(crate) struct Used<'a> {
    pub config: &'a Config,
    pub layout: &'a Layout,
    /// How many ranks share a device.
    pub sharing: usize,
    /// The rank's stage of the pipeline.
    pub stage: usize,
}

impl Used<'_> {
    /// Adds what the weights take and what would fit to an error of a device without memory; leaves others as they are.
    /// `cut` cuts the model as another configuration says, where it can be.
    pub(crate) fn explain(&self, error: Error, cut: impl Fn(&Config) -> Result<Layout>) -> Error {
        let Some(refusal) = refusal(&error) else { return error };
        let own = weights(self.config, self.layout, self.stage);
        let usable = refusal.total / self.sharing.max(1);
        // Weights are asked for in one piece: what is free of it is not lacking.
        let lacking = refusal.asked.saturating_sub(refusal.free).max(1);
        let room = own.saturating_sub(lacking).min(usable);
        let way_out = match self.ways(room, cut) {
            ways if ways.is_empty() => format!(
                "no layout of {} keeps weights of less than {}: start more ranks, or compute on the host (train.device=cpu)",
                counted(self.layout.partition.mesh.size(), "rank"),
                size(room)
            ),
            ways => worded(&ways),
        };
        Error::DeviceMemory { source: Box::new(error), kept: self.kept(), way_out }
    }

    /// Adds what the weights take to an error that a device without memory gave to `batch` texts at a time.
    pub(crate) fn explain_pass(&self, error: Error, batch: usize) -> Error {
        if refusal(&error).is_none() {
            return error;
        }
        let kept = self.kept();
        let fewer = if batch > 1 { format!("take less at a time (`--batch`, {batch} now), ") } else { String::new() };
        let way_out = format!("{fewer}shorten the texts, or cut the model over more ranks (`parallel.tp`)");
        Error::DeviceMemory { source: Box::new(error), kept, way_out }
    }

    fn kept(&self) -> String {
        let bytes = weights(self.config, self.layout, self.stage);
        format!("{} of weights in {}", size(bytes), self.config.train.precision.name())
    }

    /// Finds settings by which the weights of every rank are at most `room`, those that change least first.
    fn ways(&self, room: usize, cut: impl Fn(&Config) -> Result<Layout>) -> Vec<Way> {
        let ranks = self.layout.partition.mesh.size();
        let mut configs = Vec::new();
        if self.config.train.precision != Precision::Bf16 {
            let mut config = self.config.clone();
            config.train.precision = Precision::Bf16;
            configs.push((vec!["train.precision=bf16".to_string()], config));
        }
        let Degrees { tp, pp, .. } = self.layout.partition.mesh.degrees();
        for (other_tp, other_pp) in (1..=ranks).flat_map(|tp| (1..=ranks / tp).map(move |pp| (tp, pp))) {
            let fewer = other_tp * other_pp > tp * pp;
            if fewer && ranks.is_multiple_of(other_tp * other_pp) {
                let mut config = self.config.clone();
                let parallel = &mut config.parallel;
                // What is fixed of the data ranks follows; what is open does so by itself.
                let fixed = parallel.dp;
                let dp = if fixed > 0 { ranks / (other_tp * other_pp * parallel.cp.max(1)) } else { 0 };
                (parallel.tp, parallel.pp, parallel.dp) = (other_tp, other_pp, dp);
                let settings = [("tp", other_tp, tp), ("pp", other_pp, pp), ("dp", dp, fixed)].into_iter();
                let settings = settings.filter(|(_, other, present)| other != present);
                configs.push((settings.map(|(name, other, _)| format!("parallel.{name}={other}")).collect(), config));
            }
        }
        let fits = |(settings, config): (Vec<String>, Config)| {
            let layout = cut(&config).ok()?;
            let stages = 0..layout.partition.mesh.degree(Axis::Pp);
            let bytes = stages.map(|stage| weights(&config, &layout, stage)).max()?;
            (bytes <= room).then_some(Way { settings, bytes })
        };
        let mut ways: Vec<Way> = configs.into_iter().filter_map(fits).collect();
        ways.sort_by_key(|way| (way.settings.len(), std::cmp::Reverse(way.bytes)));
        ways.truncate(MOST);
        ways
    }
}

/// Counts the bytes of the weights of one rank of the pipeline.
fn weights(config: &Config, layout: &Layout, stage: usize) -> usize {
    let mesh = &layout.partition.mesh;
    let parts = if layout.zero == Zero::Parameters { mesh.degree(Axis::Dp) * mesh.degree(Axis::Cp) } else { 1 };
    let elements = layout.of_rank(stage).local_elements();
    elements.div_ceil(parts) * config.train.precision.planned().parameter_bytes()
}
