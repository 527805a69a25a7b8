//! The next token of several texts: passes through the stages, and the choice on the last of them.

use mp_comm::{BufferMut, Rank};
use mp_model::cache::{Cache, Cached};
use mp_model::pass::Positions;
use mp_model::{Pass, Stage};
use mp_runtime::{Device, Kind, Tensor};

use super::{Sampling, Wish};
use crate::assembled::Assembled;
use crate::pipeline::forward_only;
use crate::{Error, Result};

/// A text so far.
#[derive(Debug)]
pub(super) struct Row {
    /// Its prompt's number.
    pub prompt: u64,
    /// The prompt's tokens and what follows.
    pub ids: Vec<u32>,
}

/// Stands for a token where the scores are no numbers: all ranks must hear of it.
const NONE: i64 = -1;

/// Passes over growing texts.
pub(super) struct Passes<'a> {
    model: Assembled<'a>,
    sampling: Sampling,
    cache: Option<Cache>,
    /// Whether the prompts' keys and values are kept by now.
    filled: bool,
}

impl<'a> Passes<'a> {
    /// Prepares for so many texts of so many positions.
    pub fn new(model: Assembled<'a>, wish: &Wish, (rows, length): (usize, usize)) -> Result<Self> {
        let cache = wish.cached.then(|| Cache::new(model.parameters(), rows, length)).transpose()?;
        Ok(Self { model, sampling: wish.sampling, cache, filled: false })
    }

    /// Chooses the next token of each text, the same on all ranks.
    pub fn next(&mut self, rows: &[&Row]) -> Result<Vec<u32>> {
        let mut tokens = match &self.cache {
            Some(cache) if self.filled => self.step(cache, rows)?,
            _ => {
                let each = rows.iter().enumerate().map(|(at, row)| self.whole(at, row));
                each.collect::<Result<Vec<_>>>()?
            }
        };
        self.filled = true;
        let line = self.model.line();
        let last = Rank(line.stages.rank_of(line.stages.count() - 1));
        line.group.broadcast(BufferMut::new(&mut tokens), last)?;
        let known = |(&token, row): (&i64, &&Row)| {
            u32::try_from(token).map_err(|_| Error::Scores { prompt: row.prompt + 1, position: row.ids.len() })
        };
        tokens.iter().zip(rows).map(known).collect()
    }

    /// Forgets a text; the last one takes its place.
    pub fn remove(&self, at: usize, last: usize) -> Result<()> {
        match &self.cache {
            Some(cache) if at < last => Ok(cache.replace(at, last)?),
            _ => Ok(()),
        }
    }

    /// Reads a whole text, and keeps its keys and values in its row.
    fn whole(&self, at: usize, row: &Row) -> Result<i64> {
        let seq = row.ids.len();
        let tokens = self.tokens(row.ids.iter().copied())?;
        let cached = self.cache.as_ref().map(|cache| Cached::Prompt { cache, row: at });
        let pass = Pass { cached: cached.as_ref(), ..Pass::evaluation(&tokens) };
        let chosen = self.run(&pass, seq, |last, hidden| {
            let scores = scores(last, &hidden.f_narrow(1, seq as i64 - 1, 1)?)?;
            Ok(vec![self.choose(&scores.f_view([-1])?, row)?])
        })?;
        Ok(chosen.map_or(NONE, |chosen| chosen[0]))
    }

    /// Reads the last token of each text.
    fn step(&self, cache: &Cache, rows: &[&Row]) -> Result<Vec<i64>> {
        let tokens = self.tokens(rows.iter().map(|row| row.ids[row.ids.len() - 1]))?;
        let at: Vec<usize> = rows.iter().map(|row| row.ids.len() - 1).collect();
        let positions: Positions = cache.positions(&at);
        let cached = Cached::Step { cache, at };
        let pass = Pass { positions, cached: Some(&cached), ..Pass::evaluation(&tokens) };
        let chosen = self.run(&pass, rows.len(), |last, hidden| {
            let scores = scores(last, hidden)?;
            let one = |(at, row): (usize, &&Row)| self.choose(&scores.f_select(1, at as i64)?.f_view([-1])?, row);
            rows.iter().enumerate().map(one).collect()
        })?;
        Ok(chosen.unwrap_or_else(|| vec![NONE; rows.len()]))
    }

    fn tokens(&self, ids: impl Iterator<Item = u32>) -> Result<Tensor> {
        let ids: Vec<i64> = ids.map(i64::from).collect();
        let tokens = Tensor::f_from_slice(&ids).and_then(|tokens| tokens.f_unsqueeze(0));
        let placed = tokens.and_then(|tokens| tokens.f_to_device(self.model.parameters().device()));
        Ok(placed.map_err(mp_runtime::Error::from)?)
    }

    fn run(
        &self,
        pass: &Pass<'_>,
        seq: usize,
        last: impl FnOnce(&dyn Stage, &Tensor) -> mp_model::Result<Vec<i64>>,
    ) -> Result<Option<Vec<i64>>> {
        let shape = self.model.activation_shape(1, seq);
        forward_only(self.model.line(), self.model.model, pass, shape, last)
    }

    fn choose(&self, scores_v: &Tensor, row: &Row) -> mp_model::Result<i64> {
        // All of the model's ids, also those that its tokenizer lacks: one of them may end texts. What fills up the last
        // rank's rows of the table is none.
        let vocab = self.model.parameters().partition().architecture.vocab as i64;
        let known = scores_v.size()[0].min(vocab);
        let scores = Vec::<f64>::try_from(&scores_v.f_narrow(0, 0, known)?)?;
        let chosen = self.sampling.choose(scores, &row.ids, row.prompt, row.ids.len());
        Ok(chosen.map_or(NONE, i64::from))
    }
}

/// Computes the scores at some positions, where they can be looked through.
fn scores(last: &dyn Stage, hidden: &Tensor) -> mp_model::Result<Tensor> {
    Ok(last.logits(hidden)?.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?)
}
