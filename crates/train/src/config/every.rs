//! How often checkpoints are made: every so many steps, or every so much time.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A distance between checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// So many steps; 0: only at the end.
    Steps(u64),
    /// So much time since the last one began, in whole seconds.
    Time(Duration),
}

/// The units that a time may have, with their seconds.
const UNITS: [(char, u64); 3] = [('s', 1), ('m', 60), ('h', 3600)];

impl Every {
    /// Reads a time such as `10m`.
    fn time(text: &str) -> Option<Self> {
        let unit = text.chars().last()?;
        let (_, seconds) = UNITS.into_iter().find(|(letter, _)| *letter == unit)?;
        let count: u64 = text[..text.len() - 1].parse().ok()?;
        let seconds = count.checked_mul(seconds).filter(|&seconds| seconds > 0)?;
        Some(Self::Time(Duration::from_secs(seconds)))
    }
}

impl Serialize for Every {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Every::Steps(steps) => serializer.serialize_u64(*steps),
            Every::Time(time) => {
                let total = time.as_secs();
                let fits = |(_, seconds): &&(char, u64)| total.is_multiple_of(*seconds);
                let (unit, seconds) = UNITS.iter().rev().find(fits).copied().unwrap_or(('s', 1));
                serializer.serialize_str(&format!("{}{unit}", total / seconds))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Every {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;

        impl Visitor<'_> for Reads {
            type Value = Every;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of steps from 0, or a time such as \"90s\", \"10m\" or \"2h\"")
            }

            fn visit_u64<E: serde::de::Error>(self, steps: u64) -> Result<Every, E> {
                Ok(Every::Steps(steps))
            }

            fn visit_i64<E: serde::de::Error>(self, steps: i64) -> Result<Every, E> {
                let refused = |_| E::invalid_value(serde::de::Unexpected::Signed(steps), &self);
                u64::try_from(steps).map(Every::Steps).map_err(refused)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Every, E> {
                Every::time(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Reads).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_times_are_read_and_written() {
        for (text, every, written) in [
            ("50", Every::Steps(50), "50"),
            ("\"10m\"", Every::Time(Duration::from_secs(600)), "\"10m\""),
            ("\"120m\"", Every::Time(Duration::from_secs(7200)), "\"2h\""),
            ("\"90s\"", Every::Time(Duration::from_secs(90)), "\"90s\""),
        ] {
            assert_eq!(serde_json::from_str::<Every>(text).unwrap(), every);
            assert_eq!(serde_json::to_string(&every).unwrap(), written);
        }
        for text in ["-1", "1.5", "\"10\"", "\"0m\"", "\"m\"", "\"10 d\"", "\"\"", "\"5µ\"", "true"] {
            let error = serde_json::from_str::<Every>(text).unwrap_err().to_string();
            assert!(error.contains("or a time such as"), "{text}: {error}");
        }
    }
}
