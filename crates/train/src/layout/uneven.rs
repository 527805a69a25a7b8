//! A global batch that does not come out even, with the ways out: each has been tried on the ranks at hand before it is named.

use mp_plan::words::counted;
use mp_plan::ParallelConfig;

use super::Layout;
use crate::{Config, Error};

/// How many multiples of what must divide the batch are tried in either direction.
const TRIES: usize = 64;

/// The degrees that may be set otherwise, with their keys.
type Degree = (&'static str, fn(&mut ParallelConfig) -> &mut usize);
const DEGREES: [Degree; 4] = [
    ("parallel.dp", |parallel| &mut parallel.dp),
    ("parallel.pp", |parallel| &mut parallel.pp),
    ("parallel.cp", |parallel| &mut parallel.cp),
    ("parallel.tp", |parallel| &mut parallel.tp),
];

/// Says of a batch that does not come out even what would; other errors are passed on.
pub(super) fn explained(error: Error, config: &Config, vocab: usize, world: usize) -> Error {
    let Error::Data(mp_data::Error::BatchCut { global_batch, micro_batch, dp }) = error else { return error };
    let works = |change: &dyn Fn(&mut Config)| {
        let mut changed = config.clone();
        change(&mut changed);
        Layout::attempt(&changed, vocab, world).is_ok()
    };
    // Where the ranks' shares are uneven already, the micro-batch is not to blame, and may not even be the user's.
    let even = global_batch.is_multiple_of(dp);
    let unit = if config.parallel.micro_batch == 0 { dp } else { micro_batch.saturating_mul(dp) };
    let batches = batches(global_batch, unit, |batch| works(&|config| config.train.global_batch = batch));
    let mut ways = vec![("train.global_batch", batches)];
    if even {
        let shares = (1..=global_batch / dp).filter(|size| (global_batch / dp).is_multiple_of(*size));
        let works = |size: &usize| works(&|config| config.parallel.micro_batch = *size);
        ways.push(("parallel.micro_batch", shares.filter(works).collect()));
    } else {
        let parts = || (1..=world).filter(|part| world.is_multiple_of(*part));
        ways.extend(DEGREES.into_iter().map(|(key, degree)| {
            let works = |value: &usize| works(&|config| *degree(&mut config.parallel) = *value);
            (key, parts().filter(works).collect())
        }));
    }
    let ways: Vec<String> = ways
        .into_iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(key, values)| format!("`{key}` to {}", any_of(&values)))
        .collect();
    let micro =
        if even { format!("in micro-batches (`parallel.micro_batch`) of {micro_batch} ") } else { String::new() };
    let way_out = if ways.is_empty() { String::new() } else { format!("; set {}", ways.join(", or ")) };
    let rule = format!(
        "so many sequences cannot be dealt evenly {micro}to {} (`parallel.dp`){way_out}",
        counted(dp, "data-parallel rank")
    );
    Error::Config { key: "train.global_batch", value: global_batch.to_string(), rule }
}

/// Lists the nearest multiples of `unit` below and above that work.
fn batches(global_batch: usize, unit: usize, works: impl Fn(usize) -> bool) -> Vec<usize> {
    let below = global_batch / unit.max(1);
    let multiple = |count: usize| count.checked_mul(unit).filter(|&batch| batch > 0 && works(batch));
    let less = (below.saturating_sub(TRIES)..=below).rev().find_map(multiple);
    let more = (below + 1..=below + TRIES).find_map(multiple);
    less.into_iter().chain(more).collect()
}

/// Joins numbers as `1, 2 or 4`.
fn any_of(numbers: &[usize]) -> String {
    let words: Vec<String> = numbers.iter().map(usize::to_string).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(sets: &[&str], world: usize) -> String {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        let config = Config::load(None, None, &sets).unwrap();
        let error = Layout::new(&config, 256, world).unwrap_err();
        assert!(error.is_input());
        error.to_string()
    }

    #[test]
    fn only_what_works_on_the_ranks_at_hand_is_offered() {
        // Four heads and sequences of 128 are not cut in three; four layers are.
        assert_eq!(
            refused(&[], 3),
            "`train.global_batch` is 16, but so many sequences cannot be dealt evenly to 3 data-parallel ranks \
             (`parallel.dp`); set `train.global_batch` to 15 or 18, or `parallel.pp` to 3"
        );
        // Degrees that the user gives stay as they are.
        assert_eq!(
            refused(&["parallel.tp=1", "parallel.dp=6", "train.global_batch=4"], 6),
            "`train.global_batch` is 4, but so many sequences cannot be dealt evenly to 6 data-parallel ranks \
             (`parallel.dp`); set `train.global_batch` to 6"
        );
        let free = refused(&["train.global_batch=10", "model.heads=8", "parallel.tp=1"], 4);
        assert!(free.ends_with("set `train.global_batch` to 8 or 12, or `parallel.pp` to 2 or 4, or `parallel.cp` to 2 or 4, or `parallel.tp` to 2 or 4"), "{free}");
    }

    #[test]
    fn a_micro_batch_is_to_blame_where_the_shares_are_even() {
        assert_eq!(
            refused(&["train.global_batch=12", "parallel.micro_batch=5", "parallel.tp=1"], 2),
            "`train.global_batch` is 12, but so many sequences cannot be dealt evenly in micro-batches \
             (`parallel.micro_batch`) of 5 to 2 data-parallel ranks (`parallel.dp`); set `train.global_batch` to 10 or 20, or \
             `parallel.micro_batch` to 1, 2, 3 or 6"
        );
        // Interleaved stages take micro-batches in pairs.
        let sets =
            ["train.global_batch=12", "parallel.micro_batch=5", "parallel.pp=2", "parallel.schedule=interleaved"];
        let message = refused(&sets, 2);
        assert!(
            message.ends_with("set `train.global_batch` to 10 or 20, or `parallel.micro_batch` to 1, 2, 3 or 6"),
            "{message}"
        );
    }

    #[test]
    fn a_stage_of_sharing_that_cannot_be_is_told_before_the_batch() {
        let message = refused(&["parallel.pp=2", "parallel.dp=3", "parallel.tp=1", "parallel.zero=2"], 6);
        assert!(message.starts_with("parallel.zero 2 with parallel.pp 2"), "{message}");
    }
}
