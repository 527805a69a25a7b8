//! Writing and measuring, on any layout: keys and values that are kept change nothing but the time, what is written beside
//! changes nothing at all, and a text has one loss.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use mp_comm::{threads, Communicator};
use mp_data::{Tokenizer, Tokens};
use mp_model::cache::{Cache, Cached};
use mp_model::{Model, Parameters, Pass};
use mp_plan::{Architecture, Degrees, Mesh, Partition};
use mp_runtime::{Device, Precision, Tensor};
use mp_train::checkpoint::{Dtype, Entry};
use mp_train::evaluate::{evaluate, measure, Consecutive, Measured};
use mp_train::generate::{answer, Prompt, Reason, Sampling, Wish, Written};
use mp_train::inference::{Inference, Use};
use mp_train::weights::WeightSource;
use mp_train::{Config, Error, Result};

const SEQ: usize = 40;

/// Weights drawn from a seed, as if they had been saved.
#[derive(Debug)]
struct Drawn {
    parameters: Parameters,
}

impl Drawn {
    fn new(config: &Config) -> Self {
        let architecture = Architecture::resolve(&config.model, 256, SEQ).unwrap();
        let mesh = Mesh::new(Degrees::default()).unwrap();
        let partition = Arc::new(Partition::new(&architecture, &mesh).unwrap());
        let parameters = Parameters::new(&partition, 0, 7, Precision::Fp64, Device::Cpu).unwrap();
        // Far from the small values of a fresh model, whose scores are all but equal.
        let _ = parameters.masters().all().shallow_clone().f_mul_scalar_(8.0).unwrap();
        Self { parameters }
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.parameters.partition().parameters.iter().position(|parameter| parameter.spec.name == name)
    }
}

impl WeightSource for Drawn {
    fn names(&self) -> Vec<String> {
        self.parameters.partition().parameters.iter().map(|parameter| parameter.spec.name.clone()).collect()
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        let parameter = &self.parameters.partition().parameters[self.index(name)?];
        Some(Entry::new(name, Dtype::F64, &parameter.spec.shape))
    }

