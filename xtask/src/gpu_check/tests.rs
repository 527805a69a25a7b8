//! The whole command over a bundle whose programs only pretend.

use serde_json::{json, Value};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::results::{Outcome, Results, Verdict};
use super::*;

/// A bundle of one script, which answers as `mp` would.
struct Pretended(PathBuf);

impl Drop for Pretended {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Pretended {
    fn new(name: &str, script: &str) -> Self {
        let made = Self(std::env::temp_dir().join(format!("xtask-gpu-check-{name}-{}", std::process::id())));
        let _ = fs::remove_dir_all(&made.0);
        let bundle = made.bundle();
        fs::create_dir_all(bundle.join("models/gpt2")).unwrap();
        fs::write(bundle.join(bundle::DESCRIPTION), json!({"program": "0.1.0 (abc)"}).to_string()).unwrap();
        let doctor =
            r#"[ "$1" != doctor ] || { echo '{"findings":[{"what":"devices","found":"the CPU"}]}' >"$3"; exit 0; }"#;
        fs::write(bundle.join("mp"), format!("#!/bin/sh\n{doctor}\n{script}\n")).unwrap();
        fs::set_permissions(bundle.join("mp"), fs::Permissions::from_mode(0o755)).unwrap();
        made
    }

    fn bundle(&self) -> PathBuf {
        self.0.join("bundle")
    }

    fn out(&self) -> PathBuf {
        self.0.join("out")
    }

    fn run(&self, device: Device, only: &[&str]) -> ExitCode {
        let only: Vec<String> = only.iter().map(|name| name.to_string()).collect();
        let options = Options { only, device, minutes: None, out: None, text: None, bundle: None, from: None };
        run(&self.bundle(), &self.out(), &checks::chosen(&options.only).unwrap(), &options).unwrap()
    }

