//! One layout to verify: its degrees and options, as written on a command line and in a table.

use std::fmt;
use std::str::FromStr;

use mp_plan::{ContextForm, ParallelConfig, RecomputeName, ScheduleName, Switch, Zero};

use crate::{Error, Result};

/// How a layout is written; errors show it.
pub const GRAMMAR: &str =
    "a list such as tp2pp2,dp4zero3,\"tp2pp2 zb-v sp\": degrees tpN, ppN, dpN, cpN in any order, \
                           and of gpipe, 1f1b, interleaved, zb-h1, zb-v, zeroN, sp, a2a, selective, full, fullN \
                           (recompute of every Nth layer), mbN (micro-batches) what is wanted, joined by spaces, + or nothing";

/// A layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Tensor degree.
    pub tp: usize,
    /// Pipeline degree.
    pub pp: usize,
    /// Data degree.
    pub dp: usize,
    /// Context degree.
    pub cp: usize,
    /// How attention reaches other context ranks' positions.
    pub context: ContextForm,
    /// The order of forwards and backwards.
    pub schedule: ScheduleName,
    /// What the data ranks share out.
    pub zero: Zero,
    /// Whether activations between the tensor-parallel regions are cut along the sequence.
    pub sequence_parallel: bool,
    /// What the backward computes again.
    pub recompute: RecomputeName,
    /// With full recompute, every how many-th layer; otherwise 0.
    pub recompute_every: usize,
    /// Micro-batches of each data rank in a step.
    pub micro_batches: usize,
}

impl Default for Case {
    /// Returns one rank, without a choice.
    fn default() -> Self {
        Self {
            tp: 1,
            pp: 1,
            dp: 1,
            cp: 1,
            context: ContextForm::Ring,
            schedule: ScheduleName::OneFOneB,
            zero: Zero::Replicated,
            sequence_parallel: false,
            recompute: RecomputeName::None,
            recompute_every: 0,
            micro_batches: 1,
        }
    }
}

impl Case {
    /// Returns how many ranks it takes.
    pub fn ranks(&self) -> usize {
        [self.tp, self.pp, self.dp, self.cp].into_iter().fold(1, usize::saturating_mul)
    }

    /// Returns the number of micro-batches where nobody says: enough that gradients are accumulated, and that a pipeline
    /// reaches its steady state.
    pub fn default_micro_batches(pp: usize) -> usize {
        2 * pp
    }

    /// Writes the layout as a configuration has it, for a global batch that its micro-batches divide.
    pub(super) fn parallel(&self, global_batch: usize, bucket_bytes: usize) -> ParallelConfig {
        ParallelConfig {
            tp: self.tp,
            pp: self.pp,
            dp: self.dp,
            cp: self.cp,
            sequence_parallel: Switch::Set(self.sequence_parallel),
            micro_batch: global_batch / (self.dp * self.micro_batches),
            zero: Switch::Set(self.zero),
            bucket_bytes,
            context: self.context,
            recompute: Switch::Set(self.recompute),
            recompute_every: self.recompute_every,
            schedule: Switch::Set(self.schedule),
            ..ParallelConfig::default()
        }
    }

    /// Returns what distinguishes the layout: its mesh, then one value for each option.
    pub(super) fn factors(&self) -> [String; 7] {
        [
            format!("tp{} pp{} dp{} cp{}", self.tp, self.pp, self.dp, self.cp),
            self.schedule.name().into(),
            format!("zero{}", self.zero),
            format!("sp {}", self.sequence_parallel),
            format!("{:?}", self.context),
            format!("{:?} {}", self.recompute, self.recompute_every),
            format!("accumulates {}", self.micro_batches > 1),
        ]
    }
}