    fn read(&self, name: &str, region: &[std::ops::Range<usize>]) -> Result<Vec<u8>> {
        let mut full = self.parameters.masters().view(self.index(name).unwrap()).unwrap();
        for (dim, range) in region.iter().enumerate() {
            full = full.narrow(dim as i64, range.start as i64, range.len() as i64);
        }
        let values = Vec::<f64>::try_from(full.contiguous().view([-1])).unwrap();
        Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn origin(&self) -> &Path {
        Path::new("drawn")
    }
}

fn config(sets: &[&str]) -> Config {
    let base = ["model.hidden=32", "model.layers=4", "model.heads=4", "model.ffn=40", "train.seq=40"];
    let sets = base.iter().chain(&["train.precision=fp64"]).chain(sets);
    Config::load(None, None, &sets.map(|set| set.to_string()).collect::<Vec<_>>()).unwrap()
}

const FAMILIES: [&[&str]; 4] = [
    &["model.architecture=gpt2"],
    &["model.kv_heads=2"],
    &["model.kv_heads=1", "model.tie_embeddings=true"],
    &["model.kv_heads=2", "model.window=5"],
];

/// Layouts with so many ranks; the last two are four.
const LAYOUTS: [(usize, &[&str]); 7] = [
    (1, &["parallel.tp=1"]),
    (2, &["parallel.tp=2"]),
    (2, &["parallel.tp=1", "parallel.pp=2"]),
    (2, &["parallel.tp=1", "parallel.cp=2"]),
    (2, &["parallel.tp=1", "parallel.zero=3"]),
    (4, &["parallel.tp=4"]),
    (4, &["parallel.tp=2", "parallel.pp=2", "parallel.schedule=interleaved", "parallel.chunks=2"]),
];

fn inference(config: &Config, world: &Arc<dyn Communicator>, purpose: Use) -> Result<Inference> {
    Inference::new(config, 256, &Drawn::new(config), world, Device::Cpu, purpose)
}

fn wish(sampling: Sampling, tokens: usize) -> Wish {
    Wish { sampling, max_new_tokens: tokens, stops: Vec::new(), ends: Vec::new(), batch: 16, cached: true }
}

const TEXTS: [&str; 5] = ["a", "The quick brown fox", "xyz", "to be, or not", "The quick brown foy"];

fn prompts(texts: &[&str]) -> Vec<Prompt> {
    let prompt = |(number, text): (usize, &&str)| Prompt::new(number as u64, text, &Tokenizer::bytes(), SEQ).unwrap();
    texts.iter().enumerate().map(prompt).collect()
}

/// Writes on all ranks of a layout, which must agree.
fn written(sets: &[&[&str]], ranks: usize, prompts: &[Prompt], wish: &Wish) -> Vec<Written> {
    let config = config(&sets.concat());
    let mut all = threads::run(ranks, |world| {
        let inference = inference(&config, &world, Use::Writing)?;
        answer(inference.assembled(), &Tokenizer::bytes(), prompts, wish, &mut |_, _| ())
    });
    let first = all.swap_remove(0);
    assert!(all.iter().all(|other| *other == first), "ranks differ: {sets:?}");
    first
}

/// Computes the scores after each token of rows of different lengths, prompts first and the rest step by step.
fn stepped(model: &Model, rows: &[&[i64]], prompts: &[usize]) -> Vec<Vec<Tensor>> {
    let longest = rows.iter().map(|row| row.len()).max().unwrap();
    let _off = mp_runtime::autograd::no_grad();
    let cache = Cache::new(model.parameters(), rows.len(), longest).unwrap();
    let mut scores: Vec<Vec<Tensor>> = Vec::new();
    for (row, (ids, &prompt)) in rows.iter().zip(prompts).enumerate() {
        let tokens = Tensor::from_slice(&ids[..prompt]).unsqueeze(0);
        let cached = Cached::Prompt { cache: &cache, row };
        let pass = Pass { cached: Some(&cached), ..Pass::evaluation(&tokens) };
        scores.push(vec![model.logits(&pass).unwrap().select(1, prompt as i64 - 1)]);
    }
    for step in 0.. {
        let at: Vec<usize> = prompts.iter().map(|prompt| prompt + step).collect();
        // Rows that are over do not step; here all have equally many steps.
        if at.iter().zip(rows).any(|(&at, row)| at >= row.len()) {
            return scores;
        }
        let tokens: Vec<i64> = at.iter().zip(rows).map(|(&at, row)| row[at]).collect();
        let (tokens, positions) = (Tensor::from_slice(&tokens).unsqueeze(0), cache.positions(&at));
        let cached = Cached::Step { cache: &cache, at };
        let pass = Pass { positions, cached: Some(&cached), ..Pass::evaluation(&tokens) };
        let all = model.logits(&pass).unwrap();
        for (row, scores) in scores.iter_mut().enumerate() {
            scores.push(all.select(1, row as i64));
        }
    }
    unreachable!()
}

#[test]
fn kept_keys_and_values_give_the_scores_of_whole_sequences_on_any_tensor_ranks() {
    // Lengths 3, 9 and 6, of which the last six tokens are read one by one in a batch.
    let all: Vec<i64> = (0..30).map(|i| (i * 37 + 11) % 256).collect();
    let rows: [&[i64]; 3] = [&all[..9], &all[10..25], &all[4..16]];
    for sets in FAMILIES {
        for tp in [1, 2, 4] {
            let parallel = format!("parallel.tp={tp}");
            let config = config(&[sets, &[&parallel]].concat());
            threads::run(tp, |world| {
                let inference = inference(&config, &world, Use::Writing)?;
                let model = inference.assembled().model;
                let stepped = stepped(model, &rows, &[3, 9, 6]);
                for (row, scores) in rows.iter().zip(&stepped) {
                    assert_eq!(scores.len(), 7);
                    let tokens = Tensor::from_slice(row).unsqueeze(0);
                    let whole = model.logits(&Pass::evaluation(&tokens))?;
                    let first = row.len() - scores.len();
                    for (step, scores) in scores.iter().enumerate() {
                        let expected = whole.select(1, (first + step) as i64);
                        let scale = expected.abs().max().double_value(&[]);
                        let difference = (scores - &expected).abs().max().double_value(&[]);
                        assert!(difference <= 1e-10 * scale, "{sets:?} tp={tp} step {step}: {difference:e}");
                    }
                }
                Ok::<_, Error>(())
            });
        }
    }
}

#[test]
fn any_layout_writes_what_one_rank_writes_without_a_cache() {
    let sampling = Sampling { temperature: 0.9, top_k: 40, top_p: 0.95, seed: 3, ..Sampling::default() };
    for sets in FAMILIES {
        let uncached = Wish { cached: false, batch: 1, ..wish(sampling, 12) };
        let prompts = prompts(&TEXTS);
        let expected = written(&[sets, LAYOUTS[0].1], 1, &prompts, &uncached);
        assert!(expected.iter().all(|written| written.tokens.len() == 12 && written.reason == Reason::Length));
        assert_ne!(expected[1].tokens, expected[4].tokens);
        for (ranks, layout) in LAYOUTS {
            for batch in [2, 16] {
                let got = written(&[sets, layout], ranks, &prompts, &Wish { batch, ..wish(sampling, 12) });
                assert_eq!(got, expected, "{sets:?} {layout:?} batches of {batch}");
            }
        }
    }
}

#[test]
fn single_precision_writes_long_texts_alike_on_any_tensor_ranks() {
    let (sets, texts) = (&["train.precision=fp32", "train.seq=256"][..], prompts(&TEXTS[..2]));
    // The scores of these weights are far apart: only heat makes draws of them that a small error would change.
    for temperature in [0.0, 0.8, 8.0] {
        let wish = wish(Sampling { temperature, seed: 9, ..Sampling::default() }, 220);
        let expected = written(&[FAMILIES[1], sets, &["parallel.tp=1"]], 1, &texts, &wish);
        assert!(expected.iter().all(|written| written.tokens.len() == 220), "{expected:?}");
        for (ranks, layout) in [LAYOUTS[1], LAYOUTS[5]] {
            let got = written(&[FAMILIES[1], sets, layout], ranks, &texts, &wish);
            assert_eq!(got, expected, "temperature {temperature}, {ranks} ranks");
        }
    }
}

#[test]
fn what_is_written_beside_changes_nothing() {
    let sampling = Sampling { seed: 5, ..Sampling::default() };
    let all = prompts(&TEXTS);
    let together = written(&[FAMILIES[1]], 1, &all, &wish(sampling, 10));
    for (prompt, together) in all.iter().zip(&together) {
        let alone = written(&[FAMILIES[1]], 1, std::slice::from_ref(prompt), &wish(sampling, 10));
        assert_eq!(alone[0], *together);
    }
}

#[test]
fn rows_that_end_early_leave_the_others_as_they_are() {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let all = prompts(&TEXTS);
    let free = written(&[FAMILIES[0]], 1, &all, &wish(greedy, 16));
    // Each row's third token ends texts: rows end at different steps, whoever meets one of them first.
    let ends: Vec<u32> = free.iter().map(|written| written.tokens[2]).collect();
    let got = written(&[FAMILIES[0]], 1, &all, &Wish { ends: ends.clone(), ..wish(greedy, 16) });
    let lengths: Vec<usize> = got.iter().map(|written| written.tokens.len()).collect();
    for (got, free) in got.iter().zip(&free) {
        let end = free.tokens.iter().position(|token| ends.contains(token)).unwrap();
        assert_eq!((got.reason, &got.tokens[..]), (Reason::End, &free.tokens[..=end]));
    }
    assert!(lengths.iter().all(|&length| length <= 3), "{lengths:?}");
}

#[test]
fn ids_that_the_tokenizer_lacks_are_chosen_and_may_end_texts() {
    // 45 more rows than bytes, and as many as no four ranks can share: the last one's are filled up.
    let (sampling, sets) = (Sampling { seed: 2, ..Sampling::default() }, &["model.vocab=301"][..]);
    let all = prompts(&TEXTS);
    let free = written(&[FAMILIES[1], sets], 1, &all, &wish(sampling, 20));
    let beyond: Vec<u32> = free.iter().flat_map(|written| written.tokens.clone()).filter(|&id| id > 255).collect();
    assert!(!beyond.is_empty() && beyond.iter().all(|&id| id < 301), "{beyond:?}");
    for written in &free {
        let known: Vec<u32> = written.tokens.iter().copied().filter(|&id| id < 256).collect();
        assert_eq!(written.text, Tokenizer::bytes().decode(&known).unwrap());
    }
    let cut = written(&[FAMILIES[1], sets, LAYOUTS[5].1], LAYOUTS[5].0, &all, &wish(sampling, 20));
    assert_eq!(cut, free);
    let ended = written(&[FAMILIES[1], sets], 1, &all, &Wish { ends: beyond.clone(), ..wish(sampling, 20) });
    for (ended, free) in ended.iter().zip(&free) {
        let end = free.tokens.iter().position(|token| beyond.contains(token));
        let expected = end.map_or((Reason::Length, &free.tokens[..]), |end| (Reason::End, &free.tokens[..=end]));
        assert_eq!((ended.reason, &ended.tokens[..]), expected);
    }
}

#[test]
fn texts_end_with_the_models_positions() {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let long = "x".repeat(SEQ);
    for (text, tokens) in [(long.as_str(), 1), (&long[1..], 2), (&long[5..], 6)] {
        for cached in [true, false] {
            let wish = Wish { cached, ..wish(greedy, 100) };
            let got = written(&[FAMILIES[1]], 1, &prompts(&[text]), &wish);
            assert_eq!((got[0].tokens.len(), got[0].reason), (tokens, Reason::Positions));
        }
    }
    let error = Prompt::new(0, &"x".repeat(SEQ + 1), &Tokenizer::bytes(), SEQ).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("has 41 tokens, and the model has 40 positions"), "{error}");
    let error = Prompt::new(4, "", &Tokenizer::bytes(), SEQ).unwrap_err();
    assert!(error.is_input() && error.to_string().starts_with("prompt 5 is empty"), "{error}");
}

