//! Published training runs, to hold the model of time against. Nothing here is used to plan: rows are facts. Constants of A100
//! were fitted on two of the tables at once, [`Source::Narayanan`] and [`Source::Korthikanti`]; when those of H100 were set,
//! [`Source::Llama3`] was in view; the others moved nothing.
//!
//! # Source
//! Narayanan et al. 2021, arXiv:2104.04473, tables 1 and 2, layouts as in the scripts published with it; Korthikanti et al.
//! 2022, arXiv:2205.05198, table 5, three chunks a rank for 175B and 530B as Megatron-LM ran them; Dubey et al. 2024,
//! arXiv:2407.21783, table 4, whose chunks are not stated: planned with four.

use crate::search::{order, search};
use crate::{
    Analytic, Architecture, ArchitectureName, Candidate, Cluster, ContextForm, Error, Estimate, Executor, Job,
    ModelConfig, Precision, RecomputeName, Result, ScheduleName, Space, StepTime, Zero,
};

/// What a row states.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Measured {
    /// FLOP a second and device, recomputed ones among them.
    HardwareFlops(f64),
    /// Model FLOPs over the device's peak.
    Utilisation(f64),
    /// Seconds of a step.
    Seconds(f64),
}

/// Where a row is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Narayanan et al. 2021, table 1: full recompute, no sequence parallelism.
    Narayanan,
    /// The same, table 2: other numbers of devices for the same models.
    NarayananScaled,
    /// Korthikanti et al. 2022, table 5: selective recompute and sequence parallelism.
    Korthikanti,
    /// The same, with full recompute and without sequence parallelism.
    KorthikantiFull,
    /// Dubey et al. 2024, table 4: Llama 3 405B on H100.
    Llama3,
}

/// One published run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// Where it is from.
    pub source: Source,
    /// Parameters in billions, as the source names the model.
    pub billions: f64,
    /// Heads.
    pub heads: usize,
    /// Width.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Devices.
    pub devices: usize,
    /// Tensor degree.
    pub tp: usize,
    /// Pipeline degree.
    pub pp: usize,
    /// Sequences of a micro-batch.
    pub micro_batch: usize,
    /// Virtual stages of each pipeline rank.
    pub chunks: usize,
    /// Sequences of a step.
    pub global_batch: usize,
    /// What was measured.
    pub measured: Measured,
}

/// Model, layout and what was measured, in the order of [`Row`].
type Line = (f64, [usize; 3], usize, [usize; 2], [usize; 3], f64);

/// Billions; heads, width, layers; devices; tp, pp; micro-batch, chunks, global batch; TFLOP/s.
const NARAYANAN: [Line; 10] = [
    (1.7, [24, 2304, 24], 32, [1, 1], [16, 1, 512], 137.0),
    (3.6, [32, 3072, 30], 64, [2, 1], [16, 1, 512], 138.0),
    (7.5, [32, 4096, 36], 128, [4, 1], [16, 1, 512], 142.0),
    (18.4, [48, 6144, 40], 256, [8, 1], [8, 1, 1024], 135.0),
    (39.1, [64, 8192, 48], 512, [8, 2], [4, 1, 1536], 138.0),
    (76.1, [80, 10240, 60], 1024, [8, 4], [2, 3, 1792], 140.0),
    (145.6, [96, 12288, 80], 1536, [8, 8], [2, 2, 2304], 148.0),
    (310.1, [128, 16384, 96], 1920, [8, 16], [1, 2, 2160], 155.0),
    (529.6, [128, 20480, 105], 2520, [8, 35], [1, 3, 2520], 163.0),
    (1008.0, [160, 25600, 128], 3072, [8, 64], [1, 1, 3072], 163.0),
];

