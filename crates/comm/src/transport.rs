//! Which communicator carries a run's tensors, and why: `parallel.transport`.
//!
//! A pure function of what was found. Whoever found it makes the communicator, and says the reason.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Whatever serves best.
    Auto,
    /// NCCL, or nothing.
    Nccl,
    /// MPI; device pointers go straight to it where it takes them.
    Mpi,
    /// MPI, always through memory of the host.
    Staged,
}

impl Asked {
    const ALL: [Asked; 4] = [Asked::Auto, Asked::Nccl, Asked::Mpi, Asked::Staged];

    const fn name(self) -> &'static str {
        match self {
            Asked::Auto => "auto",
            Asked::Nccl => "nccl",
            Asked::Mpi => "mpi",
            Asked::Staged => "staged",
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Asked {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refusal = || Error::Transport { asked: text.into(), reason: "it is auto, nccl, mpi or staged".into() };
        Self::ALL.into_iter().find(|asked| asked.name() == text).ok_or_else(refusal)
    }
}

/// What carries tensors between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The communicator of the host, as it is: the tensors lie there.
    Host,
    /// NCCL, with a device a rank.
    Nccl,
    /// MPI, which takes device pointers.
    Direct,
    /// MPI, through page-locked memory of the host.
    Staged,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circumstances {
    /// Whether the tensors lie on devices.
    pub on_device: bool,
    /// How many ranks there are.
    pub ranks: usize,
    /// How many ranks share a device, at most.
    pub ranks_a_device: usize,
    /// NCCL's version, or why it cannot be used.
    pub nccl: std::result::Result<String, String>,
    /// Whether MPI takes device pointers; `None` where it does not say.
    pub cuda_aware: Option<bool>,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The transport.
    pub transport: Transport,
    /// Why, in a line for people.
    pub reason: String,
}

/// Chooses.
///
/// # Errors
/// [`Error::Transport`] where what was asked for cannot be had, with the way out.
pub fn choose(asked: Asked, found: &Circumstances) -> Result<Choice> {
    let choice = |transport, reason: String| Ok(Choice { transport, reason });
    let refusal = |reason: String| Err(Error::Transport { asked: asked.to_string(), reason });
    if !found.on_device {
        return match asked {
            Asked::Auto | Asked::Mpi => choice(Transport::Host, "tensors lie on the host".into()),
            Asked::Nccl | Asked::Staged => {
                refusal("tensors lie on the host: set train.device=cuda, or parallel.transport=auto".into())
            }
        };
    }
    match (asked, against_nccl(found)) {
        (Asked::Nccl, Some(against)) if found.nccl.is_ok() => {
            refusal(format!("{against}: start one rank a device, or set parallel.transport=mpi"))
        }
        // The library's own refusal names the way out.
        (Asked::Nccl, Some(against)) => refusal(against),
        (Asked::Auto, _) if found.ranks == 1 => choice(Transport::Staged, "one rank: nothing travels".into()),
        (Asked::Auto | Asked::Nccl, None) => {
            let version = found.nccl.as_deref().unwrap_or_default();
            choice(Transport::Nccl, format!("NCCL {version}, with a device a rank"))
        }
        (Asked::Auto, Some(against)) => {
            let (transport, how) = over_mpi(found);
            choice(transport, format!("{against}; {how}"))
        }
        (Asked::Mpi, _) => {
            let (transport, how) = over_mpi(found);
            choice(transport, format!("as asked; {how}"))
        }
        (Asked::Staged, _) => choice(Transport::Staged, "as asked, through host memory".into()),
    }
}

/// What speaks against NCCL.
fn against_nccl(found: &Circumstances) -> Option<String> {
    match &found.nccl {
        Err(reason) => Some(reason.clone()),
        Ok(_) if found.ranks_a_device > 1 => {
            Some(format!("{} ranks share a device, which NCCL refuses", found.ranks_a_device))
        }
        Ok(_) => None,
    }
}

fn over_mpi(found: &Circumstances) -> (Transport, &'static str) {
    match found.cuda_aware {
        Some(true) => (Transport::Direct, "MPI takes device pointers"),
        Some(false) => (Transport::Staged, "MPI takes no device pointers, so through host memory"),
        None => (Transport::Staged, "MPI does not say that it takes device pointers, so through host memory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination of what can be found.
    fn everything() -> impl Iterator<Item = Circumstances> {
        let nccl = [Ok("2.28.9".to_string()), Err("no NCCL: set a path to one".to_string())];
        let shares = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)];
        [false, true].into_iter().flat_map(move |on_device| {
            let nccl = nccl.clone();
            shares.into_iter().flat_map(move |(ranks, ranks_a_device)| {
                nccl.clone().into_iter().flat_map(move |nccl| {
                    [None, Some(false), Some(true)].into_iter().map(move |cuda_aware| Circumstances {
                        on_device,
                        ranks,
                        ranks_a_device,
                        nccl: nccl.clone(),
                        cuda_aware,
                    })
                })
            })
        })
    }

    #[test]
    fn every_combination_has_its_answer() {
        let mut count = 0;
        for found in everything() {
            let nccl_serves = found.nccl.is_ok() && found.ranks_a_device == 1;
            let over_mpi = if found.cuda_aware == Some(true) { Transport::Direct } else { Transport::Staged };
            for asked in Asked::ALL {
                let expected = match (found.on_device, asked) {
                    (false, Asked::Auto | Asked::Mpi) => Some(Transport::Host),
                    (false, Asked::Nccl | Asked::Staged) => None,
                    (true, Asked::Nccl) => nccl_serves.then_some(Transport::Nccl),
                    (true, Asked::Mpi) => Some(over_mpi),
                    (true, Asked::Staged) => Some(Transport::Staged),
                    (true, Asked::Auto) if found.ranks == 1 => Some(Transport::Staged),
                    (true, Asked::Auto) => Some(if nccl_serves { Transport::Nccl } else { over_mpi }),
                };
                let answer = choose(asked, &found);
                assert_eq!(answer.as_ref().ok().map(|choice| choice.transport), expected, "{asked} {found:?}");
                match answer {
                    Ok(choice) => assert!(!choice.reason.is_empty()),
                    Err(error) => assert!(error.to_string().contains("set "), "{error}"),
                }
                count += 1;
            }
        }
        assert_eq!(count, 2 * 6 * 2 * 3 * 4);
    }

    #[test]
    fn reasons_are_for_people() {
        let found = Circumstances {
            on_device: true,
            ranks: 4,
            ranks_a_device: 4,
            nccl: Ok("2.28.9".into()),
            cuda_aware: Some(false),
        };
        let reason = |asked, found: &Circumstances| choose(asked, found).map(|choice| choice.reason);
        let shared = "4 ranks share a device, which NCCL refuses";
        let staged = "MPI takes no device pointers, so through host memory";
        assert_eq!(reason(Asked::Auto, &found), Ok(format!("{shared}; {staged}")));
        let error = reason(Asked::Nccl, &found).expect_err("a shared device");
        let expected =
            format!("parallel.transport=nccl: {shared}: start one rank a device, or set parallel.transport=mpi");
        assert_eq!(error.to_string(), expected);
        let own = Circumstances { ranks_a_device: 1, ..found };
        assert_eq!(reason(Asked::Auto, &own), Ok("NCCL 2.28.9, with a device a rank".into()));
        let without = Circumstances { nccl: Err("no NCCL: install it".into()), ..own };
        assert_eq!(reason(Asked::Auto, &without), Ok(format!("no NCCL: install it; {staged}")));
        let error = reason(Asked::Nccl, &without).expect_err("no NCCL");
        assert_eq!(error.to_string(), "parallel.transport=nccl: no NCCL: install it");
    }

    #[test]
    fn names_are_read() {
        for asked in Asked::ALL {
            assert_eq!(asked.to_string().parse(), Ok(asked));
        }
        let error = "gloo".parse::<Asked>().expect_err("no such transport");
        assert_eq!(error.to_string(), "parallel.transport=gloo: it is auto, nccl, mpi or staged");
    }
}
