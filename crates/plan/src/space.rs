//! Which layouts are looked at: the choices along each axis, and all that the engine can run of their combinations.

use crate::{
    check_sequence, degrees::can_cut, Candidate, Job, ParallelConfig, RecomputeName, ScheduleName, Switch, Zero,
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
        let divisors = || (1..=ranks).filter(|degree| ranks.is_multiple_of(*degree));
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
        self
    }

    /// Lists every layout that the engine runs, in a fixed order. Options that would have no effect are left out.
    pub fn candidates<'a>(&'a self, job: &'a Job, ranks: usize) -> impl Iterator<Item = Candidate> + 'a {
        self.shapes(job, ranks).into_iter().flat_map(move |shape| self.variants(job, shape))
    }

    /// Lists the shapes.
    pub(crate) fn shapes(&self, job: &Job, ranks: usize) -> Vec<Shape> {
        let mut shapes = Vec::new();
        for &pp in &self.pp {
            for &cp in &self.cp {
                for &tp in &self.tp {
                    let inner = pp.saturating_mul(cp).saturating_mul(tp);
                    let dp = ranks / inner.max(1);
                    let wanted = self.dp.is_empty() || self.dp.contains(&dp);
                    if inner == 0 || inner * dp != ranks || !wanted || dp == 0 {
                        continue;
                    }
                    for &micro_batch in &self.micro_batches {
                        let flags = self.sequence_parallel.iter().filter(|&&cut| !cut || tp > 1);
                        let made = flags.map(|&cut| Shape { tp, pp, dp, cp, micro_batch, sequence_parallel: cut });
                        shapes.extend(made.filter(|shape| shape.candidate().check(job).is_ok()));
                    }
                }
            }
        }
        shapes
    }

    /// Lists the layouts of a shape.
    pub(crate) fn variants(&self, job: &Job, shape: Shape) -> impl Iterator<Item = Candidate> {
        let (orders, forms, stored) = (self.orders(job, shape), self.forms(job, shape), self.stored(shape));
        let mut made = Vec::with_capacity(orders.len() * forms.len() * stored.len());
        for &(schedule, chunks) in &orders {
            for &(recompute, recompute_every) in &forms {
                for &zero in &stored {
                    let candidate =
                        Candidate { schedule, chunks, recompute, recompute_every, zero, ..shape.candidate() };
                    if candidate.check(job).is_ok() {
                        made.push(candidate);
                    }
                }
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
            let even = |chunks: usize| {
                let fewest = chunks == schedule.default_chunks();
                fewest || alone || layers.is_multiple_of(shape.pp * chunks)
            };
            let fits = |&&chunks: &&usize| schedule.check_chunks(chunks).is_ok() && even(chunks);
            orders.extend(self.chunks.iter().filter(fits).map(|&chunks| (schedule, chunks)));
        }
        orders
    }

    /// Lists forms of recompute that have an effect; a single one is taken as it is.
    pub(crate) fn forms(&self, job: &Job, shape: Shape) -> Vec<(RecomputeName, usize)> {
        let helps = |&(recompute, recompute_every): &(RecomputeName, usize)| {
            let candidate = Candidate { recompute, recompute_every, ..shape.candidate() };
            recompute_every <= job.architecture.layers && candidate.check_effect(job).is_ok()
        };
        let alone = self.recompute.len() == 1;
        self.recompute.iter().copied().filter(|form| alone || helps(form)).collect()
    }

    /// Lists ZeRO stages that can be.
    pub(crate) fn stored(&self, shape: Shape) -> Vec<Zero> {
        let mesh = shape.candidate().mesh();
        let can = |zero: &Zero| mesh.as_ref().is_ok_and(|mesh| crate::check_zero(*zero, mesh).is_ok());
        self.zero.iter().copied().filter(can).collect()
    }
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
