//! `mp-cli`: trains large models split over many processes. Here is the frame of every command: ranks meet, one command
//! runs, ranks part with one exit code and at most one message.
//!
//! | exit code | means |
//! |---|---|
//! | 0 | done, or stopped by a signal and saved |
//! | 1 | the run failed, `doctor` found that none could start, `verify` found a layout that differs, or `data audit` a skip |
//! | 2 | the input cannot serve |

mod args;
mod commands;
mod destination;
mod failure;
mod listen;
mod progress;
mod screen;
mod stop;
mod terminal;
mod threads;
mod trace;
mod wire;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
use failure::Failure;
use stop::Stop;
use wire::World;

fn main() -> ExitCode {
    mp_train::code::set_version(env!("MP_CLI_VERSION"));
    let args = Args::try_parse();
    if matches!(&args, Ok(Args { command: Command::Doctor(_) })) && !wire::launched() {
        // Alone it looks for itself whether MPI starts.
        return commands::doctor::alone(args);
    }
    if let Ok(Args { command: Command::Data(data) }) = &args {
        return commands::data::alone(data);
    }
    // Before the ranks meet, which takes a moment: a signal in it is to end the run in good order too.
    let stop = match &args {
        Ok(Args { command: Command::Train(_) }) => Stop::on_signals(),
        _ => Stop::default(),
    };
    let world = match World::meet() {
        Ok(world) => world,
        Err(error) => {
            eprintln!("error: {error}; run `mp-cli doctor` to see what this machine offers");
            return ExitCode::from(1);
        }
    };
    world.work(|world| run(args, world, &stop))
}

/// Runs the command that was typed.
fn run(args: Result<Args, clap::Error>, world: &World, stop: &Stop) -> Result<(), Failure> {
    match args.map_err(Failure::Usage)?.command {
        Command::Train(train) => commands::train::run(&train, world, stop),
        Command::Plan(plan) => commands::plan::run(&plan, world),
        Command::Verify(verify) => commands::verify::run(&verify, world),
        Command::Eval(eval) => commands::eval::run(&eval, world),
        Command::Generate(generate) => commands::generate::run(&generate, world),
        Command::Checkpoint(checkpoint) => commands::checkpoint::run(&checkpoint, world),
        Command::Doctor(doctor) => commands::doctor::run(&doctor, world),
        // It was done before the ranks met.
        Command::Data(_) => Ok(()),
    }
}
