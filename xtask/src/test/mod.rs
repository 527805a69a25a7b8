//! `cargo xtask test`: every check in turn, each shown as it runs and counted; a failure does not stop the next.
//!
//! `plan` says what the workspace has to run beyond nextest, `counts` reads results, `nextest` makes sure of the runner,
//! `verify` has the program verify layouts, `hundred_parts` trains on 100 ranks, `report` adds up and keeps the time.

pub mod counts;
mod hundred_parts;
mod nextest;
mod plan;
mod report;
mod verify;

use anyhow::{ensure, Context, Result};
use clap::Args;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use self::counts::Counts;
use self::plan::{Example, FeatureTest, Plan, Suite, Together, Variant};
use self::report::{Deadline, Report};
use crate::process::Outcome;
use crate::setup::{self, Installs};
use crate::workspace::Workspace;
use crate::{environment, tidy, train};

/// The time for everything, and with `--all`.
const BUDGET: Duration = Duration::from_secs(30 * 60);
const BUDGET_ALL: Duration = Duration::from_secs(2 * 60 * 60);
/// When the tests of a target that share a process count as hung.
const TOGETHER_LIMIT: Duration = Duration::from_secs(300);
const EXAMPLE_LIMIT: Duration = Duration::from_secs(120);
/// Ranks for examples that talk over MPI.
const EXAMPLE_RANKS: usize = 2;
const TRAINING_RANKS: usize = 4;
/// Ignored tests that other tests start as their children: alone they have nothing to do.
const CHILDREN: [&str; 4] = ["dying_rank", "child_writes_more_than_fits", "panicking_rank", "writing_rank"];
/// Members that are used without their default features too.
const BARE: [&str; 2] = ["mp-comm", "mp-data"];

/// Arguments of `cargo xtask test`.
#[derive(Args)]
pub struct Options {
    /// Also run ignored tests, messages beyond 2^31 bytes, a model in 100 parts on 100 ranks, and the default training run in the release build
    #[arg(long)]
    all: bool,
}

/// Runs every check; whatever happens, the counts are printed last.
///
/// Without a place for the cache there is no workspace, and no check can run: that too is counted.
pub fn command(located: Result<Workspace>, options: &Options) -> Result<ExitCode> {
    let mut report = Report::default();
    let mut libtorch = None;
    match located {
        Ok(workspace) => libtorch = checks(&workspace, options.all, &mut report),
        Err(error) => drop(report.step("workspace", || Err(error))),
    }
    let folders = [std::env::var_os("MP_CUDA_TORCH").map(PathBuf::from), libtorch];
    Ok(report.close(&notes(options.all, &folders)))
}

/// Returns the folder of libtorch.
fn checks(workspace: &Workspace, all: bool, report: &mut Report) -> Option<PathBuf> {
    let deadline = Deadline::after(if all { BUDGET_ALL } else { BUDGET });
    report.step("prerequisites", || setup::check_for_tests().map(|()| Counts::one(true)));
    let mut installs = None;
    report.step("set-up", || {
        installs = Some(set_up(workspace, deadline)?);
        Ok(Counts::one(true))
    });
    if let Some(installs) = installs {
        let libtorch = installs.libtorch().or_else(|| std::env::var_os("LIBTORCH").map(PathBuf::from));
        let run = Run { workspace, installs, deadline };
        let mut plan = Plan::default();
        report.step("plan", || {
            plan = Plan::read(&workspace.metadata()?, all)?;
            Ok(Counts::one(true))
        });
        run.lints(report);
        run.cargo_tests(report, &plan, all);
        run.planned(report, &plan);
        run.verifications(report, all);
        if all {
            report.step("a model in 100 parts on 100 ranks", || run.hundred_parts());
            report.step("default training run", || run.training());
        }
        return libtorch;
    }
    None
}

/// Set-up downloads where something is missing: in a process of its own it can be ended.
fn set_up(workspace: &Workspace, deadline: Deadline) -> Result<Installs> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    let outcome = deadline.watch(command.arg("setup"), Duration::MAX)?;
    ensure!(outcome.success(), "set-up failed (its message is above): the checks need libtorch and MPI");
    setup::ensure(workspace)
}

