//! Which layouts are looked at: the choices along each axis, and all that the engine can run of their combinations.

use crate::{
    check_sequence, degrees::can_cut, schedule::check_passes, stages::check_stages, Candidate, Degrees, Error, Job,
    ParallelConfig, RecomputeName, Result, ScheduleName, Switch, Zero,
};

/// The most virtual stages of a rank that are tried: all further ones together shorten the bubble of 1F1B by less than a
/// 32nd of it, and each makes as many messages again.
pub const MOST_CHUNKS: usize = 32;
/// The rarest layer that is tried with full recompute: of every ninth or a rarer one the forward is less than 4 % of a step.
pub const RAREST_RECOMPUTED: usize = 8;

/// The choices along each axis.
///
/// # Examples
///
/// ```
/// use mp_plan::{published, Space};
///
/// let row = published::rows()[0];
/// let (job, ranks) = (row.job()?, 32);
/// let all: Vec<_> = Space::of(&job, ranks).candidates(&job, ranks).collect();
/// assert!(all.iter().all(|candidate| candidate.check(&job).is_ok() && candidate.ranks() == ranks));
/// # Ok::<(), mp_plan::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Space {
    /// Tensor degrees.
    pub tp: Vec<usize>,
    /// Pipeline degrees.
    pub pp: Vec<usize>,
    /// Context degrees.
    pub cp: Vec<usize>,
    /// Data degrees; empty: whatever the others leave.
    pub dp: Vec<usize>,
    /// Sequences of a micro-batch; of these, with each data degree those that divide what a data rank trains on.
    pub micro_batches: Vec<usize>,
    /// Orders of forwards and backwards, of more than one stage; one stage runs 1F1B.
    pub schedules: Vec<ScheduleName>,
    /// Virtual stages of a rank.
    pub chunks: Vec<usize>,
    /// What the data ranks share out.
    pub zero: Vec<Zero>,
    /// What is computed again, with every how many-th layer.
    pub recompute: Vec<(RecomputeName, usize)>,
    /// Whether activations are cut along the sequence, where there is more than one tensor rank.
    pub sequence_parallel: Vec<bool>,
    /// What a configuration fixes: each layout is checked as the engine will find it, with these options set.
    pub asked: ParallelConfig,
}

/// What decides the time of a layer: everything but the order of work and what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub tp: usize,
    pub pp: usize,
    pub dp: usize,
    pub cp: usize,
    pub micro_batch: usize,
    pub sequence_parallel: bool,
}

impl Space {
    /// Lists all choices for a job on so many ranks: degrees that divide them and can cut the model, every micro-batch that
    /// comes out even, all schedules and ZeRO stages, with and without a cut of the sequence.
    ///
    /// Two lists end before the engine's do: chunks at [`MOST_CHUNKS`], and with full recompute every how many-th layer at
    /// [`RAREST_RECOMPUTED`]. A configuration that fixes more is followed.
    pub fn of(job: &Job, ranks: usize) -> Self {
        let degrees = divisors(ranks);
        let degrees = || degrees.iter().copied();
        let architecture = &job.architecture;
        let whole = RecomputeName::Full;
        Self {
            tp: degrees().filter(|&tp| can_cut(architecture, tp)).collect(),
            pp: degrees().filter(|&pp| pp <= architecture.layers).collect(),
            cp: degrees().filter(|&cp| check_sequence(job.seq, cp, 1).is_ok()).collect(),
            dp: Vec::new(),
            micro_batches: divisors(job.global_batch),
            schedules: ScheduleName::ALL.to_vec(),
            chunks: (1..=MOST_CHUNKS.min(architecture.layers)).collect(),
            zero: Zero::ALL.to_vec(),
            recompute: [(RecomputeName::None, 0), (RecomputeName::Selective, 0)]
                .into_iter()
                .chain((1..=RAREST_RECOMPUTED).map(|every| (whole, every)))
                .collect(),
            sequence_parallel: vec![false, true],
            asked: ParallelConfig::default(),
        }
    }