#[test]
fn what_is_heard_is_the_text() {
    let sampling = Sampling::default();
    let config = config(FAMILIES[1]);
    threads::run(1, |world| {
        let (inference, prompts) = (inference(&config, &world, Use::Writing)?, prompts(&TEXTS));
        let mut heard = vec![String::new(); TEXTS.len()];
        let mut listen = |number: u64, piece: &str| heard[number as usize] += piece;
        let wish = wish(sampling, 20);
        let written = answer(inference.assembled(), &Tokenizer::bytes(), &prompts, &wish, &mut listen)?;
        assert!(written.iter().zip(&heard).all(|(written, heard)| written.text == *heard));
        Ok::<_, Error>(())
    });
}

#[test]
fn a_cache_takes_what_the_formula_says() {
    for sets in FAMILIES {
        for (ranks, layout) in LAYOUTS {
            let config = config(&[sets, layout].concat());
            threads::run(ranks, |world| {
                let inference = inference(&config, &world, Use::Writing)?;
                let model = inference.assembled();
                let partition = model.parameters().partition();
                let tp = model.groups.tp.size();
                // Stages have as many layers as make them take as long.
                let layers: BTreeSet<usize> = partition.parameters.iter().filter_map(|p| p.spec.layer).collect();
                let expected = mp_plan::cache_bytes(&partition.architecture, layers.len(), 3, 20, tp, 8);
                assert_eq!(Cache::new(model.parameters(), 3, 20)?.bytes(), expected, "{sets:?} {layout:?}");
                Ok::<_, Error>(())
            });
        }
    }
}