/// As above; chunks, which the source does not state, are taken to be those of table 1 for models of that depth.
const NARAYANAN_SCALED: [Line; 6] = [
    (174.6, [96, 12288, 96], 384, [8, 12], [1, 2, 1536], 153.0),
    (174.6, [96, 12288, 96], 768, [8, 12], [1, 2, 1536], 149.0),
    (174.6, [96, 12288, 96], 1536, [8, 12], [1, 2, 1536], 141.0),
    (529.6, [128, 20480, 105], 560, [8, 35], [1, 3, 2240], 171.0),
    (529.6, [128, 20480, 105], 1120, [8, 35], [1, 3, 2240], 167.0),
    (529.6, [128, 20480, 105], 2240, [8, 35], [1, 3, 2240], 159.0),
];

/// As above; utilisation in percent.
const KORTHIKANTI: [Line; 4] = [
    (22.0, [64, 6144, 48], 8, [8, 1], [4, 1, 4], 41.5),
    (175.0, [96, 12288, 96], 64, [8, 8], [1, 3, 64], 51.4),
    (530.0, [128, 20480, 105], 280, [8, 35], [1, 3, 280], 56.0),
    (1000.0, [160, 25600, 128], 512, [8, 64], [1, 1, 512], 56.3),
];

/// Seconds of a step of the same models with full recompute.
const KORTHIKANTI_FULL: [f64; 4] = [1.42, 18.13, 49.05, 94.42];

/// As above, context degree 1, sequences of 8,192; utilisation in percent.
const LLAMA3: [Line; 2] = [
    (405.0, [128, 16384, 126], 8192, [8, 16], [1, 4, 2048], 43.0),
    (405.0, [128, 16384, 126], 16384, [8, 16], [1, 4, 2048], 41.0),
];

/// Lists all rows.
pub fn rows() -> Vec<Row> {
    let full =
        KORTHIKANTI.into_iter().zip(KORTHIKANTI_FULL).map(|((a, b, c, d, e, _), seconds)| (a, b, c, d, e, seconds));
    let of = |source, measure: fn(f64) -> Measured| move |line: Line| Row::new(source, line, measure);
    NARAYANAN
        .into_iter()
        .map(of(Source::Narayanan, |value| Measured::HardwareFlops(value * 1e12)))
        .chain(
            NARAYANAN_SCALED
                .into_iter()
                .map(of(Source::NarayananScaled, |value| Measured::HardwareFlops(value * 1e12))),
        )
        .chain(KORTHIKANTI.into_iter().map(of(Source::Korthikanti, |value| Measured::Utilisation(value / 100.0))))
        .chain(full.map(of(Source::KorthikantiFull, Measured::Seconds)))
        .chain(LLAMA3.into_iter().map(of(Source::Llama3, |value| Measured::Utilisation(value / 100.0))))
        .collect()
}

impl Row {
    fn new(source: Source, line: Line, measure: fn(f64) -> Measured) -> Self {
        let (billions, [heads, hidden, layers], devices, [tp, pp], [micro_batch, chunks, global_batch], value) = line;
        let measured = measure(value);
        Self { source, billions, heads, hidden, layers, devices, tp, pp, micro_batch, chunks, global_batch, measured }
    }

    /// Returns the machine that it was measured on.
    ///
    /// # Errors
    /// None: the presets exist.
    pub fn cluster(&self) -> Result<Cluster> {
        let name = if self.source == Source::Llama3 { "h100" } else { "a100-80" };
        Ok(Cluster::preset(name)?.with_ranks(self.devices))
    }

