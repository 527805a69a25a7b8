//! The ledger of truth: what the plan of a run predicted, beside what the run measured. `ledger.json` in the run folder.
//!
//! | file | is |
//! |---|---|
//! | `ledger.rs` | the file, and what in it is worth a warning |
//! | `ledger/watch.rs` | a rank's memory, measured from step to step |
//! | `ledger/memory.rs` | what every rank was to keep, beside what it did |
//! | `ledger/time.rs` | what every rank was to spend a step on, beside what it did |

mod memory;
mod time;
mod watch;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::durable;
use crate::{Error, Result};

pub(crate) use memory::account;
pub(crate) use time::{account_time, WORTH_MEASURING};
pub use time::{RankTime, Seconds, Time, TimeDeviation, TimePart};
pub(crate) use watch::Watch;

/// The file's name.
pub const FILE: &str = "ledger.json";

/// A prediction that is off by more than this share of what was measured is warned of,
const TOLERANCE: f64 = 0.1;
/// where it makes this share of the rank's whole peak, or step: a table of some bytes may be off by all of them.
const WEIGHT: f64 = 0.01;

/// What was predicted of a run, and what it measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// The memory of every rank.
    pub memory: Memory,
    /// The time of a step on every rank.
    pub time: Time,
}

/// The memory of every rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Why nothing is predicted, or measured, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// By rank of the world.
    pub ranks: Vec<RankMemory>,
}

/// The memory of one rank, at its fullest in a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankMemory {
    /// Which rank of the world.
    pub rank: usize,
    /// What it consists of.
    pub parts: Vec<Part>,
    /// All of it: the sum of the parts.
    pub total: Bytes,
}

/// One part of a rank's memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// How much it is.
    #[serde(flatten)]
    pub bytes: Bytes,
}

/// What was predicted, and what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bytes {
    /// The plan's number; `None` for what cannot be planned.
    pub predicted_bytes: Option<u64>,
    /// The run's number; `None` where ranks share a process, whose memory is told as a whole.
    pub measured_bytes: Option<u64>,
    /// By which share of what was measured the prediction is above it, or below, then negative.
    pub error: Option<f64>,
}

/// A prediction that was off by more than a tenth.
#[derive(Debug, Clone, PartialEq)]
pub struct Deviation {
    /// What was predicted, of which rank.
    pub what: String,
    /// The plan's number.
    pub predicted_bytes: u64,
    /// The run's number.
    pub measured_bytes: u64,
}

impl Bytes {
    /// Sets two numbers beside each other.
    pub fn new(predicted_bytes: Option<u64>, measured_bytes: Option<u64>) -> Self {
        let error = predicted_bytes.zip(measured_bytes).and_then(|(predicted, measured)| match (predicted, measured) {
            (0, 0) => Some(0.0),
            (_, 0) => None,
            _ => Some(predicted as f64 / measured as f64 - 1.0),
        });
        Self { predicted_bytes, measured_bytes, error }
    }
}

