//! `mp-cli generate`: a model goes on with texts, given at once or one after the other by a person.

mod prompts;

use std::io::{self, BufRead};

use mp_comm::Rank;
use mp_data::Tokenizer;
use mp_train::agree::agree;
use mp_train::checkpoint::Verify;
use mp_train::generate::{self, Prompt, Reason, Sampling, Wish, Written};
use mp_train::inference::{Inference, Use};
use mp_train::{weights, Config};
use serde::Serialize;

use crate::args::Generate;
use crate::failure::{refused, Failure};
use crate::screen::Screen;
use crate::terminal;
use crate::threads;
use crate::wire::{equip, Equipment, World};

/// What a line of JSON says of a continuation.
#[derive(Serialize)]
struct Object<'a> {
    prompt: &'a str,
    tokens: &'a [u32],
    text: &'a str,
}

/// All that is known before the model is there.
struct Opened {
    config: Config,
    tokenizer: Tokenizer,
    wish: Wish,
    /// None where a person gives them.
    prompts: Option<Vec<Prompt>>,
    screen: Screen,
}

/// Writes as the command line says.
///
/// # Errors
/// What the input or the model refuses.
pub fn run(args: &Generate, world: &World) -> Result<(), Failure> {
    let communicator = world.communicator();
    let mut opened = agree(&**communicator, open(args, world))?;
    threads::prepare(&**communicator, opened.config.train.threads)?;
    let equipment = equip(communicator, &opened.config)?;
    let inference = load(&opened, &equipment)?;
    match opened.prompts.take() {
        Some(prompts) => tell(&prompts, &inference, &mut opened, world),
        None => converse(&inference, &mut opened, world),
    }
}

fn open(args: &Generate, world: &World) -> mp_train::Result<Opened> {
    let config = args.configuration.load()?;
    threads::check(config.train.threads)?;
    if config.model.from.is_none() {
        let rule = "must name the model: a folder with the `config.json` of a published one, or a run folder";
        return Err(refused("model.from", "unset", rule));
    }
    let tokenizer = config.data.open_tokenizer()?;
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
    };
    let wish = Wish {
        sampling,
        max_new_tokens: args.max_new_tokens,
        stops: args.stops.clone(),
        ends: generate::ends(&config, &tokenizer),
        batch: args.batch,
        cached: !args.no_cache,
    };
    wish.check()?;
    let texts = match (&args.prompt, &args.prompts) {
        (Some(prompt), _) => Some(vec![prompt.clone()]),
        (None, Some(path)) => Some(prompts::read(path)?),
        (None, None) => None,
    };
    if texts.is_none() && world.is_first() && !terminal::is_asked() {
        return Err(refused("--prompt", "unset", "must give a text to go on with, or --prompts a file of them"));
    }
    let max_seq = config.model.max_seq;
    let prompt = |(number, text): (usize, &String)| Prompt::new(number as u64, text, &tokenizer, max_seq);
    let prompts = texts.map(|texts| texts.iter().enumerate().map(prompt).collect::<mp_train::Result<Vec<_>>>());
    let prompts = prompts.transpose()?;
    Ok(Opened { config, tokenizer, wish, prompts, screen: Screen::open(&args.output, world.is_first())? })
}

fn load(opened: &Opened, equipment: &Equipment) -> mp_train::Result<Inference> {
    let communicator = &equipment.communicator;
    let (config, vocab) = (&opened.config, opened.tokenizer.vocab_size());
    let from = config.model.from.clone().unwrap_or_default();
    let source =
        agree(&**communicator, weights::open(&from, config.model.base.as_deref(), Verify::shared(&**communicator)))?;
    Inference::new(config, vocab, &*source, communicator, equipment.device, Use::Writing)
}

/// Continues prompts that are all there: a single one piece by piece, several one after the other when they are done.
fn tell(prompts: &[Prompt], inference: &Inference, opened: &mut Opened, world: &World) -> Result<(), Failure> {
    let streams = prompts.len() == 1;
    if streams {
        opened.screen.piece(&prompts[0].text);
    }
    let written = write(prompts, inference, opened, world, streams)?;
    for written in &written {
        if !streams {
            opened.screen.piece(&format!("{}{}\n\n", written.prompt, written.text));
        }
        report(written, opened)?;
    }
    Ok(())
}

fn write(
    prompts: &[Prompt],
    inference: &Inference,
    opened: &Opened,
    world: &World,
    streams: bool,
) -> mp_train::Result<Vec<Written>> {
    let listens = streams && world.is_first();
    let mut listen = |_: u64, piece: &str| {
        if listens {
            opened.screen.piece(piece);
        }
    };
    let written = generate::answer(inference.assembled(), &opened.tokenizer, prompts, &opened.wish, &mut listen);
    let written = written.map_err(|error| inference.explained(error, opened.wish.batch.min(prompts.len())))?;
    if streams {
        opened.screen.piece("\n");
    }
    Ok(written)
}

/// Writes a line of JSON, and says what a person would not expect.
fn report(written: &Written, opened: &mut Opened) -> mp_train::Result<()> {
    if written.reason == Reason::Positions {
        let positions = opened.config.model.max_seq;
        opened.screen.line(&format!("(ended: all {positions} positions of the model are used)"));
    }
    let Written { prompt, tokens, text, .. } = written;
    opened.screen.object(&Object { prompt, tokens, text })
}

/// Continues what a person types, line by line, until there is no more.
fn converse(inference: &Inference, opened: &mut Opened, world: &World) -> Result<(), Failure> {
    let communicator = world.communicator();
    for number in 0.. {
        opened.screen.piece("> ");
        let mut line = if world.is_first() { ask()? } else { Vec::new() };
        generate::broadcast(&**communicator, Rank(0), &mut line)?;
        if line.is_empty() {
            opened.screen.piece("\n");
            break;
        }
        match typed(number, line, opened) {
            Ok(prompt) => {
                opened.screen.piece(&prompt.text);
                let written = write(&[prompt], inference, opened, world, true)?;
                written.iter().try_for_each(|written| report(written, opened))?;
            }
            // All ranks read the same line, and one says what is wrong with it.
            Err(error) => opened.screen.line(&format!("error: {error}")),
        }
    }
    Ok(())
}

/// Makes a prompt of a line.
fn typed(number: u64, line: Vec<u8>, opened: &Opened) -> mp_train::Result<Prompt> {
    let foreign = |_| mp_train::Error::Prompt { number: number + 1, problem: "is not UTF-8".into() };
    let text = String::from_utf8(line).map_err(foreign)?;
    Prompt::new(number, text.trim_end_matches(['\r', '\n']), &opened.tokenizer, opened.config.model.max_seq)
}

/// Reads a line with its end; nothing where there is no more.
fn ask() -> mp_train::Result<Vec<u8>> {
    let mut line = Vec::new();
    let read = io::stdin().lock().read_until(b'\n', &mut line);
    read.map_err(|source| mp_train::Error::Read { path: "standard input".into(), source })?;
    Ok(line)
}
