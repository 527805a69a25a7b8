//! Text from a model, one token after the other.
//!
//! | file | is |
//! |---|---|
//! | `generate.rs` | prompts, the loop over steps, and the ranks that share the work |
//! | `generate/sampling.rs` | how a token is chosen |
//! | `generate/continuation.rs` | what of a growing text can be shown |
//! | `generate/passes.rs` | the scores of the next tokens, from kept keys and values or from nothing |
//! | `generate/ends.rs` | the tokens at which a text is over |

mod continuation;
mod ends;
mod passes;
mod sampling;

use mp_comm::{BufferMut, Communicator, Rank};
use mp_data::Tokenizer;
use serde::{Deserialize, Serialize};

pub use continuation::Continuation;
pub use ends::ends;
pub use sampling::Sampling;

use crate::agree::agree;
use crate::assembled::Assembled;
use crate::generate::passes::{Passes, Row};
use crate::{Error, Result};

/// What is asked of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The most tokens of a continuation.
    pub max_new_tokens: usize,
    /// Strings before which a continuation ends.
    pub stops: Vec<String>,
    /// Tokens with which a continuation ends.
    pub ends: Vec<u32>,
    /// Prompts that are continued side by side.
    pub batch: usize,
    /// Whether keys and values are kept; without, each token costs a pass over all before it.
    pub cached: bool,
}

impl Wish {
    /// Refuses what cannot be granted.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn check(&self) -> Result<()> {
        self.sampling.check()?;
        let refused = |key, value: &str, rule: &str| Err(Error::Config { key, value: value.into(), rule: rule.into() });
        if self.batch == 0 {
            return refused("batch", "0", "must be at least 1");
        }
        match self.stops.iter().any(String::is_empty) {
            true => refused("stop", "\"\"", "must not be empty: every text would end before it begins"),
            false => Ok(()),
        }
    }
}

/// A text to go on with.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Its number, from 0: choices depend on it.
    pub number: u64,
    /// As it was given.
    pub text: String,
    ids: Vec<u32>,
}

impl Prompt {
    /// Takes a text for a model of `max_seq` positions.
    ///
    /// # Errors
    /// [`Error::Prompt`] if there is nothing in it for the tokenizer, or more tokens than positions; [`Error::Data`] if
    /// it does not cover the text.
    pub fn new(number: u64, text: &str, tokenizer: &Tokenizer, max_seq: usize) -> Result<Self> {
        let refused = |problem: String| Err(Error::Prompt { number: number + 1, problem });
        if text.is_empty() {
            return refused("is empty, and a model needs something to go on from".into());
        }
        let ids = tokenizer.encode(text)?;
        if ids.is_empty() {
            return refused("has no tokens: the tokenizer drops all of it".into());
        }
        if ids.len() > max_seq {
            let tokens = ids.len();
            return refused(format!("has {tokens} tokens, and the model has {max_seq} positions; shorten it"));
        }
        Ok(Self { number, text: text.into(), ids })
    }

    /// Returns its tokens.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

/// Why a continuation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// As many tokens as were asked for.
    Length,
    /// A token that ends texts.
    End,
    /// A stop string.
    Stop,
    /// The model has no more positions.
    Positions,
}

/// A continuation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// The prompt.
    pub prompt: String,
    /// The tokens that follow it, one that ends the text included.
    pub tokens: Vec<u32>,
    /// Their text, before a stop string or a token that ends it; ids that the tokenizer lacks stand for none.
    pub text: String,
    /// Why it ended.
    pub reason: Reason,
}

/// One continuation under way.
struct Line<'a> {
    prompt: &'a Prompt,
    row: Row,
    continuation: Continuation<'a>,
}

/// Continues prompts, each data rank its share of them. Collective over the world; every rank gets all, in order.
///
/// `listen` hears of each piece of text, with its prompt's number, as soon as it is certain, on the ranks that write it.
///
/// # Errors
/// On all ranks: [`Error::Scores`] if a model's scores are no numbers; whatever a layer or a collective raises.
pub fn answer(
    model: Assembled<'_>,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    wish: &Wish,
    listen: &mut dyn FnMut(u64, &str),
) -> Result<Vec<Written>> {
    let data = &*model.groups.data;
    // Where the data ranks keep parts of the parameters they go through every pass together.
    let (ranks, rank) = if model.is_shared_out() { (1, 0) } else { (data.size(), data.rank().0) };
    let share = prompts.len().div_ceil(ranks).max(1);
    let mut all = Vec::with_capacity(prompts.len());
    let own = prompts.chunks(share).nth(rank).unwrap_or(&[]);
    let mut written = Ok(Vec::new());
    for batch in own.chunks(wish.batch) {
        let Ok(before) = &mut written else { break };
        match write(model, tokenizer, batch, wish, listen) {
            Ok(more) => before.extend(more),
            Err(error) => written = Err(error),
        }
    }
    let written = agree(&*model.groups.world, written)?;
    for from in 0..ranks {
        match ranks {
            1 => all.extend_from_slice(&written),
            _ => all.extend(spread(data, Rank(from), &written)?),
        }
    }
    Ok(all)
}

