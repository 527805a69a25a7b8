//! What the workspace has to run beyond plain `cargo test`, read from `cargo metadata`.
//!
//! - MPI suites: test targets named `mpi_*` with `harness = false, test = false`. A member may name world sizes in
//!   `[package.metadata.mpi]`, as `mpi_name = [1, 2, 4]`, and its suites' time-out, as `timeout_seconds = 300`.
//! - Tests behind a feature that is not a default one, which plain `cargo test` passes over.
//! - Test targets whose tests share a process, where each would take longer to start than to run; a member lists them in
//!   `[package.metadata.tests]`, as `one_process = ["golden"]`. The runner, which gives each test its own, leaves them out.
//! - Examples of the ground floor's `mp-comm` and `mp-plan`; those that require the feature `mpi` run under `mpirun`.

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

const RANKS: [usize; 5] = [1, 2, 3, 4, 8];
const SUITE_SECONDS: u64 = 240;
/// Runs of a suite with an option, on so many ranks; the last says which need `--all`.
const WITH_OPTIONS: [(&str, usize, &str, bool); 4] = [
    ("mpi_conformance", 2, "--serialized", false),
    ("mpi_conformance", 2, "--huge", true),
    ("mpi_parity", 2, "--models", true),
    ("mpi_parity", 4, "--models", true),
];
const WITH_EXAMPLES: [&str; 2] = ["mp-comm", "mp-plan"];

/// Everything to run, in order.
#[derive(Default)]
pub struct Plan {
    /// Test targets whose tests share a process.
    pub together: Vec<Together>,
    /// Tests that need a feature.
    pub feature_tests: Vec<FeatureTest>,
    /// Examples that must run to their end.
    pub examples: Vec<Example>,
    /// Suites for `mpirun`.
    pub suites: Vec<Suite>,
}

/// A test target whose tests share a process.
pub struct Together {
    /// The member.
    pub package: String,
    /// The target; the library's own has the library's name.
    pub name: String,
    /// The source file, the key under which [`executables`] files its binary.
    pub source: String,
    /// The member's folder, in which its tests run.
    pub folder: PathBuf,
}

impl Together {
    /// The name by which the runner knows it, for people too.
    pub fn id(&self) -> String {
        match self.package.replace('-', "_") == self.name {
            true => self.package.clone(),
            false => format!("{}::{}", self.package, self.name),
        }
    }
}

/// A test target behind features.
pub struct FeatureTest {
    /// The member.
    pub package: String,
    /// The target.
    pub name: String,
    /// What it requires.
    pub features: Vec<String>,
}

impl FeatureTest {
    /// A title for people.
    pub fn title(&self) -> String {
        format!("{} of {} with {}", self.name, self.package, self.features.join(", "))
    }

    /// The features as a command for the whole workspace takes them: `member/one,member/other`.
    pub fn qualified_features(&self) -> String {
        let qualified: Vec<_> = self.features.iter().map(|feature| format!("{}/{feature}", self.package)).collect();
        qualified.join(",")
    }
}

/// An example.
pub struct Example {
    /// The target.
    pub name: String,
    /// Whether it wants `mpirun`.
    pub over_mpi: bool,
}

/// An MPI suite.
pub struct Suite {
    /// The target.
    pub name: String,
    /// The source file, which tells it from one of the same name in another member.
    source: String,
    /// How to run it.
    pub variants: Vec<Variant>,
    /// When it counts as hung.
    pub limit: Duration,
}

impl Suite {
    /// The key under which [`executables`] files its binary.
    pub fn key(&self) -> String {
        self.source.clone()
    }
}

/// One run of a suite.
pub struct Variant {
    /// The world size.
    pub ranks: usize,
    /// An argument for the suite.
    pub option: Option<&'static str>,
}

