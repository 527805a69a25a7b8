//! `cargo xtask test`: every check in turn, each shown as it runs and counted; a failure does not stop the next.
//!
//! `plan` says what the workspace has to run beyond nextest, `counts` reads results, `nextest` makes sure of the runner.

mod counts;
mod nextest;
mod plan;

use anyhow::Result;
use clap::Args;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use self::counts::Counts;
use self::plan::{Example, FeatureTest, Plan, Suite};
use crate::process::{self, Outcome};
use crate::setup::{self, Installs};
use crate::workspace::Workspace;
use crate::{environment, tidy, train};

/// No single step may take longer than this; the whole run has half an hour on two cores.
const STEP_LIMIT: Duration = Duration::from_secs(25 * 60);
const EXAMPLE_LIMIT: Duration = Duration::from_secs(120);
/// Ranks for examples that talk over MPI.
const EXAMPLE_RANKS: usize = 2;
const TRAINING_RANKS: usize = 4;

/// Arguments of `cargo xtask test`.
#[derive(Args)]
pub struct Options {
    /// Also run ignored tests, and the default training run in the release build
    #[arg(long)]
    all: bool,
}

/// Runs every check.
pub fn command(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let installs = match setup::ensure(workspace) {
        Ok(installs) => installs,
        Err(error) => {
            // The counts close every run, also one that could not begin.
            println!("error: {error:#}\nfailed: set-up\n{}", Counts::one(false));
            return Ok(ExitCode::FAILURE);
        }
    };
    let mut run = Run { workspace, installs, total: Counts::default(), faults: Vec::new() };
    run.lints();
    run.cargo_tests(options.all);
    match workspace.metadata().and_then(|metadata| Plan::read(&metadata)) {
        Ok(plan) => run.planned(&plan),
        Err(error) => run.record("plan", Instant::now(), Err(error)),
    }
    if options.all {
        run.step("default training run", |run| run.training());
    }
    Ok(run.close(options.all))
}

/// The state of one run: what was counted, what went wrong.
struct Run<'a> {
    workspace: &'a Workspace,
    installs: Installs,
    total: Counts,
    faults: Vec<String>,
}