    /// Keeps what a configuration fixes, and leaves the rest to choose.
    #[must_use]
    pub fn fixed(mut self, config: &ParallelConfig) -> Self {
        let set = |choices: &mut Vec<usize>, fixed: usize| {
            if fixed > 0 {
                *choices = vec![fixed];
            }
        };
        set(&mut self.tp, config.tp);
        set(&mut self.pp, config.pp);
        set(&mut self.cp, config.cp);
        set(&mut self.dp, config.dp);
        set(&mut self.micro_batches, config.micro_batch);
        set(&mut self.chunks, config.chunks);
        if let Switch::Set(schedule) = config.schedule {
            self.schedules = vec![schedule];
        }
        if let Switch::Set(zero) = config.zero {
            self.zero = vec![zero];
        }
        match (config.recompute, config.recompute_every) {
            // Every layer, where nothing else is said.
            (Switch::Set(RecomputeName::Full), every) => self.recompute = vec![(RecomputeName::Full, every.max(1))],
            (Switch::Set(name), _) => self.recompute = vec![(name, 0)],
            (Switch::Auto, 0) => {}
            (Switch::Auto, every) => self.recompute = vec![(RecomputeName::Full, every)],
        }
        if let Switch::Set(sequence_parallel) = config.sequence_parallel {
            self.sequence_parallel = vec![sequence_parallel];
        }
        self.asked = config.clone();
        self
    }

    /// Lists every layout that the engine runs, in a fixed order. Options that would have no effect are left out, and where one
    /// of those that are fixed has none, the whole layout is.
    pub fn candidates<'a>(&'a self, job: &'a Job, ranks: usize) -> impl Iterator<Item = Candidate> + 'a {
        self.shapes(job, ranks).into_iter().flat_map(move |shape| self.variants(job, shape).candidates(shape))
    }

    /// Refuses what the engine refuses of a layout: what cannot run, and options without effect, the fixed ones among them.
    fn check(&self, job: &Job, candidate: &Candidate) -> Result<()> {
        candidate.check(job)?;
        candidate.check_effect_in(job, &self.asked)
    }

    /// Lists the shapes.
    pub(crate) fn shapes(&self, job: &Job, ranks: usize) -> Vec<Shape> {
        // A shape has no chunks yet, that layers could be dealt to.
        let job = &Job { split: Vec::new(), ..job.clone() };
        let runs = |shape: &Shape| {
            // The cheapest question first: most micro-batches do not come out even.
            shape.comes_out_even(job)
                && (shape.tp > 1 || !shape.sequence_parallel)
                && shape.candidate().check(job).is_ok()
        };
        self.combinations(ranks).filter(runs).collect()
    }

