//! The checks by name, in the order of their worth: a run that is cut short has done what tells most.

use anyhow::{bail, Result};
use std::time::Duration;

use super::speed::{Model, Program, GPT2, LLAMA};

/// Something that must be seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What it is called.
    pub name: String,
    /// What is seen if it passes.
    pub what: String,
    /// How it is run.
    pub kind: Kind,
    /// When it counts as hung.
    pub limit: Duration,
}

/// How a check is run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Layouts beside one rank, on so many ranks.
    Layouts {
        /// The world size.
        ranks: usize,
    },
    /// The communicators' own suite on device buffers.
    Conformance {
        /// The world size.
        ranks: usize,
        /// What carries the buffers.
        transport: &'static str,
    },
    /// Published models on the host and on the device.
    Published,
    /// A run that moves between the host and the device.
    Checkpoints,
    /// Tokens a second.
    Throughput(&'static Model, Program),
    /// A training to a known loss.
    Recipe,
}

/// The parts of the page.
pub const SECTIONS: [&str; 4] =
    ["Layouts and communicators", "Published models and checkpoints", "Throughput", "A whole training"];

impl Kind {
    /// The part of the page that it belongs to.
    pub fn section(self) -> &'static str {
        match self {
            Self::Layouts { .. } | Self::Conformance { .. } => SECTIONS[0],
            Self::Published | Self::Checkpoints => SECTIONS[1],
            Self::Throughput(..) => SECTIONS[2],
            Self::Recipe => SECTIONS[3],
        }
    }
}

/// All checks.
pub fn all() -> Vec<Check> {
    let mut all = Vec::new();
    let mut add = |name: String, what: String, kind: Kind, seconds: u64| {
        all.push(Check { name, what, kind, limit: Duration::from_secs(seconds) });
    };
    // Ranks that share a GPU take turns on it.
    for (ranks, seconds) in [(1, 180), (2, 300), (4, 480)] {
        let what = format!(
            "layouts of up to {} compute what one rank computes: in fp64 to 1e-10, in bf16 within rounding",
            shared(ranks)
        );
        add(format!("verify-{ranks}"), what, Kind::Layouts { ranks }, seconds);
    }
    for (transport, way, sizes) in
        [("staged", "MPI, staged through host memory", &[1, 2, 4][..]), ("nccl", "NCCL", &[1])]
    {
        for &ranks in sizes {
            let what = format!("the communicators' suite on device buffers over {way}, {}", shared(ranks));
            add(format!("conformance-{transport}-{ranks}"), what, Kind::Conformance { ranks, transport }, 90);
        }
    }
    let what = "models that transformers saved write the same greedy tokens on the host and on the GPU, in fp32";
    add("huggingface".into(), what.into(), Kind::Published, 150);
    let what = "a run saved on the host goes on on the GPU, and back, with the losses of one that never moved, in fp64 to 1e-10";
    add("checkpoint".into(), what.into(), Kind::Checkpoints, 120);
    for model in [&GPT2, &LLAMA] {
        for program in Program::ALL {
            let what = format!("{} trained in bf16 by {}", model.title, program.words());
            // To compile a model takes minutes.
            let seconds = if program == Program::Compiled { 360 } else { 180 };
            add(
                format!("throughput-{}-{}", model.name, program.name()),
                what,
                Kind::Throughput(model, program),
                seconds,
            );
        }
    }
    let what = "nanoGPT's GPU recipe on Shakespeare's plays (6 layers, width 384, context 256, 5,000 steps, bf16) reaches 1.50 nats a byte";
    add("shakespeare".into(), what.into(), Kind::Recipe, 1200);
    all
}

fn shared(ranks: usize) -> String {
    match ranks {
        1 => "1 rank".into(),
        _ => format!("{ranks} ranks that share the GPU"),
    }
}

/// Those whose name begins with one of `only`; all without any.
///
/// # Errors
/// Where one of these fits nothing.
pub fn chosen(only: &[String]) -> Result<Vec<Check>> {
    let all = all();
    let fits = |check: &Check, start: &String| check.name.starts_with(start.as_str());
    if let Some(lost) = only.iter().find(|start| !all.iter().any(|check| fits(check, start))) {
        let names: Vec<&str> = all.iter().map(|check| check.name.as_str()).collect();
        bail!("--only {lost}: no check's name begins so; there are {}", names.join(", "));
    }
    Ok(all.into_iter().filter(|check| only.is_empty() || only.iter().any(|start| fits(check, start))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: &[&str]) -> Vec<String> {
        let only: Vec<String> = only.iter().map(|start| start.to_string()).collect();
        chosen(&only).unwrap().into_iter().map(|check| check.name).collect()
    }

    #[test]
    fn checks_are_chosen_by_the_beginning_of_their_names() {
        assert_eq!(names(&["verify", "huggingface"]), ["verify-1", "verify-2", "verify-4", "huggingface"]);
        assert_eq!(names(&["conformance-n"]), ["conformance-nccl-1"]);
        assert_eq!(names(&[]).len(), 16);
        let error = chosen(&["speed".into()]).unwrap_err().to_string();
        assert!(error.starts_with("--only speed: no check's name begins so; there are verify-1, verify-2"), "{error}");
    }

    #[test]
    fn no_two_checks_have_one_name() {
        let mut names = names(&[]);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().len());
    }
}
