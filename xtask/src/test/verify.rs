//! `mp-cli verify` under `mpirun`: the program's own proof that layouts compute what one rank computes, each counted as a
//! test.

use anyhow::{Context, Result};
use std::fs;
use std::time::Duration;

use super::counts::{self, Counts};
use super::report::Report;
use super::Run;
use crate::environment;

/// When one verification counts as hung; with `--all` they take minutes.
const LIMIT: Duration = Duration::from_secs(900);

/// A verification: a title, so many ranks, what is said to the program, and whether only `--all` has the time.
struct Verification {
    title: &'static str,
    ranks: usize,
    words: &'static [&'static str],
    long: bool,
}

/// A model of eight heads and many layers, which eight ranks can cut in every way.
const WIDE: [&str; 4] = ["--set", "model.heads=8", "--set", "model.layers=17"];
/// Every axis at its longest, and three at a time.
const LIST: &str =
    "tp8,pp8 zb-v,dp8zero3,cp8,tp2pp2dp2zero1 interleaved sp,tp2pp2cp2 zb-h1 a2a,tp4cp2 sp full2,dp2cp4zero2 full,\
                    pp4dp2 gpipe,tp2dp2cp2zero3";

const VERIFICATIONS: [Verification; 4] = [
    Verification { title: "llama", ranks: 4, words: &[], long: false },
    Verification {
        title: "gpt2 in bf16 with dropout",
        ranks: 4,
        words: &[
            "--set",
            "model.architecture=gpt2",
            "--set",
            "train.precision=bf16",
            "--set",
            "model.dropout=0.1",
            "--set",
            "model.layers=9",
        ],
        long: false,
    },
    Verification {
        title: "a list",
        ranks: 8,
        words: &["--layouts", LIST, WIDE[0], WIDE[1], WIDE[2], WIDE[3]],
        long: false,
    },
    Verification { title: "all", ranks: 8, words: &WIDE, long: true },
];

impl Run<'_> {
    /// Verifies, where there is time.
    pub(super) fn verifications(&self, report: &mut Report, all: bool) {
        // Beside examples the dependencies have the features that tests had; alone they would be compiled anew.
        report.step("verify: build", || self.one(&["build", "--workspace", "--bin", "mp-cli", "--examples"]));
        for verification in VERIFICATIONS.iter().filter(|verification| all || !verification.long) {
            let Verification { title, ranks, .. } = verification;
            report.step(&format!("verify {title} on {ranks} ranks"), || self.verification(verification));
        }
    }

    fn verification(&self, verification: &Verification) -> Result<Counts> {
        let target = self.workspace.target()?;
        let json = target.join("verify.json");
        // What an earlier one left must not be counted again.
        fs::write(&json, "").with_context(|| format!("cannot write {}", json.display()))?;
        let mut command = environment::mpirun(&self.installs.mpi, verification.ranks, &target.join("debug/mp-cli"));
        command.arg("verify").args(verification.words).arg("--json").arg(&json);
        command.env("OMP_NUM_THREADS", "1");
        let outcome = self.deadline.watch(&mut command, LIMIT)?;
        let told = fs::read_to_string(&json).with_context(|| format!("cannot read {}", json.display()))?;
        Ok(counts::settled(counts::layouts(&told), outcome.success()))
    }
}