    /// Returns what was trained. 16-bit floats are planned as bfloat16.
    ///
    /// # Errors
    /// None: the models exist.
    pub fn job(&self) -> Result<Job> {
        let llama = self.source == Source::Llama3;
        let gpt = ModelConfig {
            architecture: ArchitectureName::Gpt2,
            hidden: self.hidden,
            layers: self.layers,
            heads: self.heads,
            // As these models were trained; so attention keeps its weights.
            dropout: 0.1,
            ..ModelConfig::default()
        };
        let config = match llama {
            true => ModelConfig { architecture: ArchitectureName::Llama, kv_heads: 8, ffn: 53248, dropout: 0.0, ..gpt },
            false => gpt,
        };
        let (vocab, seq) = if llama { (128_256, 8192) } else { (51_200, 2048) };
        Ok(Job {
            architecture: Architecture::resolve(&config, vocab, seq)?,
            seq,
            global_batch: self.global_batch,
            precision: Precision::Bf16,
            moments: 2,
            bucket_elements: 25 << 18,
            context: ContextForm::Ring,
            within_documents: false,
            split: Vec::new(),
            executor: match self.source {
                Source::Narayanan | Source::NarayananScaled => Executor::MEGATRON_2021,
                Source::Korthikanti | Source::KorthikantiFull => Executor::MEGATRON_2022,
                Source::Llama3 => Executor::ENGINE,
            },
        })
    }

    /// Finds the best layouts of each set of degrees among those that its authors' program could run, best first: with their
    /// recompute and their cut of the sequence, without ZeRO and context ranks, under 1F1B with one to four virtual stages a
    /// rank, which hold equally many layers each. `executor` says what is waited for.
    ///
    /// # Errors
    /// None: the models exist.
    pub fn best(&self, executor: Executor, most: usize) -> Result<Vec<Estimate>> {
        let (job, cluster) = (Job { executor, ..self.job()? }, self.cluster()?);
        let Candidate { recompute, recompute_every, sequence_parallel, zero, .. } = self.candidate();
        let all = Space {
            schedules: vec![ScheduleName::OneFOneB, ScheduleName::Interleaved],
            recompute: vec![(recompute, recompute_every)],
            sequence_parallel: vec![sequence_parallel],
            zero: vec![zero],
            cp: vec![1],
            ..Space::of(&job, self.devices)
        };
        let mut best = Vec::new();
        for &pp in all.pp.iter().filter(|&&pp| self.layers.is_multiple_of(pp)) {
            let even = |chunks: &usize| self.layers.is_multiple_of(pp * chunks);
            let space = Space { pp: vec![pp], chunks: (1..=4).filter(even).collect(), ..all.clone() };
            match search(&job, &cluster, &Analytic::new(&cluster), &space, self.devices, most) {
                Ok(found) => best.extend(found.layouts),
                Err(Error::NoLayout { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        best.sort_by(order);
        best.truncate(most);
        Ok(best)
    }

    /// Says by how much a predicted rate exceeds the measured one, in parts of it.
    pub fn error(&self, predicted: &StepTime) -> f64 {
        match self.measured {
            Measured::HardwareFlops(flops) => predicted.hardware_flops / flops - 1.0,
            Measured::Utilisation(share) => predicted.mfu / share - 1.0,
            Measured::Seconds(seconds) => seconds / predicted.seconds - 1.0,
        }
    }

    /// Returns how it was laid out.
    pub fn candidate(&self) -> Candidate {
        let (recompute, sequence_parallel, zero) = match self.source {
            Source::Narayanan | Source::NarayananScaled | Source::KorthikantiFull => {
                (RecomputeName::Full, false, Zero::Replicated)
            }
            Source::Korthikanti => (RecomputeName::Selective, true, Zero::Replicated),
            // The source also shards gradients (FSDP, without gathering again), which the engine does without stages alone;
            // stage 1 sends the same and keeps more.
            Source::Llama3 => (RecomputeName::None, true, Zero::Optimizer),
        };
        Candidate {
            tp: self.tp,
            pp: self.pp,
            dp: self.devices / (self.tp * self.pp),
            chunks: self.chunks,
            schedule: if self.chunks > 1 { ScheduleName::Interleaved } else { ScheduleName::OneFOneB },
            micro_batch: self.micro_batch,
            zero,
            recompute,
            recompute_every: usize::from(recompute == RecomputeName::Full),
            sequence_parallel,
            ..Candidate::default()
        }
    }
}
