//! The executor driven by a stage that is no model: what comes out, and how many activations live at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use mp_comm::threads;
use mp_model::{Goal, Model, Parameters, Pass, Stage};
use mp_plan::{Architecture, Degrees, Mesh, ModelConfig, Partition, Schedule, ScheduleName, Stages};
use mp_runtime::{autograd, Device, Kind, Precision, Tensor};
use mp_train::pipeline::{forward_only, Flight, Line, MicroBatch};

/// Activations kept for a backward: now, and at most.
#[derive(Debug, Default)]
struct Live {
    now: AtomicUsize,
    peak: AtomicUsize,
}

/// One of them.
struct Kept(Arc<Live>);

impl Kept {
    fn new(live: &Arc<Live>) -> Self {
        let now = live.now.fetch_add(1, Ordering::SeqCst) + 1;
        live.peak.fetch_max(now, Ordering::SeqCst);
        Self(Arc::clone(live))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Multiplies by its number, counted from 2; the first stage starts from the tokens.
struct Toy {
    index: usize,
    live: Arc<Live>,
    /// Sum of the gradients that came back to the first stage.
    first: Arc<std::sync::Mutex<f64>>,
}

impl Stage for Toy {
    fn forward(&self, pass: &Pass<'_>, input: Option<&Tensor>) -> mp_model::Result<Tensor> {
        let x = match input {
            Some(input) => input.shallow_clone(),
            None => pass.tokens.f_to_kind(Kind::Double)?.f_unsqueeze(2)?.f_set_requires_grad(true)?,
        };
        let factor = self.index as f64 + 2.0;
        let y = {
            let _off = autograd::no_grad();
            x.f_mul_scalar(factor)?
        };
        let (kept, first, starts) = (Kept::new(&self.live), Arc::clone(&self.first), input.is_none());
        autograd::attach(&[&x], &[y.shallow_clone()], move |gradients| {
            let _kept = &kept;
            let gradient = gradients[0].as_ref().map(|g| g.f_mul_scalar(factor)).transpose()?;
            if let (true, Some(gradient)) = (starts, &gradient) {
                *first.lock().unwrap() += gradient.f_sum(None)?.double_value(&[]);
            }
            Ok(vec![gradient])
        })?;
        Ok(y)
    }

    fn loss_sum(&self, hidden: &Tensor, _targets: &Tensor) -> mp_model::Result<Tensor> {
        Ok(hidden.f_sum(None)?)
    }

    fn loss(&self, hidden: &Tensor, _pass: &Pass<'_>, goal: &Goal<'_>) -> mp_model::Result<Tensor> {
        Ok(self.loss_sum(hidden, goal.targets)?.f_mul_scalar(goal.share)?)
    }

    fn logits(&self, hidden: &Tensor) -> mp_model::Result<Tensor> {
        Ok(hidden.shallow_clone())
    }
}

/// A model whose parameters nobody uses.
fn model(chunks: Vec<Box<dyn Stage>>) -> Model {
    let config = ModelConfig { hidden: 4, layers: 1, heads: 1, ..ModelConfig::default() };
    let architecture = Architecture::resolve(&config, 8, 4).unwrap();
    let mesh = Mesh::new(Degrees::default()).unwrap();
    let partition = Arc::new(Partition::new(&architecture, &mesh).unwrap());
    Model::new(Parameters::new(&partition, 0, 1, Precision::Fp64, Device::Cpu).unwrap(), chunks)
}

fn check(name: ScheduleName, pp: usize, micro_batches: usize) {
    let chunks = name.default_chunks();
    let stages = Stages::with_layers(pp, chunks, name.folding(), &vec![1; pp * chunks]).unwrap();
    let schedule = Schedule::new(name, stages, micro_batches, false).unwrap();
    let stages = &schedule.stages;
    let product: f64 = (0..stages.count()).map(|stage| stage as f64 + 2.0).product();
    let results = threads::run(pp, |group| -> mp_train::Result<_> {
        let rank = group.rank().0;
        let (live, first) = (Arc::new(Live::default()), Arc::new(std::sync::Mutex::new(0.0)));
        let toy = |chunk| -> Box<dyn Stage> {
            let index = stages.stage_of(rank, chunk);
            Box::new(Toy { index, live: Arc::clone(&live), first: Arc::clone(&first) })
        };
        let model = model((0..chunks).map(toy).collect());
        let tokens: Vec<Tensor> =
            (0..micro_batches).map(|at| Tensor::from_slice(&[at as i64 + 1]).view([1, 1])).collect();
        let micro_batch = |tokens| MicroBatch {
            pass: Pass::evaluation(tokens),
            goal: Goal { targets: tokens, share: 0.5, sentences: None },
            shape: [1, 1, 1],
        };
        let line = Line { stages, group: &*group };
        let steps = &schedule.ranks[rank];
        let mut flight = Flight::new(line, &model, tokens.iter().map(micro_batch).collect(), steps)?;
        for &step in steps {
            flight.run(step)?;
        }
        let loss = flight.land()?;
        let scored = forward_only(line, &model, &Pass::evaluation(&tokens[0]), [1, 1, 1], |last, hidden| {
            Ok(last.logits(hidden)?.double_value(&[0, 0, 0]))
        })?;
        let peak = live.peak.load(Ordering::SeqCst);
        assert_eq!(live.now.load(Ordering::SeqCst), 0, "everything kept is let go");
        let first = *first.lock().unwrap();
        Ok((loss, first, scored, peak))
    });
    let sum: f64 = (1..=micro_batches).map(|at| at as f64).sum();
    let (first, last) = (stages.rank_of(0), stages.rank_of(stages.count() - 1));
    for (rank, (loss, gradient, scored, peak)) in results.into_iter().enumerate() {
        assert_eq!(loss, if rank == last { 0.5 * sum * product } else { 0.0 }, "{name} {pp} {micro_batches}");
        assert_eq!(gradient, if rank == first { 0.5 * micro_batches as f64 * product } else { 0.0 });
        assert_eq!(scored, (rank == last).then_some(product));
        // The schedule counts what waits for a weight gradient too; this stage has none.
        match name {
            ScheduleName::ZbH1 | ScheduleName::ZbV => assert!(peak <= schedule.peak_live(rank)),
            _ => assert_eq!(peak, schedule.peak_live(rank), "{name}, rank {rank} of {pp}, {micro_batches}"),
        }
    }
}

#[test]
fn every_schedule_computes_the_same_and_keeps_no_more_than_it_says() {
    for name in ScheduleName::ALL {
        for pp in [1, 2, 3, 4] {
            for rounds in [1, 2, 3] {
                let micro_batches = if name == ScheduleName::Interleaved { rounds * pp } else { 2 * rounds + 1 };
                check(name, pp, micro_batches);
            }
        }
    }
}