/// Gives all ranks of a group what one of them has written.
fn spread(group: &dyn Communicator, from: Rank, written: &[Written]) -> Result<Vec<Written>> {
    let mut bytes = match group.rank() == from {
        true => serde_json::to_vec(written).expect("a continuation is plain data"),
        false => Vec::new(),
    };
    broadcast(group, from, &mut bytes)?;
    Ok(serde_json::from_slice(&bytes).expect("the other rank wrote it"))
}

/// Gives all ranks of a group one rank's bytes.
///
/// # Errors
/// [`Error::Comm`].
pub fn broadcast(group: &dyn Communicator, from: Rank, bytes: &mut Vec<u8>) -> Result<()> {
    let mut length = [bytes.len() as i64];
    group.broadcast(BufferMut::new(&mut length), from)?;
    bytes.resize(length[0] as usize, 0);
    Ok(group.broadcast(BufferMut::new(bytes), from)?)
}

/// Continues some prompts side by side. Collective over the tensor and pipeline ranks of one model; all of them get the
/// same.
///
/// # Errors
/// As [`answer`].
pub fn write(
    model: Assembled<'_>,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    wish: &Wish,
    listen: &mut dyn FnMut(u64, &str),
) -> Result<Vec<Written>> {
    let _span = tracing::info_span!("write", prompts = prompts.len()).entered();
    let begun = |prompt| Line::new(prompt, tokenizer, wish);
    let mut lines: Vec<Line<'_>> = prompts.iter().map(begun).collect();
    if wish.max_new_tokens == 0 {
        return lines.into_iter().map(|line| line.end(Reason::Length, listen)).collect();
    }
    let max_seq = model.parameters().partition().architecture.max_seq;
    let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
    // The last token of all needs no position: nothing is read after it.
    let length = longest.saturating_add(wish.max_new_tokens - 1).min(max_seq);
    let mut passes = Passes::new(model, wish, (prompts.len(), length))?;
    let mut over: Vec<Option<Written>> = prompts.iter().map(|_| None).collect();
    let mut places: Vec<usize> = (0..prompts.len()).collect();
    while !lines.is_empty() {
        let rows: Vec<&Row> = lines.iter().map(|line| &line.row).collect();
        let tokens = passes.next(&rows)?;
        // From the last one on: the row that takes a finished one's place has had its token.
        for at in (0..lines.len()).rev() {
            let Some(reason) = lines[at].take(tokens[at], wish, max_seq, listen)? else { continue };
            passes.remove(at, lines.len() - 1)?;
            over[places.swap_remove(at)] = Some(lines.swap_remove(at).end(reason, listen)?);
        }
    }
    Ok(over.into_iter().flatten().collect())
}

impl<'a> Line<'a> {
    fn new(prompt: &'a Prompt, tokenizer: &'a Tokenizer, wish: &'a Wish) -> Self {
        let row = Row { prompt: prompt.number, ids: prompt.ids.clone() };
        Self { prompt, row, continuation: Continuation::new(tokenizer, &prompt.ids, &wish.stops) }
    }

    /// Takes a token; says why it is the last one, if it is.
    fn take(
        &mut self,
        token: u32,
        wish: &Wish,
        max_seq: usize,
        listen: &mut dyn FnMut(u64, &str),
    ) -> Result<Option<Reason>> {
        self.row.ids.push(token);
        if wish.ends.contains(&token) {
            return Ok(Some(Reason::End));
        }
        let shown = self.continuation.push(token)?;
        if !shown.is_empty() {
            listen(self.prompt.number, &shown);
        }
        let written = self.row.ids.len() - self.prompt.ids.len();
        Ok(match () {
            () if self.continuation.is_stopped() => Some(Reason::Stop),
            () if written == wish.max_new_tokens => Some(Reason::Length),
            () if self.row.ids.len() > max_seq => Some(Reason::Positions),
            () => None,
        })
    }

    fn end(mut self, reason: Reason, listen: &mut dyn FnMut(u64, &str)) -> Result<Written> {
        let rest = self.continuation.finish()?;
        if !rest.is_empty() {
            listen(self.prompt.number, &rest);
        }
        let reason = if self.continuation.is_stopped() { Reason::Stop } else { reason };
        let tokens = self.row.ids.split_off(self.prompt.ids.len());
        Ok(Written { prompt: self.prompt.text.clone(), tokens, text: self.continuation.text().into(), reason })
    }
}
