//! The schedules by name, and what each can run.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Folding, Result};

/// An order of forwards and backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ScheduleName {
    /// All forwards, then all backwards.
    ///
    /// # Source
    /// Huang et al. 2018, arXiv:1811.06965. There micro-batches go backward in descending order; here they ascend,
    /// which takes as long and keeps as much, and adds gradients up in the order of all other schedules.
    #[serde(rename = "gpipe")]
    Gpipe,
    /// As few forwards as fill the pipeline, then one backward for each forward.
    ///
    /// # Source
    /// Narayanan et al. 2019 and 2021, arXiv:1806.03377 and arXiv:2104.04473, §2.2.
    #[serde(rename = "1f1b")]
    OneFOneB,
    /// 1F1B over several chunks of each rank, micro-batches in groups of `pp`.
    ///
    /// # Source
    /// Narayanan et al. 2021, arXiv:2104.04473, §2.2.
    #[serde(rename = "interleaved")]
    Interleaved,
    /// 1F1B whose weight gradients wait until a rank would be idle, within the memory of 1F1B.
    ///
    /// # Source
    /// Qi et al. 2023, arXiv:2401.10241, §3. The order is this crate's own: see `schedule/zero_bubble.rs`.
    #[serde(rename = "zb-h1")]
    ZbH1,
    /// Two chunks of each rank in a V, so that gradients come back where outputs went, again within the memory of 1F1B.
    ///
    /// # Source
    /// Qi et al. 2023, arXiv:2401.10241, and 2024, arXiv:2405.15362, on V-shaped placement. The order is this crate's
    /// own: see `schedule/zero_bubble.rs`.
    #[serde(rename = "zb-v")]
    ZbV,
}

impl ScheduleName {
    /// All schedules.
    pub const ALL: [Self; 5] = [Self::Gpipe, Self::OneFOneB, Self::Interleaved, Self::ZbH1, Self::ZbV];

    /// Returns the name as configurations have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpipe => "gpipe",
            Self::OneFOneB => "1f1b",
            Self::Interleaved => "interleaved",
            Self::ZbH1 => "zb-h1",
            Self::ZbV => "zb-v",
        }
    }

    /// Returns how the schedule deals stages to ranks.
    pub fn folding(self) -> Folding {
        match self {
            Self::ZbV => Folding::V,
            _ => Folding::Loop,
        }
    }

    /// Returns the number of chunks where the user does not choose: the fewest that the schedule runs.
    pub fn default_chunks(self) -> usize {
        match self {
            Self::Gpipe | Self::OneFOneB | Self::ZbH1 => 1,
            Self::Interleaved | Self::ZbV => 2,
        }
    }

    /// Returns whether backward is done in two steps, first the input's gradient, then the weights'.
    pub fn splits_backward(self) -> bool {
        matches!(self, Self::ZbH1 | Self::ZbV)
    }

    pub(crate) fn check_chunks(self, chunks: usize) -> Result<()> {
        let reason = match self {
            Self::Gpipe | Self::OneFOneB | Self::ZbH1 if chunks != 1 => {
                "it runs one stage on each rank, so chunks can only be 1; interleaved and zb-v run more"
            }
            Self::Interleaved if chunks < 2 => {
                "it takes turns between the chunks of a rank, so chunks must be at least 2; 1f1b runs one"
            }
            Self::ZbV if chunks != 2 => "its stages go down the ranks and up again, so chunks can only be 2",
            _ => return Ok(()),
        };
        Err(Error::Chunks { schedule: self, chunks, reason })
    }

    pub(crate) fn check_micro_batches(self, micro_batches: usize, pp: usize) -> Result<()> {
        if micro_batches == 0 {
            return Err(Error::Zero { what: "micro-batches of an update" });
        }
        if self != Self::Interleaved || micro_batches.is_multiple_of(pp) {
            return Ok(());
        }
        let below = micro_batches / pp * pp;
        let nearest = [Some(below), below.checked_add(pp)].into_iter().flatten().filter(|&near| near > 0).collect();
        Err(Error::MicroBatches { schedule: self, micro_batches, pp, nearest })
    }
}

impl fmt::Display for ScheduleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