impl Variant {
    /// A title for people.
    pub fn title(&self, suite: &str) -> String {
        let option = self.option.map(|option| format!(" {option}")).unwrap_or_default();
        format!("{suite}{option} on {} ranks", self.ranks)
    }
}

impl Plan {
    /// Reads `cargo metadata`; `all` adds what takes long.
    pub fn read(metadata: &Value, all: bool) -> Result<Self> {
        let mut plan = Self::default();
        for package in metadata["packages"].as_array().context("`cargo metadata` lists no packages")? {
            let name = package["name"].as_str().unwrap_or_default();
            let defaults = default_features(package);
            for target in package["targets"].as_array().into_iter().flatten() {
                plan.add(name, package, target, &defaults, all);
            }
        }
        Ok(plan)
    }

    fn add(&mut self, package: &str, manifest: &Value, target: &Value, defaults: &BTreeSet<String>, all: bool) {
        let name = target["name"].as_str().unwrap_or_default().to_string();
        let required = strings(&target["required-features"]);
        let is_kind = |kind: &str| strings(&target["kind"]).iter().any(|other| other == kind);
        if is_kind("example") && WITH_EXAMPLES.contains(&package) {
            self.examples.push(Example { name, over_mpi: required.iter().any(|feature| feature == "mpi") });
        } else if is_kind("test") && name.starts_with("mpi_") && target["test"] == false {
            let settings = &manifest["metadata"]["mpi"];
            let seconds = settings["timeout_seconds"].as_u64().unwrap_or(SUITE_SECONDS);
            let source = target["src_path"].as_str().unwrap_or_default().to_string();
            self.suites.push(Suite {
                variants: variants(&name, &settings[&name], all),
                name,
                source,
                limit: Duration::from_secs(seconds),
            });
        } else if is_kind("test") && required.iter().any(|feature| !defaults.contains(feature)) {
            self.feature_tests.push(FeatureTest { package: package.into(), name, features: required });
        } else if strings(&manifest["metadata"]["tests"]["one_process"]).contains(&name) {
            let path = |value: &Value| PathBuf::from(value.as_str().unwrap_or_default());
            let folder = path(&manifest["manifest_path"]).parent().map(PathBuf::from).unwrap_or_default();
            let source = target["src_path"].as_str().unwrap_or_default().to_string();
            self.together.push(Together { package: package.into(), name, source, folder });
        }
    }

    /// The filter by which the runner leaves out what shares a process.
    pub fn apart(&self) -> String {
        let ids: Vec<_> = self.together.iter().map(|target| format!("binary_id(={})", target.id())).collect();
        format!("not ({})", if ids.is_empty() { "none()".into() } else { ids.join(" | ") })
    }
}

fn variants(suite: &str, listed: &Value, all: bool) -> Vec<Variant> {
    let plain = ranks(listed).into_iter().map(|ranks| Variant { ranks, option: None });
    let with_options = WITH_OPTIONS.iter().filter(|(name, _, _, long)| *name == suite && (all || !long));
    plain.chain(with_options.map(|&(_, ranks, option, _)| Variant { ranks, option: Some(option) })).collect()
}