impl Ledger {
    /// Writes the file, whole.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).expect("a ledger is plain data");
        durable::write(path, (json + "\n").as_bytes())
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn read(path: &Path) -> Result<Self> {
        let read = |source| Error::Read { path: path.into(), source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        serde_json::from_str(&text).map_err(|error| read(std::io::Error::other(error)))
    }

    /// Lists the memory that is off by more than a tenth of what was measured and by more than a hundredth of its rank's whole:
    /// of each part, and of the whole, the rank where it is off most.
    pub fn deviations(&self) -> Vec<Deviation> {
        let mut worst: Vec<(&str, f64, Deviation)> = Vec::new();
        for rank in &self.memory.ranks {
            let whole = rank.total.measured_bytes.unwrap_or(0) as f64;
            let parts = rank.parts.iter().map(|part| (part.name.as_str(), part.bytes));
            for (name, bytes) in parts.chain([("total", rank.total)]) {
                let (Some(predicted_bytes), Some(measured_bytes)) = (bytes.predicted_bytes, bytes.measured_bytes)
                else {
                    continue;
                };
                let off = predicted_bytes.abs_diff(measured_bytes) as f64;
                if off <= TOLERANCE * measured_bytes as f64 || off <= WEIGHT * whole {
                    continue;
                }
                let what = format!("memory of rank {}, {name}", rank.rank);
                let deviation = Deviation { what, predicted_bytes, measured_bytes };
                match worst.iter_mut().find(|(known, ..)| *known == name) {
                    Some(known) if known.1 >= off => {}
                    Some(known) => *known = (name, off, deviation),
                    None => worst.push((name, off, deviation)),
                }
            }
        }
        worst.into_iter().map(|(_, _, deviation)| deviation).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(rank: usize, parts: &[(&str, u64, u64)]) -> RankMemory {
        let part = |&(name, predicted, measured): &(&str, u64, u64)| Part {
            name: name.into(),
            bytes: Bytes::new(Some(predicted), Some(measured)),
        };
        let sum = |of: fn(&(&str, u64, u64)) -> u64| Some(parts.iter().map(of).sum());
        let total = Bytes::new(sum(|part| part.1), sum(|part| part.2));
        RankMemory { rank, parts: parts.iter().map(part).collect(), total }
    }

    fn time(predicted: Option<f64>, measured: f64) -> Time {
        let seconds = Seconds::new(predicted, measured);
        let parts = vec![TimePart { name: "bubble".into(), seconds }];
        Time {
            machine: None,
            reason: None,
            steps: 5,
            left_out: 3,
            ranks: vec![RankTime { rank: 0, parts, total: seconds }],
        }
    }

    #[test]
    fn the_file_is_as_documented_and_comes_back() {
        let memory = Memory { reason: None, ranks: vec![rank(0, &[("parameters", 150, 100)])] };
        let ledger = Ledger { memory, time: time(Some(1.5), 2.0) };
        let json: serde_json::Value = serde_json::to_value(&ledger).unwrap();
        let part =
            serde_json::json!({"name": "parameters", "predicted_bytes": 150, "measured_bytes": 100, "error": 0.5});
        let total = serde_json::json!({"predicted_bytes": 150, "measured_bytes": 100, "error": 0.5});
        assert_eq!(json["memory"]["ranks"][0], serde_json::json!({"rank": 0, "parts": [part], "total": total}));
        let part =
            serde_json::json!({"name": "bubble", "predicted_seconds": 1.5, "measured_seconds": 2.0, "error": -0.25});
        let total = serde_json::json!({"predicted_seconds": 1.5, "measured_seconds": 2.0, "error": -0.25});
        let ranks = serde_json::json!([{"rank": 0, "parts": [part], "total": total}]);
        assert_eq!(json["time"], serde_json::json!({"steps": 5, "left_out": 3, "ranks": ranks}));
        let folder = tempfile::tempdir().unwrap();
        ledger.write(&folder.path().join(FILE)).unwrap();
        assert_eq!(Ledger::read(&folder.path().join(FILE)).unwrap(), ledger);
    }

    #[test]
    fn nothing_is_off_by_nothing_and_the_unknown_is_not_off() {
        assert_eq!(Bytes::new(Some(0), Some(0)).error, Some(0.0));
        assert_eq!(Bytes::new(Some(1), Some(0)).error, None);
        assert_eq!(Bytes::new(None, Some(1)).error, None);
        assert_eq!(Bytes::new(Some(3), Some(4)).error, Some(-0.25));
    }

    #[test]
    fn the_worst_rank_of_each_part_is_told_where_it_matters() {
        let ranks = vec![
            // 11 % off, and 10 %, which is not above it; the tables are off by all they are, and nobody minds.
            rank(0, &[("parameters", 1110, 1000), ("moments", 1100, 1000), ("tables", 0, 5)]),
            rank(1, &[("parameters", 700, 1000), ("moments", 1000, 1000), ("tables", 9, 5)]),
        ];
        let told = Ledger { memory: Memory { reason: None, ranks }, time: time(None, 2.0) }.deviations();
        let expected = |what: &str, predicted_bytes, measured_bytes| Deviation {
            what: format!("memory of rank {what}"),
            predicted_bytes,
            measured_bytes,
        };
        assert_eq!(told, [expected("1, parameters", 700, 1000), expected("1, total", 1709, 2005)]);
    }
}
