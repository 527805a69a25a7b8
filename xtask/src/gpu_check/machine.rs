//! What the checks run on, as the machine tells it.

use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

use super::bench::{one_device, Bench};
use super::Device;
use crate::process;

/// How long the examination may take: libtorch is read from a cold disk.
const LIMIT: Duration = Duration::from_secs(120);

/// A machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// The GPU's name, or "the CPU".
    pub device: String,
    /// Its memory and driver, as nvidia-smi tells them.
    pub driver: String,
    /// Cores of the host.
    pub cores: usize,
    /// PyTorch's version.
    pub torch: String,
}

impl Machine {
    /// In a line.
    pub fn words(&self) -> String {
        let Self { device, driver, cores, torch } = self;
        let driver = if driver.is_empty() { String::new() } else { format!(" ({driver})") };
        format!("{device}{driver}, {cores} cores, PyTorch {torch}")
    }
}

/// Looks at the machine; libtorch, MPI and the device are tried.
///
/// # Errors
/// If the device cannot be used, with the reason and the way out.
pub fn examine(bench: &mut Bench) -> Result<Machine> {
    let file = bench.work.join("doctor.json");
    let mut doctor = bench.mp(None, &["doctor", "--json"]);
    let heard = bench.hear(doctor.arg(&file), LIMIT)?;
    if !heard.success() && !file.exists() {
        bail!("{}", heard.complaint());
    }
    let findings: Value = bench.json(&file)?;
    if bench.device == Device::Cuda {
        on_a_gpu(&findings)?;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let [device, driver] = match bench.device {
        Device::Cuda => gpu(),
        Device::Cpu => ["the CPU".into(), String::new()],
    };
    Ok(Machine { device, driver, cores, torch: torch(bench)? })
}

/// Says that there is no GPU, if so, in the words of `mp-cli doctor`.
fn on_a_gpu(findings: &Value) -> Result<()> {
    let of_devices = findings["findings"].as_array().into_iter().flatten().find(|finding| finding["what"] == "devices");
    let found =
        of_devices.and_then(|finding| finding["found"].as_str()).context("mp-cli doctor says nothing of devices")?;
    if !found.starts_with("the CPU and ") {
        bail!(
            "no GPU can be used here: mp-cli finds {found}. Take the bundle to a machine that has one, with a driver and a \
             Python with PyTorch, and run ./gpu-check there; --device cpu tries this program here"
        );
    }
    Ok(())
}

/// The first GPU's name, and its memory and driver.
fn gpu() -> [String; 2] {
    let fields = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"];
    let mut command = Command::new("nvidia-smi");
    if let Some(one) = one_device(std::env::var_os("CUDA_VISIBLE_DEVICES")).filter(|one| !one.is_empty()) {
        command.arg("--id").arg(one);
    }
    let printed = process::stdout_of(command.args(fields)).unwrap_or_default();
    let first = printed.lines().next().unwrap_or("a GPU that nvidia-smi does not tell of");
    let (name, rest) = first.split_once(',').unwrap_or((first, ""));
    let driver = rest.trim().replace(", ", ", driver ");
    [name.trim().into(), driver]
}

/// The version of the PyTorch whose libtorch is used.
fn torch(bench: &mut Bench) -> Result<String> {
    let code = "from importlib.metadata import version; print(version('torch'))";
    let told = process::stdout_of(bench.python().args(["-c", code]));
    Ok(told.map_or_else(|_| format!("{} (libtorch alone)", crate::setup::LIBTORCH_VERSION), |text| text.trim().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_machine_without_a_gpu_is_told_so_in_one_line() {
        let findings =
            |found: &str| json!({"findings": [{"what": "cores", "found": "2"}, {"what": "devices", "found": found}]});
        on_a_gpu(&findings("the CPU and 1 CUDA device")).unwrap();
        for found in ["the CPU; there is no NVIDIA driver", "the CPU alone: libtorch finds no CUDA device"] {
            let error = on_a_gpu(&findings(found)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("no GPU can be used here: mp-cli finds {found}. Take")), "{error}");
            assert_eq!(error.lines().count(), 1);
        }
    }
}