    /// Lists what can be made of the choices with so many ranks, whether or not the engine runs it.
    fn combinations(&self, ranks: usize) -> impl Iterator<Item = Shape> + '_ {
        let degrees = self
            .pp
            .iter()
            .flat_map(move |&pp| self.cp.iter().flat_map(move |&cp| self.tp.iter().map(move |&tp| (pp, cp, tp))));
        let meshes = degrees.filter_map(move |(pp, cp, tp)| {
            let inner = pp.checked_mul(cp)?.checked_mul(tp)?;
            let dp = ranks.checked_div(inner)?;
            let wanted = self.dp.is_empty() || self.dp.contains(&dp);
            (wanted && dp > 0 && inner * dp == ranks).then_some((pp, dp, cp, tp))
        });
        meshes.flat_map(move |(pp, dp, cp, tp)| {
            self.sequence_parallel.iter().flat_map(move |&sequence_parallel| {
                let shape = move |&micro_batch: &usize| Shape { tp, pp, dp, cp, micro_batch, sequence_parallel };
                self.micro_batches.iter().map(shape)
            })
        })
    }

    /// Says why the engine runs no layout of so many ranks: what it says of one that carries every fixed option, of those
    /// whose degrees and micro-batch it would run where there are any. Options without effect are named last, and a split of
    /// other stages: with other degrees they might have one.
    pub(crate) fn refusal(&self, job: &Job, ranks: usize) -> Error {
        let refused = |shape: Shape| self.check(job, &self.carrier(shape)).err();
        let uncut = Job { split: Vec::new(), ..job.clone() };
        let runs = |shape: &Shape| Shape { sequence_parallel: false, ..*shape }.candidate().check(&uncut).is_ok();
        let elsewhere = |error: &Error| matches!(error, Error::Idle { .. } | Error::SplitLength { .. });
        let mut reasons = self.combinations(ranks).filter(runs).filter_map(refused);
        let first = reasons.next();
        let telling = match &first {
            Some(error) if elsewhere(error) => reasons.find(|error| !elsewhere(error)).or(first),
            Some(_) => first,
            None => self.combinations(ranks).find_map(refused),
        };
        let why = telling.map_or_else(|| self.uneven(job, ranks), |error| error.to_string());
        Error::NoLayout { ranks, why }
    }

    /// Says that the degrees do not make so many ranks, and which ones would that are nearest.
    fn uneven(&self, job: &Job, ranks: usize) -> String {
        // What is no choice is asked for, whoever asks.
        let only = |choices: &[usize]| if let [only] = choices { *only } else { 0 };
        let asked = Degrees { pp: only(&self.pp), dp: only(&self.dp), cp: only(&self.cp), tp: only(&self.tp), ep: 1 };
        let off = |asked: usize, own: usize| if asked == 0 { 0 } else { own.abs_diff(asked) };
        let distance = |own: &Degrees| {
            let offs = [off(asked.pp, own.pp), off(asked.dp, own.dp), off(asked.cp, own.cp), off(asked.tp, own.tp)];
            offs.into_iter().fold(0, usize::saturating_add)
        };
        let legal = Self::of(job, ranks).shapes(job, ranks).into_iter().map(Shape::degrees).min_by_key(distance);
        match legal {
            Some(legal) => Error::WorldSize { asked, world: ranks, legal }.to_string(),
            None => format!(
                "{asked} cannot make {ranks} ranks, nor do other degrees with this model, train.seq and train.global_batch; take \
                 another number of ranks"
            ),
        }
    }

    /// Returns a layout of a shape with every option that is fixed, and of the others the first.
    fn carrier(&self, shape: Shape) -> Candidate {
        let plain = shape.candidate();
        let first = |choices: &[usize]| choices.first().copied().unwrap_or(1);
        let chunks = if self.asked.chunks > 0 { self.asked.chunks } else { first(&self.chunks) };
        let takes = |schedule: &&ScheduleName| schedule.check_chunks(chunks).is_ok();
        let schedule = self.schedules.iter().find(takes).or(self.schedules.first()).copied().unwrap_or(plain.schedule);
        let chunks = if self.asked.chunks > 0 { chunks } else { schedule.default_chunks() };
        let (schedule, chunks) = if shape.pp > 1 { (schedule, chunks) } else { (plain.schedule, plain.chunks) };
        let (recompute, recompute_every) = self.recompute.first().copied().unwrap_or_default();
        let zero = self.zero.first().copied().unwrap_or(plain.zero);
        Candidate { schedule, chunks, recompute, recompute_every, zero, ..plain }
    }

    /// Lists the layouts of a shape that runs.
    pub(crate) fn variants(&self, job: &Job, shape: Shape) -> Variants {
        let orders = self.orders(job, shape);
        // Whether a form of recompute and what is stored can be hangs on no order: one stage has a single one.
        let Some(&(schedule, chunks)) = orders.first() else { return Variants::default() };
        let plain = Candidate { schedule, chunks, ..shape.candidate() };
        let form = |&(recompute, recompute_every): &(RecomputeName, usize)| {
            let form = Candidate { recompute, recompute_every, ..plain };
            form.check(job).is_ok() && form.check_effect_in(job, &self.asked).is_ok()
        };
        let stored = |&zero: &Zero| Candidate { zero, ..plain }.check(job).is_ok();
        Variants {
            forms: self.recompute.iter().copied().filter(form).collect(),
            stored: self.zero.iter().copied().filter(stored).collect(),
            orders,
        }
    }

    /// Lists schedules with their chunks.
    pub(crate) fn orders(&self, job: &Job, shape: Shape) -> Vec<(ScheduleName, usize)> {
        if shape.pp == 1 {
            // One stage has no order to choose, and no chunks.
            return vec![(ScheduleName::OneFOneB, 1)];
        }
        let micro_batches = shape.candidate().micro_batches(job);
        let dealt = |stages: usize| job.split.is_empty() || job.split.len() == stages;
        let runs = |chunks: usize| {
            check_stages(job.architecture.layers, shape.pp, chunks)
                .is_ok_and(|stages| check_passes(stages, micro_batches).is_ok() && dealt(stages))
        };
        let chunks: Vec<usize> = self.chunks.iter().copied().filter(|&chunks| runs(chunks)).collect();
        let takes = |schedule: &&ScheduleName| schedule.check_micro_batches(micro_batches, shape.pp).is_ok();
        let with = |&schedule: &ScheduleName| {
            let runs = move |chunks: &&usize| schedule.check_chunks(**chunks).is_ok();
            chunks.iter().filter(runs).map(move |&chunks| (schedule, chunks))
        };
        self.schedules.iter().filter(takes).flat_map(with).collect()
    }
}