/// Says what was left out; `folders` may hold a CUDA build of libtorch.
fn notes(all: bool, folders: &[Option<PathBuf>]) -> Vec<String> {
    let long = "ignored tests, mpi_conformance --huge, mpi_parity --models, verification of all layouts on 8 ranks, a model in 100 parts on 100 ranks, the default training run in the release build";
    let first = match all {
        true => format!("--all added: {long}"),
        false => format!("left out (`cargo xtask test --all` runs them): {long}"),
    };
    let mut notes = vec![first, format!("left out always, because other tests start them: {}", CHILDREN.join(", "))];
    if !folders.iter().flatten().any(|folder| folder.join("lib/libtorch_cuda.so").exists()) {
        notes.push(
            "passed over for want of a CUDA build of libtorch (`cargo xtask setup --cuda`, or MP_CUDA_TORCH): tests named no_gpu"
                .into(),
        );
    }
    notes
}

/// What every step needs.
struct Run<'a> {
    workspace: &'a Workspace,
    installs: Installs,
    deadline: Deadline,
}

impl Run<'_> {
    fn lints(&self, report: &mut Report) {
        report.step("fmt", || self.one(&["fmt", "--all", "--check"]));
        report.step("clippy", || self.one(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]));
        for member in BARE {
            let words = ["clippy", "-p", member, "--no-default-features", "--all-targets", "--", "-D", "warnings"];
            report.step(&format!("clippy of {member} without default features"), || self.one(&words));
        }
        report.step("tidy", || Ok(Counts::one(tidy::command(self.workspace)? == ExitCode::SUCCESS)));
    }

    fn cargo_tests(&self, report: &mut Report, plan: &Plan, all: bool) {
        let limit = self.deadline.left();
        report.step("cargo-nextest", || nextest::ensure(self.workspace, limit).map(|()| Counts::one(true)));
        report.step("unit and property tests", || self.unit_tests(&plan.apart(), all));
        self.tests_together(report, &plan.together, all);
        report.step("documentation tests", || self.documentation_tests());
        report.step("documentation", || {
            let mut command = self.command(&["doc", "--no-deps", "--workspace"]);
            Ok(Counts::one(self.watch(command.env("RUSTDOCFLAGS", "-D warnings"))?.success()))
        });
    }

    /// Tests of which one process runs a whole target's: each counts, but one that crashes takes the others along.
    fn tests_together(&self, report: &mut Report, targets: &[Together], all: bool) {
        // The runner has built them.
        let words = ["test", "--workspace", "--no-run", "--no-fail-fast"];
        let built = self.built(report, "tests that share a process: build", &words);
        for target in targets {
            report.step(&target.id(), || self.together(target, built.get(&target.source), all));
        }
    }

    /// Builds, and files the binaries by their sources: one that does not compile must not hide the others.
    fn built(&self, report: &mut Report, title: &str, words: &[&str]) -> HashMap<String, PathBuf> {
        let mut built = HashMap::new();
        report.step(title, || {
            let outcome = self.deadline.capture(self.command(words).arg("--message-format=json-render-diagnostics"))?;
            built = plan::executables(&outcome.text);
            Ok(Counts::one(outcome.success()))
        });
        built
    }

    fn planned(&self, report: &mut Report, plan: &Plan) {
        for test in &plan.feature_tests {
            report.step(&test.title(), || self.feature_test(test));
        }
        report.step("examples: build", || self.one(&["build", "--workspace", "--examples"]));
        for example in &plan.examples {
            report.step(&format!("example {}", example.name), || self.example(example));
        }
        if plan.suites.is_empty() {
            return;
        }
        let words = ["build", "--workspace", "--test", "mpi_*", "--keep-going"];
        let built = self.built(report, "MPI suites: build", &words);
        for suite in &plan.suites {
            let binary = built.get(&suite.key());
            for variant in &suite.variants {
                report.step(&variant.title(&suite.name), || self.suite(suite, binary, variant));
            }
        }
    }

    /// A cargo command whose output can be read.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.workspace.cargo();
        command.args(arguments);
        self.installs.apply(&mut command);
        // Some tests start ranks themselves.
        environment::apply(&self.installs.mpi, &mut command);
        // Colours between the words of a summary hide it.
        command.env("CARGO_TERM_COLOR", "never").env("NO_COLOR", "1");
        command.env_remove("CLICOLOR_FORCE").env_remove("FORCE_COLOR");
        // Tests run side by side, many with ranks as threads: one thread for the operations of each, or they wait for one another.
        command.env("OMP_NUM_THREADS", "1");
        command
    }

    fn watch(&self, command: &mut Command) -> Result<Outcome> {
        self.deadline.watch(command, Duration::MAX)
    }

    /// A cargo command that passes or fails as a whole.
    fn one(&self, arguments: &[&str]) -> Result<Counts> {
        Ok(Counts::one(self.watch(&mut self.command(arguments))?.success()))
    }

    /// The tests of the targets that `which` filters.
    fn unit_tests(&self, which: &str, all: bool) -> Result<Counts> {
        let children = CHILDREN.map(|name| format!("test(={name})")).join(" | ");
        let which = format!("{which} and not ({children})");
        let ignored = ["--run-ignored", "all"];
        let options = ["--workspace", "--no-tests", "pass", "-E", &which];
        self.nextest(&options, if all { &ignored } else { &[] })
    }

    fn together(&self, target: &Together, binary: Option<&PathBuf>, all: bool) -> Result<Counts> {
        let mut command = Command::new(binary.with_context(|| format!("{} was not built", target.id()))?);
        command.current_dir(&target.folder);
        environment::apply(&self.installs.mpi, &mut command);
        command.env("OMP_NUM_THREADS", "1");
        if all {
            command.arg("--include-ignored");
            command.args(CHILDREN.iter().flat_map(|child| ["--skip", child]));
        }
        let outcome = self.deadline.watch(&mut command, TOGETHER_LIMIT)?;
        Ok(counts::settled(counts::libtest(&outcome.text), outcome.success()))
    }

    fn feature_test(&self, test: &FeatureTest) -> Result<Counts> {
        // Of a member alone the dependencies would have other features, and be compiled anew.
        let only = format!("package(={})", test.package);
        self.nextest(&["--workspace", "--test", &test.name], &["--features", &test.qualified_features(), "-E", &only])
    }

    fn nextest(&self, which: &[&str], more: &[&str]) -> Result<Counts> {
        let mut command = self.command(&["nextest", "run", "--no-fail-fast"]);
        nextest::find(self.workspace, &mut command)?;
        let outcome = self.watch(command.args(which).args(more))?;
        Ok(counts::settled(counts::nextest(&outcome.text), outcome.success()))
    }

    fn documentation_tests(&self) -> Result<Counts> {
        let mut command = self.command(&["test", "--doc", "--workspace", "--no-fail-fast"]);
        // RUSTDOCFLAGS of the user's own replace the recorded ones, which hold these folders.
        let own = std::env::var_os("LD_LIBRARY_PATH").filter(|own| !own.is_empty());
        let own = own.iter().flat_map(std::env::split_paths);
        let folders = std::env::join_paths(self.installs.libraries().into_iter().chain(own))?;
        let outcome = self.watch(command.env("LD_LIBRARY_PATH", folders))?;
        Ok(counts::settled(counts::libtest(&outcome.text), outcome.success()))
    }

    fn example(&self, example: &Example) -> Result<Counts> {
        let binary = self.workspace.target()?.join("debug/examples").join(&example.name);
        let mut command = match example.over_mpi {
            true => environment::mpirun(&self.installs.mpi, EXAMPLE_RANKS, &binary),
            false => Command::new(&binary),
        };
        Ok(Counts::one(self.deadline.watch(&mut command, EXAMPLE_LIMIT)?.success()))
    }

    fn suite(&self, suite: &Suite, binary: Option<&PathBuf>, variant: &Variant) -> Result<Counts> {
        let binary: &Path = binary.with_context(|| format!("{} was not built", suite.name))?;
        let mut command = environment::mpirun(&self.installs.mpi, variant.ranks, binary);
        command.args(variant.option);
        // More ranks than cores: one thread each, or they wait for one another.
        command.env("OMP_NUM_THREADS", "1");
        let outcome = self.deadline.watch(&mut command, suite.limit)?;
        Ok(counts::settled(counts::suite(&outcome.text), outcome.success()))
    }

    fn training(&self) -> Result<Counts> {
        let mut build = self.workspace.cargo();
        build.args(train::RELEASE_BUILD);
        self.installs.apply(&mut build);
        ensure!(self.watch(&mut build)?.success(), "the release build failed");
        let binary = self.workspace.target()?.join("release/mp-cli");
        let mut command = environment::mpirun(&self.installs.mpi, TRAINING_RANKS, &binary);
        command.arg("train").current_dir(&self.workspace.root);
        Ok(Counts::one(self.watch(&mut command)?.success()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_want_a_cuda_build_are_told_to_be_passed_over_without_one() {
        let folder = std::env::temp_dir().join(format!("xtask-notes-{}", std::process::id()));
        let passed_over = || {
            let notes = notes(false, &[None, Some(folder.clone())]);
            notes.iter().any(|note| note.starts_with("passed over for want of a CUDA build"))
        };
        assert!(passed_over());
        std::fs::create_dir_all(folder.join("lib")).unwrap();
        std::fs::write(folder.join("lib/libtorch_cuda.so"), "").unwrap();
        let told = passed_over();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(!told);
    }
}