impl Run<'_> {
    fn lints(&mut self) {
        self.step("fmt", |run| run.one(&["fmt", "--all", "--check"], ""));
        self.step("clippy", |run| run.one(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], ""));
        self.step("tidy", |run| Ok(Counts::one(tidy::command(run.workspace)? == ExitCode::SUCCESS)));
    }

    fn cargo_tests(&mut self, all: bool) {
        self.step("unit and property tests", |run| run.nextest(all));
        self.step("documentation tests", |run| {
            let outcome = run.cargo(&["test", "--doc", "--workspace", "--no-fail-fast"], "")?;
            Ok(counts::documentation_tests(&outcome.text).settled(outcome.success()))
        });
        self.step("documentation", |run| run.one(&["doc", "--no-deps", "--workspace"], "-D warnings"));
    }

    fn planned(&mut self, plan: &Plan) {
        for test in &plan.feature_tests {
            self.step(&test.title(), |run| run.feature_test(test));
        }
        self.step("examples: build", |run| run.one(&["build", "--workspace", "--examples"], ""));
        for example in &plan.examples {
            self.step(&format!("example {}", example.name), |run| run.example(example));
        }
        if plan.suites.is_empty() {
            return;
        }
        let built = plan::build_suites(&mut self.command(&["build", "--workspace", "--test", "mpi_*", "--keep-going"]));
        for suite in &plan.suites {
            let binary = built.as_ref().ok().and_then(|built| built.get(&suite.key()));
            for &ranks in &suite.ranks {
                self.step(&format!("{} on {ranks} ranks", suite.name), |run| match binary {
                    Some(binary) => run.suite(suite, binary, ranks),
                    None => anyhow::bail!("{} was not built", suite.name),
                });
            }
        }
    }

    /// Shows a title, runs, counts; an error counts as one failure.
    fn step(&mut self, title: &str, work: impl FnOnce(&Self) -> Result<Counts>) {
        println!("== {title}");
        let begin = Instant::now();
        let result = work(self);
        self.record(title, begin, result);
    }

    fn record(&mut self, title: &str, begin: Instant, result: Result<Counts>) {
        let counts = result.unwrap_or_else(|error| {
            println!("error: {error:#}");
            Counts::one(false)
        });
        println!("== {title}: {counts}, {:.1} s", begin.elapsed().as_secs_f64());
        if counts.failed > 0 {
            self.faults.push(title.to_string());
        }
        self.total += counts;
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.workspace.cargo();
        // What is counted below is read as plain text.
        command.args(arguments).env("CARGO_TERM_COLOR", "never");
        self.installs.apply(&mut command);
        // Some tests start ranks themselves.
        environment::apply(&self.installs.mpi, &mut command);
        command
    }

    fn cargo(&self, arguments: &[&str], rustdoc_flags: &str) -> Result<Outcome> {
        let mut command = self.command(arguments);
        if !rustdoc_flags.is_empty() {
            command.env("RUSTDOCFLAGS", rustdoc_flags);
        }
        process::watch(&mut command, Some(STEP_LIMIT))
    }

    /// A step that passes or fails as a whole.
    fn one(&self, arguments: &[&str], rustdoc_flags: &str) -> Result<Counts> {
        Ok(Counts::one(self.cargo(arguments, rustdoc_flags)?.success()))
    }

    fn nextest(&self, all: bool) -> Result<Counts> {
        let mut command = self.command(&[]);
        nextest::prepare(self.workspace, &mut command)?;
        command.args(["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests", "pass"]);
        if all {
            command.args(["--run-ignored", "all"]);
        }
        let outcome = process::watch(&mut command, Some(STEP_LIMIT))?;
        Ok(counts::nextest(&outcome.text).settled(outcome.success()))
    }

    fn feature_test(&self, test: &FeatureTest) -> Result<Counts> {
        let mut command = self.command(&[]);
        nextest::prepare(self.workspace, &mut command)?;
        command.args(["nextest", "run", "--no-fail-fast", "-p", &test.package, "--test", &test.name]);
        command.args(["--features", &test.features.join(",")]);
        let outcome = process::watch(&mut command, Some(STEP_LIMIT))?;
        Ok(counts::nextest(&outcome.text).settled(outcome.success()))
    }

    fn example(&self, example: &Example) -> Result<Counts> {
        let binary = self.workspace.target()?.join("debug/examples").join(&example.name);
        let mut command = match example.over_mpi {
            true => environment::mpirun(&self.installs.mpi, EXAMPLE_RANKS, &binary),
            false => Command::new(&binary),
        };
        let outcome = process::watch(&mut command, Some(EXAMPLE_LIMIT))?;
        if outcome.status.is_none() {
            println!("no end after {} s: ended by force", EXAMPLE_LIMIT.as_secs());
        }
        Ok(Counts::one(outcome.success()))
    }

    fn suite(&self, suite: &Suite, binary: &std::path::Path, ranks: usize) -> Result<Counts> {
        let mut command = environment::mpirun(&self.installs.mpi, ranks, binary);
        // More ranks than cores: one thread each, or they wait for one another.
        command.env("OMP_NUM_THREADS", "1");
        let outcome = process::watch(&mut command, Some(suite.limit))?;
        if outcome.status.is_none() {
            println!("no end after {} s: ended by force", suite.limit.as_secs());
        }
        Ok(counts::suite(&outcome.text).settled(outcome.success()))
    }

    fn training(&self) -> Result<Counts> {
        train::build_release(self.workspace, &self.installs)?;
        let binary = self.workspace.target()?.join("release/mp-cli");
        let mut command = environment::mpirun(&self.installs.mpi, TRAINING_RANKS, &binary);
        command.arg("train").current_dir(&self.workspace.root);
        Ok(Counts::one(process::watch(&mut command, Some(STEP_LIMIT))?.success()))
    }

    fn close(self, all: bool) -> ExitCode {
        for fault in &self.faults {
            println!("failed: {fault}");
        }
        match all {
            true => println!("--all added: ignored tests, the default training run in the release build"),
            false => println!("left out (`cargo xtask test --all` runs them): ignored tests, the default training run in the release build"),
        }
        println!("{}", self.total);
        if self.total.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