    fn results(&self) -> Vec<(String, Verdict, String)> {
        let results = Results::read(&self.out()).unwrap();
        results.checks.into_iter().map(|outcome| (outcome.name, outcome.verdict, outcome.summary)).collect()
    }
}

fn outcome(name: &str, verdict: Verdict, figures: Value) -> Outcome {
    let (device, program, date) = ("an H100".into(), "0.1.0".into(), "2026-01-01 10:00".into());
    Outcome { verdict, seconds: 3.0, device, program, date, figures, ..Outcome::not_run(name, "seen | told") }
}

fn results(checks: Vec<Outcome>) -> Results {
    let machine =
        machine::Machine { device: "an H100".into(), driver: "80 GB".into(), cores: 16, torch: "2.11.0".into() };
    let mut results = Results::default();
    checks.into_iter().for_each(|outcome| results.add(outcome, &machine));
    results
}

#[test]
fn each_outcome_is_kept_and_a_later_run_replaces_its_own() {
    let passing = r#"echo "7 passed, 0 failed""#;
    let made = Pretended::new("outcomes", passing);
    assert_eq!(made.run(Device::Cpu, &["conformance-staged-1", "conformance-nccl"]), ExitCode::SUCCESS);
    let staged = ("conformance-staged-1".to_string(), Verdict::Passed, "7 checks passed, 0 failed".to_string());
    let nccl = ("conformance-nccl-1".to_string(), Verdict::NotRun, "it needs a GPU".to_string());
    assert_eq!(made.results(), [staged.clone(), nccl.clone()]);
    assert!(fs::read_to_string(made.out().join("gpu-check.log")).unwrap().contains("\n7 passed, 0 failed\n"));

    let script = made.bundle().join("mp");
    let failing =
        fs::read_to_string(&script).unwrap().replace(passing, "echo 'sums: wrong'; echo '6 passed, 1 failed'; exit 1");
    fs::write(&script, failing).unwrap();
    assert_eq!(made.run(Device::Cpu, &["conformance-staged-2", "conformance-staged-1"]), ExitCode::FAILURE);
    let wrong = |name: &str| (name.to_string(), Verdict::Failed, "6 checks passed, 1 failed; sums: wrong".to_string());
    assert_eq!(made.results(), [wrong("conformance-staged-1"), nccl, wrong("conformance-staged-2")]);
}

#[test]
fn a_program_that_leaves_nothing_is_told_by_its_complaint() {
    let made = Pretended::new("complaint", "echo 'error: no room' >&2; exit 1");
    fs::create_dir_all(made.bundle().join("data")).unwrap();
    fs::write(made.bundle().join(bundle::TEXT), "to be").unwrap();
    assert_eq!(made.run(Device::Cpu, &["verify-1", "shakespeare"]), ExitCode::FAILURE);
    for (name, verdict, summary) in made.results() {
        assert_eq!((verdict, summary.as_str()), (Verdict::Failed, "error: no room"), "{name}");
    }
}

#[test]
fn a_program_that_a_signal_ends_is_told_by_it() {
    let made = Pretended::new("signal", "echo begun; kill -SEGV $$");
    assert_eq!(made.run(Device::Cpu, &["conformance-staged-1"]), ExitCode::FAILURE);
    assert_eq!(made.results()[0].2, "it was ended by signal 11; its last line: begun");
}

#[test]
fn what_outlasts_its_time_is_ended_and_said_to_be() {
    let made = Pretended::new("late", "exec sleep 600");
    fs::create_dir_all(made.out()).unwrap();
    let mut bench = Bench::open(&made.bundle(), &made.out(), Device::Cpu).unwrap();
    let machine = results(Vec::new()).machines.pop().unwrap_or(machine::Machine {
        device: "the CPU".into(),
        driver: String::new(),
        cores: 1,
        torch: String::new(),
    });
    let check =
        Check { limit: Duration::from_millis(200), ..checks::chosen(&["huggingface".into()]).unwrap().remove(0) };
    let ended = bench.run(&check, Duration::MAX, &machine);
    assert_eq!(
        (ended.verdict, ended.summary.as_str()),
        (Verdict::TimedOut, "gpt2 on cpu: ended when its time was over")
    );
    assert_eq!(bench.run(&check, Duration::ZERO, &machine).summary, "the time for all checks was over");
}

#[test]
fn results_do_not_take_the_name_of_anything_in_a_bundle() {
    let mpi = crate::setup::Mpi {
        mpicc: "mpicc".into(),
        mpirun: "mpirun".into(),
        library: None,
        flavor: crate::setup::Flavor::OpenMpi,
        version: "5.0.11".into(),
    };
    let scripts = bundle::scripts(&mpi).map(|(name, _)| name);
    let folders = ["bin", "configs", "data", "models", "openmpi", "peers", bundle::DESCRIPTION];
    assert!(scripts.iter().chain(&folders).all(|name| *name != RESULTS));
}

#[test]
fn without_a_gpu_nothing_is_run() {
    let made = Pretended::new("none", "exit 1");
    assert_eq!(made.run(Device::Cuda, &["verify-1"]), ExitCode::from(2));
    assert!(!results::path(&made.out()).exists());
}

#[test]
fn a_later_run_goes_before_an_earlier_one() {
    let mut all = results(vec![
        outcome("verify-1", Verdict::Failed, Value::Null),
        outcome("verify-2", Verdict::Passed, Value::Null),
    ]);
    let lost = ["verify-2", "verify-4"].map(|name| Outcome::not_run(name, "no time"));
    let later = [vec![outcome("verify-1", Verdict::Passed, Value::Null)], lost.into()].concat();
    all.merge(results(later));
    all.complete("2026-01-02");
    let verdicts: Vec<Verdict> = all.checks.iter().map(|outcome| outcome.verdict).collect();
    assert_eq!(verdicts[..4], [Verdict::Passed, Verdict::Passed, Verdict::NotRun, Verdict::NotRun]);
    assert_eq!(verdicts.len(), checks::all().len());
    assert_eq!([&all.checks[2].summary, &all.checks[3].summary], ["no time", "not run yet"]);
}

#[test]
fn the_page_has_what_ran_and_lists_what_did_not() {
    let ours = json!({"tokens_per_second": 1e5, "step_seconds": 0.2, "flop_per_token": 1e9, "peak_bytes": 2_u64 << 30, "predicted_bytes": 1_u64 << 30});
    let peer = json!({"tokens_per_second": 2e5, "step_seconds": 0.1, "peak_bytes": null});
    let mut all = results(vec![
        outcome("verify-1", Verdict::Passed, Value::Null),
        outcome("throughput-gpt2-mp", Verdict::Passed, ours),
        outcome("throughput-gpt2-eager", Verdict::Passed, peer),
        outcome("throughput-gpt2-compiled", Verdict::TimedOut, Value::Null),
    ]);
    all.complete("2026-01-02");
    let page = page::page(&all);
    for line in [
        "4 of 16 checks have run, 3 of them passed.",
        "**Not passed: throughput-gpt2-compiled.**",
        "- an H100 (80 GB), 16 cores, PyTorch 2.11.0; mp 0.1.0; 2026-01-01 10:00 to 2026-01-01 10:00 UTC",
        "| GPT-2 124M | mp | 100000 | 200.0 | 10.1 % | 2.00 | 1.00 |",
        "| GPT-2 124M | eager PyTorch | 200000 | 100.0 | 20.2 % | – | – |",
        "| GPT-2 124M | compiled PyTorch | timed out | | | | |",
        "- `verify-2`: not run yet",
    ] {
        assert!(page.lines().any(|other| other == line), "{line}\n{page}");
    }
    assert!(page.contains("| passed (3 s): seen / told |\n") && !page.contains("- `verify-1`"), "{page}");
}

#[test]
fn shares_of_a_peak_are_told_of_the_devices_that_have_it() {
    let figures = json!({"tokens_per_second": 1e5, "step_seconds": 0.2, "flop_per_token": 1e9});
    let mut other = outcome("throughput-gpt2-mp", Verdict::Passed, figures);
    other.device = "an A100".into();
    let page = page::page(&results(vec![other]));
    assert!(page.contains("| GPT-2 124M | mp | 100000 | 200.0 | – | – | – |"), "{page}");
}

/// Set in the process that is to be told to end.
const TOLD: &str = "XTASK_GPU_CHECK_TOLD";

#[test]
fn a_run_that_is_told_to_end_takes_its_programs_along_and_says_where_results_are() {
    if let Some(folder) = std::env::var_os(TOLD) {
        let script = format!(
            "echo $$ >'{0}/begun.part'; mv '{0}/begun.part' '{0}/begun'; exec sleep 600",
            Path::new(&folder).display()
        );
        Pretended::new("told", &script).run(Device::Cpu, &["conformance-staged-1"]);
        return;
    }
    let folder = std::env::temp_dir().join(format!("xtask-told-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let name = "gpu_check::tests::a_run_that_is_told_to_end_takes_its_programs_along_and_says_where_results_are";
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(TOLD, &folder).stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    let id = child.id();
    let begun = Instant::now();
    while !folder.join("begun").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the check begins");
        std::thread::yield_now();
    }
    let program: u32 = fs::read_to_string(folder.join("begun")).unwrap().trim().parse().unwrap();
    assert!(std::process::Command::new("kill").arg(id.to_string()).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(128 + 15), "{said}");
    let own = std::env::temp_dir().join(format!("xtask-gpu-check-told-{id}"));
    let told =
        format!("gpu-check: ended; what was over is in {}, and a later run adds to it", own.join("out").display());
    assert!(said.lines().any(|line| line == told), "{said}");
    // One that has ended and that nobody has waited for yet has no words.
    let words = fs::read(format!("/proc/{program}/cmdline")).unwrap_or_default();
    assert!(words.is_empty(), "{program} goes on: {}", String::from_utf8_lossy(&words));
    assert!(!std::env::temp_dir().join(format!("mp-gpu-check-{id}")).exists());
    assert!(!results::path(&own.join("out")).exists(), "a check that was cut short has an outcome");
    [own, folder].iter().for_each(|folder| fs::remove_dir_all(folder).unwrap());
}

#[test]
fn the_page_of_the_handbook_is_that_of_its_figures() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(DOCUMENTS);
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let figures: Results = serde_json::from_str(&read("gpu.json")).unwrap();
    assert_eq!(read("gpu.md"), page::page(&figures), "write it anew with `cargo xtask gpu-check --from FOLDER`");
    // A check that was added since is on the page.
    assert_eq!(figures.checks.len(), checks::all().len());
}