/// Computes each window's loss by itself, on one rank.
fn plain(config: &Config, ids: &[u32]) -> f64 {
    let mut losses = threads::run(1, |world| {
        let inference = inference(config, &world, Use::Reading)?;
        let _off = mp_runtime::autograd::no_grad();
        let (mut sum, mut count) = (0.0, 0);
        for window in ids.chunks(config.train.seq).filter(|window| window.len() > 1) {
            let ids: Vec<i64> = window.iter().map(|&id| i64::from(id)).collect();
            let tokens = Tensor::from_slice(&ids[..ids.len() - 1]).unsqueeze(0);
            let scores = inference.assembled().model.logits(&Pass::evaluation(&tokens))?;
            let chances = scores.select(0, 0).log_softmax(-1, None);
            for (position, &target) in ids[1..].iter().enumerate() {
                sum -= chances.double_value(&[position as i64, target]);
                count += 1;
            }
        }
        Ok::<_, Error>(sum / f64::from(count))
    });
    losses.remove(0)
}

#[test]
fn a_text_has_one_loss_on_any_layout() {
    // Three whole windows and a short one.
    let ids: Vec<u32> = (0..131u32).map(|i| (i * i + 7 * i) % 256).collect();
    for sets in [FAMILIES[0], FAMILIES[1], FAMILIES[3]] {
        let expected = plain(&config(&[sets, &["parallel.tp=1"]].concat()), &ids);
        for (ranks, layout) in LAYOUTS.into_iter().chain([(2, &["parallel.tp=1"][..]), (3, &["parallel.dp=3"])]) {
            let config = config(&[sets, layout].concat());
            let losses = threads::run(ranks, |world| {
                let inference = inference(&config, &world, Use::Reading)?;
                let windows = Consecutive::new(Tokens::new("`x`", ids.clone()).into(), config.train.seq)?;
                evaluate(inference.assembled(), &windows, 2, 0)
            });
            for loss in losses {
                assert!((loss - expected).abs() <= 1e-10 * expected, "{sets:?} {layout:?}: {loss} for {expected}");
            }
        }
    }
}

