//! The one error type of this crate. Every message names the file or value and says what to do about it.

use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of another library, kept as the cause.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What can be wrong with data, or with how it is to be cut.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing lies at the path.
    #[error("there is no file `{}`; check the path (a relative one starts at the working directory)", path.display())]
    Missing {
        /// The path as given.
        path: PathBuf,
    },
    /// The path leads to a folder, a pipe or a device.
    #[error("`{}` is {found}, not a file; give the path of a regular file", path.display())]
    NotAFile {
        /// The path as given.
        path: PathBuf,
        /// What lies there.
        found: &'static str,
    },
    /// The operating system refused to read.
    #[error("`{}` cannot be read: {source}; check its permissions and the disk", path.display())]
    Unreadable {
        /// The path as given.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of no bytes.
    #[error("`{}` is empty; give a file that holds text", path.display())]
    Empty {
        /// The path as given.
        path: PathBuf,
    },
    /// A byte that cannot stand where it stands in UTF-8.
    #[error(
        "`{}` is not UTF-8 text: byte {offset} is {byte:#04x}; convert it first, for example with `iconv -t UTF-8`",
        path.display()
    )]
    NotUtf8 {
        /// The path as given.
        path: PathBuf,
        /// How many bytes before it are good.
        offset: usize,
        /// The offending byte; the first byte of a character that is cut off or malformed.
        byte: u8,
    },
    /// A file that holds text in a wrapping.
    #[error(
        "`{}` is no plain text: by its name it is {what}; `mp-cli data tokenize` makes token files of it, and `data.format` \
         tells of examples",
        path.display()
    )]
    NotText {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A name that is neither a built-in tokenizer nor a file.
    #[error("the tokenizer `{spec}` is neither \"bytes\" nor a file; give \"bytes\" or the path of a tokenizer.json")]
    UnknownTokenizer {
        /// The name as given.
        spec: String,
    },
    /// A tokenizer file, in a build that cannot read one.
    #[error(
        "the tokenizer `{spec}` needs the cargo feature `huggingface` of mp-data, which this build lacks; \
         build with it, or choose the tokenizer \"bytes\""
    )]
    FeatureOff {
        /// The name as given.
        spec: String,
    },
    /// A file that does not parse as a `tokenizer.json`.
    #[error("`{spec}` is no usable tokenizer.json: {cause}; export it again from the model it belongs to")]
    TokenizerFile {
        /// The path as given.
        spec: String,
        /// Why.
        cause: Cause,
    },
    /// The tokenizer gave up on a text.
    #[error("the tokenizer `{spec}` cannot encode a text of {bytes} bytes: {cause}; choose one that covers the text")]
    Encode {
        /// The tokenizer.
        spec: String,
        /// The text's length.
        bytes: usize,
        /// Why.
        cause: Cause,
    },
    /// The tokenizer gave up on tokens.
    #[error("the tokenizer `{spec}` cannot decode {tokens} tokens: {cause}; choose the one they were made with")]
    Decode {
        /// The tokenizer.
        spec: String,
        /// How many tokens.
        tokens: usize,
        /// Why.
        cause: Cause,
    },
    /// A token that the vocabulary does not hold.
    #[error(
        "token {position} of {origin} is id {id}, beyond the vocabulary of {vocab}; \
         raise `model.vocab` to at least {}, or choose the tokenizer that fits the model",
        u64::from(*id) + 1
    )]
    TokenId {
        /// Where the tokens come from.
        origin: String,
        /// The id.
        id: u32,
        /// Its index in the tokens.
        position: usize,
        /// How many ids there are.
        vocab: usize,
    },
    /// A text of too few tokens for one sample.
    #[error(
        "{origin} has {tokens} tokens, {need} are needed for a sequence of {seq}; {}",
        mend_short(*tokens, *held_out)
    )]
    TooShort {
        /// Where the tokens come from, and which part of it.
        origin: String,
        /// How many there are.
        tokens: usize,
        /// How many there must be.
        need: usize,
        /// The sequence length asked for.
        seq: usize,
        /// The validation fraction that made the part, if one did.
        held_out: Option<f64>,
    },

    /// Sequences too short for what frames a masked sample.
    #[error("`train.seq` is {seq}, and masked samples with their framing tokens need at least {least}")]
    MaskedLength {
        /// The length of sequences.
        seq: usize,
        /// The least that will do.
        least: usize,
    },
    /// A validation fraction outside `[0, 1)`.
    #[error("a validation fraction of {fraction} is not in [0, 1); 0.1 holds out the last tenth, 0 nothing")]
    Fraction {
        /// The fraction.
        fraction: f64,
    },
    /// A count that must be at least one.
    #[error("`{what}` is 0; give at least 1")]
    Zero {
        /// The quantity.
        what: &'static str,
    },
    /// A global batch that does not cut evenly.
    #[error("`train.global_batch` = {global_batch} sequences cannot be dealt {}", legal_cuts(*global_batch, *micro_batch, *dp))]
    BatchCut {
        /// Sequences in a step, over all ranks.
        global_batch: usize,
        /// Sequences in a micro-batch.
        micro_batch: usize,
        /// Data-parallel ranks.
        dp: usize,
    },
    /// A data-parallel rank that the plan does not have.
    #[error("data-parallel rank {rank} does not exist among {dp}; ranks count from 0 to {}", dp - 1)]
    Rank {
        /// The rank asked for.
        rank: usize,
        /// How many there are.
        dp: usize,
    },
    /// A data file whose bytes do not mean what they must.
    #[error("`{}`, byte {offset}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there, with the way out.
        problem: String,
    },
    /// A mixture that cannot be.
    #[error("`data.blend` {problem}")]
    Blend {
        /// Which source has what wrong with it, with the way out.
        problem: String,
    },
    /// A line of a file of JSON lines without a document.
    #[error("{origin}, line {line}: {problem}")]
    Line {
        /// The file, as messages name it.
        origin: String,
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it, with the way out.
        problem: String,
    },
    /// A chat template that is none.
    #[error("{origin} {problem}; write it in Jinja, as transformers reads it")]
    Template {
        /// Where it is from, as messages name it.
        origin: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Examples with more tokens than a sample holds.
    #[error(
        "{origin}, line {line}: the example has {tokens} tokens, and `train.seq` = {seq} leaves room for {}; {} too long: set \
         `train.seq` to at least {}, or shorten or leave out those examples",
        seq.saturating_add(1),
        of_examples(*long, *examples),
        longest.saturating_sub(1)
    )]
    LongExample {
        /// The file of the first one, as messages name it.
        origin: String,
        /// Its line.
        line: u64,
        /// Its tokens.
        tokens: usize,
        /// The length of sequences.
        seq: usize,
        /// How many examples are too long.
        long: usize,
        /// Of how many.
        examples: usize,
        /// The tokens of the longest.
        longest: usize,
    },
    /// Files of tokens where lines of JSON are read.
    #[error("`{}` holds tokens, which say nothing of prompts and answers; give the JSON lines that they were made of, or set \
             `data.format` to \"text\"", path.display())]
    NotLines {
        /// The path as given.
        path: PathBuf,
    },
    /// A pattern that is none, or that nothing matches.
    #[error("`{pattern}` {problem}")]
    Pattern {
        /// The pattern as typed.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A vocabulary too small for what it must hold.
    #[error("a vocabulary of {vocab} tokens is too small: bytes and the end of a document take {least}; give at least so many")]
    SmallVocabulary {
        /// The size asked for.
        vocab: usize,
        /// The least one.
        least: usize,
    },
    /// A tokenizer without a token that ends a document, where one is needed.
    #[error("the tokenizer `{spec}` has no {token}; {mend}")]
    NoEnd {
        /// The tokenizer.
        spec: String,
        /// What it lacks.
        token: String,
        /// The way out.
        mend: &'static str,
    },
    /// A file in the way of one to be written.
    #[error("`{}` exists; remove it, or give another name", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file that cannot be written.
    #[error("`{}` cannot be written: {source}; check the folder, its permissions and the disk", path.display())]
    Unwritable {
        /// The file, or the common name of several.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A sequence whose length does not fit its field.
    #[error("a sequence of {tokens} tokens cannot be stored, {} at most; cut the document", i32::MAX)]
    LongSequence {
        /// Its length.
        tokens: usize,
    },
    /// A document or token that a dataset does not have.
    #[error("`{prefix}` has {count} {what}, and none with the number {index}")]
    Beyond {
        /// The dataset.
        prefix: String,
        /// What is counted.
        what: &'static str,
        /// How many there are.
        count: u64,
        /// The number asked for, from 0.
        index: u64,
    },
    /// A sample whose length is not that of a row.
    #[error("a sample of {found} tokens is no row of a batch of sequences of {expected}; give exactly as many")]
    SampleLength {
        /// The batch's sequence length.
        expected: usize,
        /// The sample's.
        found: usize,
    },
    /// The background reader is gone.
    #[error("the background reader stopped before step {step}, micro-batch {micro}: {reason}; start a new one there")]
    ReaderStopped {
        /// The step that was due.
        step: u64,
        /// The micro-batch of it that was due.
        micro: usize,
        /// What became of it.
        reason: String,
    },
}

/// Says how to make a text of `tokens` long enough.
fn mend_short(tokens: usize, held_out: Option<f64>) -> String {
    let shorter = match tokens.saturating_sub(1) {
        0 => String::new(),
        seq => format!("set `train.seq` to at most {seq}, or "),
    };
    let other = match held_out {
        Some(fraction) => format!(", or hold out another fraction than {fraction}"),
        None => String::new(),
    };
    format!("{shorter}give more text{other}")
}

/// Says what a global batch cannot be dealt to, and names the nearest legal values.
fn legal_cuts(global_batch: usize, micro_batch: usize, dp: usize) -> String {
    // Where the ranks' shares are uneven already, the micro-batch is not to blame, and may not even be the user's.
    let (to, unit, other) = if global_batch.is_multiple_of(dp) {
        let other = format!("`parallel.micro_batch` to {}", any_of(&divisors(global_batch / dp)));
        (
            format!("in micro-batches (`parallel.micro_batch`) of {micro_batch} to "),
            micro_batch.saturating_mul(dp),
            other,
        )
    } else {
        ("to ".to_string(), dp, format!("`parallel.dp` to {}", any_of(&divisors(global_batch))))
    };
    let below = global_batch / unit.max(1) * unit;
    let above = below.saturating_add(unit);
    let batches = if below > 0 { format!("{below} or {above}") } else { above.to_string() };
    format!("evenly {to}{dp} data-parallel ranks (`parallel.dp`); set `train.global_batch` to {batches}, or {other}")
}

/// Says how many of all examples there are.
fn of_examples(some: usize, all: usize) -> String {
    let verb = if some == 1 { "is" } else { "are" };
    format!("{some} of {all} examples {verb}")
}

/// Lists the divisors of `n`, least first.
fn divisors(n: usize) -> Vec<usize> {
    let small: Vec<usize> = (1..=n.isqrt()).filter(|d| n.is_multiple_of(*d)).collect();
    let large = small.iter().rev().map(|d| n / d).filter(|d| d * d != n);
    small.iter().copied().chain(large).collect()
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

    #[test]
    fn a_bad_cut_names_the_nearest_legal_values() {
        let text = |global_batch, micro_batch, dp| Error::BatchCut { global_batch, micro_batch, dp }.to_string();
        assert_eq!(
            text(16, 5, 3),
            "`train.global_batch` = 16 sequences cannot be dealt evenly to 3 data-parallel ranks (`parallel.dp`); \
             set `train.global_batch` to 15 or 18, or `parallel.dp` to 1, 2, 4, 8 or 16"
        );
        assert_eq!(
            text(12, 5, 2),
            "`train.global_batch` = 12 sequences cannot be dealt evenly in micro-batches (`parallel.micro_batch`) of 5 to 2 \
             data-parallel ranks (`parallel.dp`); set `train.global_batch` to 10 or 20, or `parallel.micro_batch` to 1, 2, \
             3 or 6"
        );
        assert!(text(4, 2, 5).contains("set `train.global_batch` to 5, or `parallel.dp` to 1, 2 or 4"));
    }

    #[test]
    fn a_short_text_says_how_to_mend_it() {
        let short = |tokens, held_out| {
            let origin = "the validation part of `x`".to_string();
            Error::TooShort { origin, tokens, need: 65, seq: 64, held_out }.to_string()
        };
        assert_eq!(
            short(12, Some(0.1)),
            "the validation part of `x` has 12 tokens, 65 are needed for a sequence of 64; \
             set `train.seq` to at most 11, or give more text, or hold out another fraction than 0.1"
        );
        assert!(short(1, None).ends_with("; give more text"));
    }

    #[test]
    fn divisors_are_complete_and_sorted() {
        assert_eq!(divisors(1), [1]);
        assert_eq!(divisors(12), [1, 2, 3, 4, 6, 12]);
        assert_eq!(divisors(49), [1, 7, 49]);
    }
}
