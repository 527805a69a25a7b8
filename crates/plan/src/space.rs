//! Which layouts are looked at: the choices along each axis, and all that the engine can run of their combinations.

use crate::{
    check_sequence, degrees::can_cut, Candidate, Degrees, Error, Job, ParallelConfig, RecomputeName, Result,
    ScheduleName, Switch, Zero,
};

/// The most sequences of a micro-batch that are tried: beyond, products grow no faster.
const MOST_SEQUENCES: usize = 64;
/// The most virtual stages of a rank that are tried: each more makes as many messages again.
const MOST_CHUNKS: usize = 4;

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
    /// Sequences of a micro-batch.
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
    /// Lists all choices that make sense for a job on so many ranks: degrees that divide them and can cut the model;
    /// micro-batches by powers of two; up to four chunks that share the layers evenly, and two; all schedules, ZeRO stages and
    /// forms of recompute, of whole layers each, every second, fourth or eighth.
    pub fn of(job: &Job, ranks: usize) -> Self {
        let divisors = divisors(ranks);
        let divisors = || divisors.iter().copied();
        let architecture = &job.architecture;
        let largest = job.global_batch.clamp(1, MOST_SEQUENCES);
        let whole = RecomputeName::Full;
        Self {
            tp: divisors().filter(|&tp| can_cut(architecture, tp)).collect(),
            pp: divisors().filter(|&pp| pp <= architecture.layers).collect(),
            cp: divisors().filter(|&cp| check_sequence(job.seq, cp, 1).is_ok()).collect(),
            dp: Vec::new(),
            micro_batches: std::iter::successors(Some(1), |size| Some(2 * size))
                .take_while(|&size| size <= largest)
                .collect(),
            schedules: ScheduleName::ALL.to_vec(),
            chunks: (1..=MOST_CHUNKS).collect(),
            zero: Zero::ALL.to_vec(),
            recompute: [(RecomputeName::None, 0), (RecomputeName::Selective, 0)]
                .into_iter()
                .chain([1, 2, 4, 8].map(|every| (whole, every)))
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
        self.shapes(job, ranks).into_iter().flat_map(move |shape| self.variants(job, shape))
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
        let runs = |shape: &Shape| (shape.tp > 1 || !shape.sequence_parallel) && shape.candidate().check(job).is_ok();
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
            self.micro_batches.iter().flat_map(move |&micro_batch| {
                let shape = move |&cut: &bool| Shape { tp, pp, dp, cp, micro_batch, sequence_parallel: cut };
                self.sequence_parallel.iter().map(shape)
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
        let mut reasons: Vec<Error> = self.combinations(ranks).filter(runs).filter_map(refused).collect();
        if reasons.is_empty() {
            reasons.extend(self.combinations(ranks).find_map(refused));
        }
        let elsewhere = |error: &Error| matches!(error, Error::Idle { .. } | Error::SplitLength { .. });
        let telling = reasons.iter().position(|error| !elsewhere(error)).unwrap_or(0);
        let why = reasons.get(telling).map_or_else(|| self.uneven(job, ranks), ToString::to_string);
        Error::NoLayout { ranks, why }
    }

    /// Says that the degrees do not make so many ranks, and which ones would that are nearest.
    fn uneven(&self, job: &Job, ranks: usize) -> String {
        // What is no choice is asked for, whoever asks.
        let only = |choices: &[usize]| if let [only] = choices { *only } else { 0 };
        let asked = Degrees { pp: only(&self.pp), dp: only(&self.dp), cp: only(&self.cp), tp: only(&self.tp), ep: 1 };
        let off = |asked: usize, own: usize| if asked == 0 { 0 } else { own.abs_diff(asked) };
        let distance = |own: &Degrees| {
            off(asked.pp, own.pp) + off(asked.dp, own.dp) + off(asked.cp, own.cp) + off(asked.tp, own.tp)
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

    /// Lists the layouts of a shape.
    pub(crate) fn variants(&self, job: &Job, shape: Shape) -> impl Iterator<Item = Candidate> {
        let (orders, forms, stored) = (self.orders(job, shape), self.forms(job), self.stored(shape));
        // The order decides the effect of nothing else: one stage has a single one. Nor does what is stored.
        let (schedule, chunks) = orders.first().copied().unwrap_or((ScheduleName::OneFOneB, 1));
        let effective = |&(recompute, recompute_every): &(RecomputeName, usize)| {
            let form = Candidate { schedule, chunks, recompute, recompute_every, ..shape.candidate() };
            form.check_effect_in(job, &self.asked).is_ok()
        };
        let forms: Vec<_> = forms.into_iter().filter(effective).collect();
        let mut made = Vec::with_capacity(orders.len() * forms.len() * stored.len());
        for &(schedule, chunks) in &orders {
            for &(recompute, recompute_every) in &forms {
                let form = Candidate { schedule, chunks, recompute, recompute_every, ..shape.candidate() };
                let all = stored.iter().map(|&zero| Candidate { zero, ..form });
                made.extend(all.filter(|candidate| candidate.check(job).is_ok()));
            }
        }
        made.into_iter()
    }

    /// Lists schedules with their chunks.
    pub(crate) fn orders(&self, job: &Job, shape: Shape) -> Vec<(ScheduleName, usize)> {
        let layers = job.architecture.layers;
        if shape.pp == 1 {
            // One stage has no order to choose, and no chunks.
            return vec![(ScheduleName::OneFOneB, 1)];
        }
        let alone = self.chunks.len() == 1;
        let mut orders = Vec::new();
        for &schedule in &self.schedules {
            let even = |chunks: usize| match job.split.len() {
                0 => chunks == schedule.default_chunks() || alone || layers.is_multiple_of(shape.pp * chunks),
                stages => shape.pp * chunks == stages,
            };
            let fits = |&&chunks: &&usize| schedule.check_chunks(chunks).is_ok() && even(chunks);
            orders.extend(self.chunks.iter().filter(fits).map(|&chunks| (schedule, chunks)));
        }
        orders
    }

    /// Lists forms of recompute, of layers that there are; a single one is taken as it is.
    pub(crate) fn forms(&self, job: &Job) -> Vec<(RecomputeName, usize)> {
        let alone = self.recompute.len() == 1;
        let fits = |&(_, every): &(RecomputeName, usize)| alone || every <= job.architecture.layers;
        self.recompute.iter().copied().filter(fits).collect()
    }

    /// Lists ZeRO stages that can be.
    pub(crate) fn stored(&self, shape: Shape) -> Vec<Zero> {
        let mesh = shape.candidate().mesh();
        let can = |zero: &Zero| mesh.as_ref().is_ok_and(|mesh| crate::check_zero(*zero, mesh).is_ok());
        self.zero.iter().copied().filter(can).collect()
    }
}

/// Lists what divides a number, ascending.
fn divisors(number: usize) -> Vec<usize> {
    let small = (1..=number.isqrt()).filter(|degree| number.is_multiple_of(*degree));
    let mut all: Vec<usize> = small.flat_map(|degree| [degree, number / degree]).collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl Shape {
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
