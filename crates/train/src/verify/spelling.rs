//! A layout as it is written: on a command line, in a table, in messages.

use std::fmt;
use std::str::FromStr;

use mp_plan::{ContextForm, RecomputeName, ScheduleName, Zero};

use super::Case;
use crate::{Error, Result};

/// How a layout is written; errors show it.
pub const GRAMMAR: &str =
    "a list such as tp2pp2,dp4zero3,\"tp2pp2 zb-v sp\",configured: degrees tpN, ppN, dpN, cpN in any order, \
                           and of gpipe, 1f1b, interleaved, zb-h1, zb-v, chunksN, split (as parallel.split says), zeroN, sp, a2a, \
                           selective, full, fullN (recompute of every Nth layer), mbN (micro-batches) what is wanted, joined by \
                           spaces, + or nothing";

/// The exchange of heads for positions.
const EXCHANGE: &str = "a2a";
/// What several words can say.
const RECOMPUTE: &str = "recompute";

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
        if self.schedule != ScheduleName::OneFOneB {
            text += &format!(" {}", self.schedule);
        }
        if self.chunks > 0 {
            text += &format!(" chunks{}", self.chunks);
        }
        if self.split {
            text.push_str(" split");
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
        let refused = |rule: String| Error::Config { key: "--layouts", value: format!("\"{text}\""), rule };
        let mut case = Self { micro_batches: 0, ..Self::default() };
        let mut said: Vec<(&str, &str)> = Vec::new();
        for word in text.split([' ', '+']).filter(|word| !word.is_empty()) {
            for part in parts(word) {
                let Some(what) = case.take(part) else {
                    return Err(refused(format!("\"{word}\" in it is no part of a layout; write {GRAMMAR}")));
                };
                if let Some((_, before)) = said.iter().find(|(known, _)| *known == what) {
                    let rule = format!("\"{before}\" and \"{part}\" in it both say the {what}; leave one of them out");
                    return Err(refused(rule));
                }
                said.push((what, part));
            }
        }
        if said.is_empty() {
            return Err(refused(format!("\"{text}\" in it is no part of a layout; write {GRAMMAR}")));
        }
        if case.micro_batches == 0 {
            case.micro_batches = Self::default_micro_batches(case.pp);
        }
        Ok(case)
    }
}

/// Splits a word in parts that each end with a number, `tp2pp2zero1` for instance, but for the last; what has a digit in its
/// name is one part.
fn parts(word: &str) -> Vec<&str> {
    if schedule(word).is_some() || word == EXCHANGE {
        return vec![word];
    }
    let mut parts = Vec::new();
    let mut rest = word;
    while let Some(digits) = rest.find(|letter: char| letter.is_ascii_digit()) {
        let length = rest[digits..].find(|letter: char| !letter.is_ascii_digit());
        let (part, tail) = rest.split_at(length.map_or(rest.len(), |length| digits + length));
        parts.push(part);
        rest = tail;
    }
    parts.extend((!rest.is_empty()).then_some(rest));
    parts
}

fn schedule(word: &str) -> Option<ScheduleName> {
    ScheduleName::ALL.into_iter().find(|name| name.name() == word)
}

impl Case {
    /// Takes in one part and returns what it says, in words; `None` if it says nothing.
    fn take(&mut self, part: &str) -> Option<&'static str> {
        if let Some(name) = schedule(part) {
            self.schedule = name;
            return Some("schedule");
        }
        match part {
            "sp" => self.sequence_parallel = true,
            EXCHANGE => self.context = ContextForm::AllToAll,
            "split" => self.split = true,
            "selective" => (self.recompute, self.recompute_every) = (RecomputeName::Selective, 0),
            "full" => (self.recompute, self.recompute_every) = (RecomputeName::Full, 1),
            numbered => return self.take_number(numbered),
        }
        Some(match part {
            "sp" => "sequence parallelism",
            EXCHANGE => "form of context parallelism",
            "split" => "split of the layers",
            _ => RECOMPUTE,
        })
    }

    /// Takes in a name with a number.
    fn take_number(&mut self, part: &str) -> Option<&'static str> {
        let (name, digits) = part.split_at(part.find(|letter: char| letter.is_ascii_digit())?);
        let number: usize = digits.parse().ok()?;
        let (place, what) = match (name, number) {
            ("zero", stage) => {
                self.zero = Zero::try_from(u8::try_from(stage).ok()?).ok()?;
                return Some("ZeRO stage");
            }
            (_, 0) => return None,
            ("tp", _) => (&mut self.tp, "tensor degree"),
            ("pp", _) => (&mut self.pp, "pipeline degree"),
            ("dp", _) => (&mut self.dp, "data degree"),
            ("cp", _) => (&mut self.cp, "context degree"),
            ("chunks", _) => (&mut self.chunks, "chunks of a rank"),
            // More would only take memory.
            ("mb", 1..=1024) => (&mut self.micro_batches, "micro-batches"),
            ("full", _) => {
                self.recompute = RecomputeName::Full;
                (&mut self.recompute_every, RECOMPUTE)
            }
            _ => return None,
        };
        *place = number;
        Some(what)
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
            "pp2 interleaved chunks3 split",
        ] {
            let case: Case = text.parse().unwrap();
            let written = case.to_string();
            assert_eq!(written.parse::<Case>().unwrap(), case, "{text}");
            // The last names its default.
            assert!(text == written || text == format!("{written} mb8"), "{text}: {written}");
        }
        for other in ["pp2+zb-v tp2+sp", "sp tp2pp2zb-v"] {
            assert_eq!(other.parse::<Case>().unwrap(), "tp2pp2 zb-v sp".parse().unwrap());
        }
    }

    #[test]
    fn a_bad_word_is_named_with_the_grammar() {
        for (text, word) in [
            ("tp2 zb-w", "zb-w"),
            ("tp0", "tp0"),
            ("", ""),
            ("tp2zero9", "tp2zero9"),
            ("tp", "tp"),
            ("mb1025", "mb1025"),
        ] {
            let error = text.parse::<Case>().unwrap_err();
            assert!(error.is_input(), "{error}");
            assert!(error.to_string().contains(&format!("\"{word}\" in it is no part")), "{error}");
            assert!(error.to_string().contains("tp2pp2,dp4zero3"), "{error}");
        }
    }
    #[test]
    fn what_contradicts_or_repeats_itself_is_refused_by_name() {
        for (text, first, second, what) in [
            ("tp2tp4", "tp2", "tp4", "tensor degree"),
            ("dp2 zero1zero3", "zero1", "zero3", "ZeRO stage"),
            ("tp2+tp2", "tp2", "tp2", "tensor degree"),
            ("pp2 zb-v gpipe", "zb-v", "gpipe", "schedule"),
            ("selective full2", "selective", "full2", "recompute"),
            ("full full", "full", "full", "recompute"),
            ("mb1 mb2", "mb1", "mb2", "micro-batches"),
            ("tp2 sp sp", "sp", "sp", "sequence parallelism"),
        ] {
            let message = text.parse::<Case>().unwrap_err().to_string();
            let rule = format!("\"{first}\" and \"{second}\" in it both say the {what}; leave one of them out");
            assert_eq!(message, format!("`--layouts` is \"{text}\", but {rule}"));
        }
    }
}