fn ranks(listed: &Value) -> Vec<usize> {
    match listed.as_array() {
        Some(sizes) => sizes.iter().filter_map(Value::as_u64).map(|size| size as usize).collect(),
        None => RANKS.into(),
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect()
}

/// The features that are on by default, and what these turn on in turn.
fn default_features(package: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec!["default".to_string()];
    while let Some(feature) = open.pop() {
        open.extend(strings(&package["features"][&feature]).into_iter().filter(|next| !found.contains(next)));
        found.insert(feature);
    }
    found
}

/// The binaries that cargo's messages name, filed by their source.
pub fn executables(messages: &str) -> HashMap<String, PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter_map(|message| {
            let source = message["target"]["src_path"].as_str()?.to_string();
            Some((source, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plan(all: bool) -> Plan {
        let target = |kind: &str, name: &str, test: bool, required: Value| json!({"kind": [kind], "name": name, "test": test, "required-features": required, "src_path": format!("/t/{name}.rs")});
        let metadata = json!({"packages": [
            {
                "name": "mp-comm",
                "features": {"default": ["mpi"], "mpi": ["dep:mpi"], "shuttle": []},
                "metadata": {"mpi": {"mpi_small": [1, 2], "timeout_seconds": 30}, "tests": {"one_process": ["mp_comm", "small"]}},
                "manifest_path": "/t/Cargo.toml",
                "targets": [
                    target("test", "mpi_conformance", false, json!(["mpi"])),
                    target("test", "mpi_small", false, json!([])),
                    target("test", "mpi_death", true, json!(["mpi"])),
                    target("test", "interleavings", true, json!(["shuttle"])),
                    target("lib", "mp_comm", true, json!([])),
                    target("test", "small", true, json!([])),
                    target("example", "ring", false, json!(["mpi"])),
                ],
            },
            {"name": "mp-plan", "metadata": null, "targets": [target("example", "billion", false, json!([]))]},
            {"name": "mp-train", "metadata": null, "targets": [target("example", "other", false, json!([]))]},
        ]});
        Plan::read(&metadata, all).unwrap()
    }

    #[test]
    fn suites_are_the_targets_that_plain_tests_pass_over() {
        let suites = plan(false).suites;
        let titles = |suite: &Suite| suite.variants.iter().map(|v| v.title("")).collect::<Vec<_>>();
        assert_eq!((suites[0].name.as_str(), suites[1].name.as_str()), ("mpi_conformance", "mpi_small"));
        assert_eq!(titles(&suites[0])[4..], [" on 8 ranks", " --serialized on 2 ranks"]);
        assert_eq!(titles(&suites[1]), [" on 1 ranks", " on 2 ranks"]);
        assert_eq!(titles(&plan(true).suites[0])[5..], [" --serialized on 2 ranks", " --huge on 2 ranks"]);
        assert_eq!(suites[0].limit, Duration::from_secs(30));
    }

    #[test]
    fn tests_behind_default_features_are_left_to_plain_tests() {
        let titles: Vec<String> = plan(false).feature_tests.iter().map(FeatureTest::title).collect();
        assert_eq!(titles, ["interleavings of mp-comm with shuttle"]);
        assert_eq!(plan(false).feature_tests[0].qualified_features(), "mp-comm/shuttle");
    }

    #[test]
    fn targets_that_share_a_process_are_left_out_by_name() {
        let plan = plan(false);
        let told: Vec<_> = plan.together.iter().map(|target| (target.id(), target.source.as_str())).collect();
        assert_eq!(told, [("mp-comm".into(), "/t/mp_comm.rs"), ("mp-comm::small".into(), "/t/small.rs")]);
        assert!(plan.together.iter().all(|target| target.folder == std::path::Path::new("/t")));
        assert_eq!(plan.apart(), "not (binary_id(=mp-comm) | binary_id(=mp-comm::small))");
        assert_eq!(Plan::default().apart(), "not (none())");
    }

    #[test]
    fn examples_over_mpi_are_known_by_the_feature() {
        let examples = plan(false).examples;
        let listed: Vec<(&str, bool)> = examples.iter().map(|e| (e.name.as_str(), e.over_mpi)).collect();
        assert_eq!(listed, [("ring", true), ("billion", false)]);
    }

    #[test]
    fn binaries_are_found_among_the_messages_and_other_lines() {
        let messages = concat!(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"src_path\":\"/t/a.rs\"},\"executable\":\"/o/a\"}\n",
            "error: could not compile\n",
            "{\"target\":{\"src_path\":\"/t/lib.rs\"},\"executable\":null}\n",
        );
        assert_eq!(executables(messages), [("/t/a.rs".to_string(), PathBuf::from("/o/a"))].into());
    }
}