impl fmt::Display for Case {
    /// Writes what [`FromStr`] reads, and of that only what is no default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text: String = [("tp", self.tp), ("pp", self.pp), ("dp", self.dp), ("cp", self.cp)]
            .into_iter()
            .filter(|(_, degree)| *degree > 1)
            .map(|(axis, degree)| format!("{axis}{degree}"))
            .collect();
        if text.is_empty() {
            text.push_str("tp1");
        }
        if self.zero > Zero::Replicated {
            text += &format!("zero{}", self.zero);
        }
        if self.pp > 1 && self.schedule != ScheduleName::OneFOneB {
            text += &format!(" {}", self.schedule);
        }
        if self.context == ContextForm::AllToAll {
            text.push_str(" a2a");
        }
        if self.sequence_parallel {
            text.push_str(" sp");
        }
        match (self.recompute, self.recompute_every) {
            (RecomputeName::None, _) => {}
            (RecomputeName::Selective, _) => text.push_str(" selective"),
            (RecomputeName::Full, 0 | 1) => text.push_str(" full"),
            (RecomputeName::Full, every) => text += &format!(" full{every}"),
        }
        if self.micro_batches != Self::default_micro_batches(self.pp) {
            text += &format!(" mb{}", self.micro_batches);
        }
        f.pad(&text)
    }
}

impl FromStr for Case {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |word: &str| Error::Config {
            key: "--layouts",
            value: format!("\"{text}\""),
            rule: format!("\"{word}\" in it is no part of a layout; write {GRAMMAR}"),
        };
        let mut case = Self { micro_batches: 0, ..Self::default() };
        let mut words = text.split([' ', '+']).filter(|word| !word.is_empty()).peekable();
        if words.peek().is_none() {
            return Err(refused(text));
        }
        for word in words {
            case.take(word).ok_or_else(|| refused(word))?;
        }
        if case.micro_batches == 0 {
            case.micro_batches = Self::default_micro_batches(case.pp);
        }
        Ok(case)
    }
}

impl Case {
    /// Takes in one word; `None` if it is none.
    fn take(&mut self, word: &str) -> Option<()> {
        if let Some(name) = ScheduleName::ALL.into_iter().find(|name| name.name() == word) {
            self.schedule = name;
            return Some(());
        }
        match word {
            "sp" => self.sequence_parallel = true,
            "a2a" => self.context = ContextForm::AllToAll,
            "selective" => (self.recompute, self.recompute_every) = (RecomputeName::Selective, 0),
            "full" => (self.recompute, self.recompute_every) = (RecomputeName::Full, 1),
            joined => return self.take_numbers(joined),
        }
        Some(())
    }

    /// Takes in pairs of a name and a number, one after the other: `tp2pp2zero1`.
    fn take_numbers(&mut self, mut rest: &str) -> Option<()> {
        while !rest.is_empty() {
            let digits = rest.find(|c: char| c.is_ascii_digit())?;
            let (name, tail) = rest.split_at(digits);
            let end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
            let number: usize = tail[..end].parse().ok()?;
            match (name, number) {
                ("zero", stage) => self.zero = Zero::try_from(u8::try_from(stage).ok()?).ok()?,
                (_, 0) => return None,
                ("tp", degree) => self.tp = degree,
                ("pp", degree) => self.pp = degree,
                ("dp", degree) => self.dp = degree,
                ("cp", degree) => self.cp = degree,
                ("full", every) => (self.recompute, self.recompute_every) = (RecomputeName::Full, every),
                // More would only take memory.
                ("mb", 1..=1024) => self.micro_batches = number,
                _ => return None,
            }
            rest = &tail[end..];
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in [
            "tp1",
            "tp1 mb1",
            "tp2pp2",
            "dp4zero3",
            "tp2pp2 zb-v sp",
            "tp2cp2 a2a",
            "pp4 interleaved mb8",
            "tp2 sp selective",
            "dp2 full2",
        ] {
            let case: Case = text.parse().unwrap();
            let written = case.to_string();
            assert_eq!(written.parse::<Case>().unwrap(), case, "{text}");
            // The last names its default.
            assert!(text == written || text == format!("{written} mb8"), "{text}: {written}");
        }
        assert_eq!("pp2+zb-v tp2+sp".parse::<Case>().unwrap(), "tp2pp2 zb-v sp".parse().unwrap());
    }

    #[test]
    fn a_bad_word_is_named_with_the_grammar() {
        for (text, word) in [("tp2 zb-w", "zb-w"), ("tp0", "tp0"), ("", ""), ("tp2zero9", "tp2zero9"), ("tp", "tp")] {
            let error = text.parse::<Case>().unwrap_err();
            assert!(error.is_input(), "{error}");
            assert!(error.to_string().contains(&format!("\"{word}\" in it is no part")), "{error}");
            assert!(error.to_string().contains("tp2pp2,dp4zero3"), "{error}");
        }
    }
}
