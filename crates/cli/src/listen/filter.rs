//! Which events are heard, as typed: a level, or filters of the form `target=level`.

use tracing_subscriber::filter::EnvFilter;

use crate::failure::refused;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// Where events come from: our crates.
const TARGETS: [&str; 7] = ["mp_cli", "mp_comm", "mp_data", "mp_model", "mp_plan", "mp_runtime", "mp_train"];

/// Reads a filter.
///
/// # Errors
/// An input error with the legal levels. A word that is no level is no target either: `loud` would hear nothing.
pub fn read(text: &str) -> mp_train::Result<EnvFilter> {
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let bad = parts.iter().find(|part| !is_legal(part));
    match (bad, EnvFilter::try_new(parts.join(","))) {
        (None, Ok(filter)) if !parts.is_empty() => Ok(filter),
        (bad, _) => {
            let part = bad.copied().unwrap_or(text);
            let rule = format!(
                "\"{part}\" is no filter: write one of {}, or filters such as mp_train=debug with a target of {} and a level",
                LEVELS.join(", "),
                TARGETS.join(", ")
            );
            Err(refused("--log", format!("\"{text}\""), rule))
        }
    }
}

fn is_legal(part: &str) -> bool {
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    // Fields may hold an equals sign too, and a level comes last.
    match part.rsplit_once('=') {
        Some((target, level)) => is_level(level) && is_target(target),
        None => is_level(part),
    }
}

/// Says whether a target is a module of ours, or a span wherever it is.
fn is_target(target: &str) -> bool {
    let module = target.split('[').next().unwrap_or(target);
    module.is_empty() && target.starts_with('[') || TARGETS.contains(&module.split("::").next().unwrap_or(module))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_read() {
        for text in [
            "info",
            "OFF",
            "warn,mp_train=debug",
            "mp_comm::mpi=trace, mp_data=error",
            "[step]=debug",
            "mp_train[step{step=3}]=debug",
        ] {
            read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    #[test]
    fn what_would_hear_nothing_is_refused_with_the_levels() {
        for (text, part) in [
            ("loud", "loud"),
            ("mp_train=loud", "mp_train=loud"),
            ("info,mp_trian=debug", "mp_trian=debug"),
            ("a=b=c", "a=b=c"),
            ("mp_train", "mp_train"),
            ("", ""),
        ] {
            let error = read(text).unwrap_err();
            let message = error.to_string();
            let begin = format!(
                "`--log` is \"{text}\", but \"{part}\" is no filter: write one of off, error, warn, info, debug, trace"
            );
            assert!(error.is_input() && message.starts_with(&begin), "{message}");
        }
    }
}