/// The layouts of a shape: each order of work, with each form of recompute, with each ZeRO stage.
#[derive(Debug, Clone, Default)]
pub(crate) struct Variants {
    /// Schedules with their chunks.
    pub orders: Vec<(ScheduleName, usize)>,
    /// What is computed again, with every how many-th layer.
    pub forms: Vec<(RecomputeName, usize)>,
    /// What the data ranks share out.
    pub stored: Vec<Zero>,
}

impl Variants {
    /// Counts them.
    pub fn count(&self) -> usize {
        self.orders.len() * self.forms.len() * self.stored.len()
    }

    fn candidates(self, shape: Shape) -> impl Iterator<Item = Candidate> {
        let mut made = Vec::with_capacity(self.count());
        for &(schedule, chunks) in &self.orders {
            for &(recompute, recompute_every) in &self.forms {
                let form = Candidate { schedule, chunks, recompute, recompute_every, ..shape.candidate() };
                made.extend(self.stored.iter().map(|&zero| Candidate { zero, ..form }));
            }
        }
        made.into_iter()
    }
}

/// The largest number that is tried as a divisor: numbers above its square are more than ranks or sequences can be, and are
/// refused wherever they came from.
const MOST_TRIED: usize = 1 << 20;

/// Lists what divides a number, ascending.
fn divisors(number: usize) -> Vec<usize> {
    let small = (1..=number.isqrt().min(MOST_TRIED)).filter(|degree| number.is_multiple_of(*degree));
    let mut all: Vec<usize> = small.flat_map(|degree| [degree, number / degree]).collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl Shape {
    /// Says whether the data ranks' micro-batches make up a step.
    fn comes_out_even(self, job: &Job) -> bool {
        let piece = self.dp.checked_mul(self.micro_batch);
        piece.is_some_and(|piece| piece > 0 && job.global_batch.is_multiple_of(piece))
    }

    /// Returns the degrees.
    pub fn degrees(self) -> crate::Degrees {
        self.candidate().degrees()
    }

    /// Returns the plainest layout of the shape.
    pub fn candidate(self) -> Candidate {
        let Self { tp, pp, dp, cp, micro_batch, sequence_parallel } = self;
        Candidate { tp, pp, dp, cp, micro_batch, sequence_parallel, ..Candidate::default() }
    }
}

/// What decides the stages of a layout and, with the micro-batches, the order of work.
pub(crate) type Cut = (ScheduleName, usize, usize);

impl Candidate {
    /// Returns what decides the stages and the order of work.
    pub(crate) fn cut(&self) -> Cut {
        (self.schedule, self.pp, self.chunks)
    }
}