#[test]
fn a_run_is_measured_as_it_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let text = "one two three, and one two three again: naïve €\n".repeat(9);
    std::fs::write(folder.path().join("text.txt"), &text).unwrap();
    let out = format!("train.out={}", folder.path().display());
    let sets = [&out, "train.name=a", "train.steps=3", "train.global_batch=2", "model.dropout=0.5"];
    let trained = config(&sets);
    threads::run(1, |world| {
        let stop = std::sync::atomic::AtomicBool::new(false);
        mp_train::run::train(&trained, world, Device::Cpu, &stop, &mut ()).map(drop)
    });
    let sets = [
        format!("model.from={}", folder.path().join("a").display()),
        format!("data.path={}", folder.path().join("text.txt").display()),
        "train.precision=fp64".into(),
        "train.seq=16".into(),
    ];
    let read = |more: &[&str], ranks: usize| -> Measured {
        let sets: Vec<String> = sets.iter().cloned().chain(more.iter().map(|set| set.to_string())).collect();
        let config = Config::load(None, None, &sets).unwrap();
        threads::run(ranks, |world| measure(&config, &world, Device::Cpu, 4)).remove(0)
    };
    let one = read(&[], 1);
    let expected = text.len() - text.len().div_ceil(16);
    assert_eq!(one.tokens as usize, expected);
    // A token of this tokenizer is a byte.
    assert!((one.bits_per_byte - one.loss / std::f64::consts::LN_2).abs() < 1e-12);
    assert!((one.perplexity().ln() - one.loss).abs() < 1e-12);
    let cut = read(&["parallel.tp=2", "parallel.cp=2"], 4);
    assert!((cut.loss - one.loss).abs() <= 1e-10 * one.loss && cut.tokens == one.tokens, "{cut:?} {one:?}");
}

#[test]
fn what_is_written_depends_on_the_prompt() {
    // The tests above would pass on a model that says the same whatever it reads.
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let got = written(&[FAMILIES[1]], 1, &prompts(&TEXTS), &wish(greedy, 8));
    assert!(got.windows(2).all(|pair| pair[0].tokens != pair[1].tokens), "{got:?}");
}
