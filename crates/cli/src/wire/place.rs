//! What the ranks compute on, decided from what each of them sees: a pure function, with a table of cases as its test.

use mp_runtime::device::Numerics;
use mp_runtime::Device;
use mp_train::config::{DeviceName, TrainConfig};
use mp_train::Error;

use crate::failure::refused;

/// What tells a device apart from all others.
pub type Number = [u8; 16];

/// Where a rank's tensors lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In memory of the host, with the reason where it is no matter of course.
    Host(Option<String>),
    /// On a device.
    Device {
        /// Its index in this process.
        index: usize,
        /// How many ranks share a device, at most.
        ranks_a_device: usize,
    },
}

impl Place {
    /// Returns the tensor backend's name of it.
    pub fn device(&self) -> Device {
        match self {
            Place::Host(_) => Device::Cpu,
            Place::Device { index, .. } => Device::Cuda(*index),
        }
    }
}

/// What a rank sees: its device's index, or why there is none.
pub type Seen = Result<usize, String>;

/// Decides for this rank, which has `seen` so much; `all` has by rank the number of the device that each of them sees.
///
/// All ranks compute on devices, or none does. Where a device is asked for, the ranks without one say so, and the others
/// are content: they are to agree.
///
/// # Errors
/// An input error on a rank that lacks the device that was asked for.
pub fn decide(name: DeviceName, seen: Seen, all: &[Option<Number>], driver: bool) -> mp_train::Result<Place> {
    let blind: Vec<usize> = (0..all.len()).filter(|&rank| all[rank].is_none()).collect();
    let mixed = || Place::Host(Some(format!("{} no CUDA device, and all ranks compute on the same kind", see(&blind))));
    match (name, seen) {
        (DeviceName::Cpu, _) => Ok(Place::Host(None)),
        (DeviceName::Cuda, Err(why)) => {
            let rule = format!("CUDA cannot be used here ({why}); set it to \"cpu\" or \"auto\"");
            Err(refused("train.device", "\"cuda\"", rule))
        }
        (DeviceName::Auto, Err(why)) if blind.len() == all.len() => {
            // Without a driver nobody expects more.
            Ok(Place::Host(driver.then(|| format!("a GPU is here, but cannot be used ({why})"))))
        }
        (DeviceName::Auto, Err(_)) => Ok(mixed()),
        (DeviceName::Auto, Ok(_)) if !blind.is_empty() => Ok(mixed()),
        (DeviceName::Auto | DeviceName::Cuda, Ok(index)) => {
            Ok(Place::Device { index, ranks_a_device: most_alike(all) })
        }
    }
}

/// Says which ranks see nothing: `rank 3 sees`, `ranks 1 and 3 see`.
fn see(ranks: &[usize]) -> String {
    match ranks {
        [one] => format!("rank {one} sees"),
        [one, other] => format!("ranks {one} and {other} see"),
        [first, .., last] => format!("{} ranks, from {first} to {last}, see", ranks.len()),
        [] => "no rank sees".into(),
    }
}

/// Counts the ranks on the device that has most.
fn most_alike(all: &[Option<Number>]) -> usize {
    let alike = |number: &Number| all.iter().flatten().filter(|other| *other == number).count();
    all.iter().flatten().map(alike).max().unwrap_or(0)
}

/// Reads how a device is to compute.
///
/// # Errors
/// An input error for a choice that the host does not have.
pub fn numerics(train: &TrainConfig, place: &Place) -> Result<Numerics, Error> {
    let Place::Host(why) = place else { return Ok(Numerics { deterministic: train.deterministic, tf32: train.tf32 }) };
    let why = why.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
    let only = |key, what: &str| {
        let rule = format!("{what}, and the ranks compute on the CPU{why}; leave it out, or set train.device=cuda");
        Err(refused(key, true, rule))
    };
    match (train.deterministic, train.tf32) {
        (true, _) => only("train.deterministic", "it chooses among kernels of a CUDA device"),
        (_, true) => only("train.tf32", "it is about products of a CUDA device"),
        (false, false) => Ok(Numerics { deterministic: false, tf32: false }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Option<Number> = Some([1; 16]);
    const B: Option<Number> = Some([2; 16]);
    const NONE: Option<Number> = None;

    /// What is asked for, what this rank sees, what all see, whether there is a driver; and what comes of it.
    type Case<'a> = (DeviceName, Seen, &'a [Option<Number>], bool, Result<Place, &'a str>);

    fn gone() -> Seen {
        Err("libtorch_cuda.so cannot be opened".into())
    }

    #[test]
    fn every_case_has_its_place() {
        let device = |index, ranks_a_device| Ok(Place::Device { index, ranks_a_device });
        let host = || Ok(Place::Host(None));
        let told = |why: &str| Ok(Place::Host(Some(why.into())));
        let refusal =
            "`train.device` is \"cuda\", but CUDA cannot be used here (libtorch_cuda.so cannot be opened); set it \
                       to \"cpu\" or \"auto\"";
        let kind = "and all ranks compute on the same kind";
        let cases: [Case<'_>; 16] = [
            // Asked for the CPU, nobody looks.
            (DeviceName::Cpu, gone(), &[], true, host()),
            (DeviceName::Cpu, Ok(0), &[A], true, host()),
            // No device at all.
            (DeviceName::Auto, gone(), &[NONE], false, host()),
            (DeviceName::Auto, gone(), &[NONE, NONE], false, host()),
            (
                DeviceName::Auto,
                gone(),
                &[NONE],
                true,
                told("a GPU is here, but cannot be used (libtorch_cuda.so cannot be opened)"),
            ),
            (DeviceName::Cuda, gone(), &[NONE, NONE], false, Err(refusal)),
            // A device for some.
            (DeviceName::Auto, Ok(0), &[A, NONE], true, told(&format!("rank 1 sees no CUDA device, {kind}"))),
            (DeviceName::Auto, gone(), &[A, NONE], true, told(&format!("rank 1 sees no CUDA device, {kind}"))),
            (
                DeviceName::Auto,
                Ok(0),
                &[NONE, A, NONE],
                true,
                told(&format!("ranks 0 and 2 see no CUDA device, {kind}")),
            ),
            (
                DeviceName::Auto,
                Ok(0),
                &[A, NONE, NONE, NONE],
                true,
                told(&format!("3 ranks, from 1 to 3, see no CUDA device, {kind}")),
            ),
            (DeviceName::Cuda, gone(), &[A, NONE], true, Err(refusal)),
            // The rank that has one is content.
            (DeviceName::Cuda, Ok(1), &[A, NONE], true, device(1, 1)),
            // One each, shared, and one that every process calls its first.
            (DeviceName::Auto, Ok(1), &[A, B], true, device(1, 1)),
            (DeviceName::Auto, Ok(0), &[A, A, A, A], true, device(0, 4)),
            (DeviceName::Cuda, Ok(0), &[A, B, A], true, device(0, 2)),
            (DeviceName::Cuda, Ok(0), &[A, B], false, device(0, 1)),
        ];
        for (name, seen, all, driver, expected) in cases {
            let case = format!("{name:?} {seen:?} {all:?} {driver}");
            let decided = decide(name, seen, all, driver).map_err(|error| {
                assert!(error.is_input(), "{case}");
                error.to_string()
            });
            assert_eq!(decided, expected.map_err(String::from), "{case}");
        }
    }

    #[test]
    fn the_host_has_no_choice_of_numerics() {
        let train = |deterministic, tf32| TrainConfig { deterministic, tf32, ..TrainConfig::default() };
        let (host, device) = (Place::Host(None), Place::Device { index: 0, ranks_a_device: 1 });
        for (deterministic, tf32) in [(false, false), (false, true), (true, false), (true, true)] {
            let numerics = Numerics { deterministic, tf32 };
            assert_eq!(super::numerics(&train(deterministic, tf32), &device).unwrap(), numerics);
        }
        super::numerics(&train(false, false), &host).unwrap();
        let refused = |train, place: &Place| super::numerics(&train, place).unwrap_err().to_string();
        let rest = "and the ranks compute on the CPU; leave it out, or set train.device=cuda";
        assert_eq!(
            refused(train(true, true), &host),
            format!("`train.deterministic` is true, but it chooses among kernels of a CUDA device, {rest}")
        );
        assert_eq!(
            refused(train(false, true), &host),
            format!("`train.tf32` is true, but it is about products of a CUDA device, {rest}")
        );
        let told = refused(train(false, true), &Place::Host(Some("rank 1 sees no CUDA device".into())));
        assert!(told.contains("on the CPU (rank 1 sees no CUDA device); leave"), "{told}");
    }
}
