//! Which layouts are verified: all pairs of choices, all combinations, or those on a list.

use std::collections::HashSet;
use std::str::FromStr;

use mp_plan::{ContextForm, RecomputeName, ScheduleName, Zero};

use super::shrink::Shrunk;
use super::Case;
use crate::{Error, Result};

/// Which layouts to verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// Every mesh of as many ranks as there are or fewer, and with each mesh every option, and every two options; then the
    /// configured layout.
    All,
    /// Every mesh with every combination of options; then the configured layout.
    Exhaustive,
    /// These.
    List {
        /// As they are written.
        cases: Vec<Case>,
        /// Whether the configured layout comes behind them.
        configured: bool,
    },
}

/// How a list names the configured layout.
const CONFIGURED: &str = "configured";

impl FromStr for Which {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "all" => return Ok(Which::All),
            "exhaustive" => return Ok(Which::Exhaustive),
            _ => {}
        }
        let (mut cases, mut configured) = (Vec::<Case>::new(), false);
        let mut words = Vec::new();
        for word in text.split(',').map(str::trim) {
            if word == CONFIGURED {
                configured = true;
                continue;
            }
            let case = word.parse()?;
            if let Some(index) = cases.iter().position(|known| *known == case) {
                let rule =
                    format!("\"{}\" and \"{word}\" in it are the same layout; leave one of them out", words[index]);
                return Err(Error::Config { key: "--layouts", value: format!("\"{text}\""), rule });
            }
            cases.push(case);
            words.push(word);
        }
        Ok(Which::List { cases, configured })
    }
}

/// The layouts of a verification.
#[derive(Debug)]
pub(super) struct Layouts {
    /// In the order in which they are verified.
    pub cases: Vec<Case>,
    /// The one of them that the configuration trains under.
    pub configured: Option<Case>,
    /// Why it is none of them, where it was to be.
    pub not_run: Option<String>,
}

impl Which {
    /// Returns the most virtual stages that a layout needs which is given and not found.
    pub(super) fn stages(&self, configured: &Result<Case>) -> usize {
        let listed = match self {
            Which::List { cases, .. } => cases.as_slice(),
            Which::All | Which::Exhaustive => &[],
        };
        listed.iter().chain(configured).map(Case::stages).max().unwrap_or(1)
    }

    /// Lists the layouts, fewest ranks first, but for a list, which keeps its order; the configured one is last, unless it is
    /// one of the others.
    ///
    /// # Errors
    /// What a layout on a list is refused for. Of all layouts, those that cannot be are left out, and of a configured one that
    /// cannot be on these ranks it is said.
    pub(super) fn layouts(&self, ranks: usize, shrunk: &Shrunk, configured: Result<Case>) -> Result<Layouts> {
        let (mut cases, wanted) = match self {
            Which::List { cases, configured } => {
                cases.iter().try_for_each(|case| listed(case, ranks, shrunk))?;
                (cases.clone(), *configured)
            }
            Which::Exhaustive => (legal(ranks, shrunk), true),
            Which::All => (pairs(legal(ranks, shrunk)), true),
        };
        let configured = configured.and_then(|case| shrunk.layout(&case).map(|_| case));
        let not_run = match (&configured, self) {
            (Ok(_), _) => None,
            (Err(error), Which::List { configured: true, .. }) => {
                return Err(refused(CONFIGURED, error.to_string()));
            }
            (Err(error), _) => wanted.then(|| error.to_string()),
        };
        let configured = configured.ok();
        let missing = configured.filter(|case| wanted && !cases.contains(case));
        cases.extend(missing);
        Ok(Layouts { cases, configured, not_run })
    }
}

/// Words a layout of a list that cannot be.
fn refused(layout: &str, rule: String) -> Error {
    Error::Config { key: "--layouts", value: format!("\"{layout}\""), rule }
}

/// Refuses a layout of a list that cannot be.
fn listed(case: &Case, ranks: usize, shrunk: &Shrunk) -> Result<()> {
    let refused = |rule: String| refused(&case.to_string(), rule);
    let needed = case.ranks();
    if needed > ranks {
        let are = if ranks == 1 { "there is 1".into() } else { format!("there are {ranks}") };
        let rule = format!("takes {needed} ranks, and {are}; start it on {needed} or more (mpirun -n {needed})");
        return Err(refused(rule));
    }
    if case.split && !shrunk.is_split() {
        return Err(refused("says split, and parallel.split is empty; leave it out, or set that".into()));
    }
    let possible = shrunk.check_full(case).and_then(|()| shrunk.layout(case));
    possible.map(drop).map_err(|error| refused(error.to_string()))
}

/// Lists every layout that can be.
fn legal(ranks: usize, shrunk: &Shrunk) -> Vec<Case> {
    let mut cases = Vec::new();
    for mesh in (1..=ranks).flat_map(meshes) {
        for case in options(mesh) {
            if shrunk.layout(&case).is_ok() {
                cases.push(case);
            }
        }
    }
    cases
}

/// Lists the meshes of exactly so many ranks.
fn meshes(ranks: usize) -> Vec<Case> {
    let parts = |whole: usize| (1..=whole).filter(move |part| whole.is_multiple_of(*part));
    let mut meshes = Vec::new();
    for tp in parts(ranks) {
        for pp in parts(ranks / tp) {
            for cp in parts(ranks / tp / pp) {
                meshes.push(Case { tp, pp, cp, dp: ranks / tp / pp / cp, ..Case::default() });
            }
        }
    }
    meshes
}

/// Lists every combination of options that changes something on a mesh.
fn options(mesh: Case) -> Vec<Case> {
    let several = |degree: usize, count: usize| if degree > 1 { count } else { 1 };
    let mut cases = vec![mesh];
    // 1F1B first: it is the only one where there are no stages.
    let schedules = [ScheduleName::OneFOneB].into_iter();
    let others = ScheduleName::ALL.into_iter().filter(|&name| name != ScheduleName::OneFOneB);
    let schedules: Vec<_> = schedules.chain(others).take(several(mesh.pp, usize::MAX)).collect();
    vary(&mut cases, &schedules, |case, schedule| case.schedule = schedule);
    vary(&mut cases, &Zero::ALL[..several(mesh.dp * mesh.cp, Zero::ALL.len())], |case, zero| case.zero = zero);
    vary(&mut cases, &[false, true][..several(mesh.tp, 2)], |case, cut| case.sequence_parallel = cut);
    let forms = [ContextForm::Ring, ContextForm::AllToAll];
    vary(&mut cases, &forms[..several(mesh.cp, forms.len())], |case, form| case.context = form);
    let recomputes =
        [(RecomputeName::None, 0), (RecomputeName::Selective, 0), (RecomputeName::Full, 1), (RecomputeName::Full, 2)];
    vary(&mut cases, &recomputes, |case, (name, every)| (case.recompute, case.recompute_every) = (name, every));
    vary(&mut cases, &[Case::default_micro_batches(mesh.pp), 1], |case, count| case.micro_batches = count);
    cases
}

/// Makes of each layout one for each choice.
fn vary<T: Copy>(cases: &mut Vec<Case>, choices: &[T], set: impl Fn(&mut Case, T)) {
    let made = cases.iter().flat_map(|case| {
        choices.iter().map(|&choice| {
            let mut case = *case;
            set(&mut case, choice);
            case
        })
    });
    *cases = made.collect();
}

/// A value of one factor and a value of another.
type Pair = ((usize, String), (usize, String));

/// Thins layouts out until every pair of values that any of them has is left in one at least: again and again the one
/// that covers most of what is missing.
fn pairs(cases: Vec<Case>) -> Vec<Case> {
    let covers: Vec<HashSet<Pair>> = cases.iter().map(pairs_of).collect();
    let mut missing: HashSet<&Pair> = covers.iter().flatten().collect();
    let mut taken = vec![false; cases.len()];
    while !missing.is_empty() {
        let news = |index: &usize| covers[*index].iter().filter(|pair| missing.contains(pair)).count();
        // Of equals the first, which is the plainest.
        let best = (0..cases.len()).rev().max_by_key(news).expect("what is missing is in some layout");
        taken[best] = true;
        missing.retain(|pair| !covers[best].contains(*pair));
    }
    cases.into_iter().zip(taken).filter_map(|(case, taken)| taken.then_some(case)).collect()
}

fn pairs_of(case: &Case) -> HashSet<Pair> {
    let factors: Vec<_> = case.factors().into_iter().enumerate().collect();
    let pair = |first: usize, second: usize| (factors[first].clone(), factors[second].clone());
    (0..factors.len())
        .flat_map(|second| (0..second).map(move |first| (first, second)))
        .map(|(a, b)| pair(a, b))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn layouts(which: &Which, ranks: usize, sets: &[&str]) -> Result<Layouts> {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        let config = Config::load(None, None, &sets).unwrap();
        let configured = Case::configured(&config, 257, ranks);
        let shrunk = Shrunk::new(&config, 257, ranks, which.stages(&configured), mp_runtime::Device::Cpu).unwrap();
        which.layouts(ranks, &shrunk, configured)
    }

    fn cases(which: &Which, ranks: usize) -> Vec<Case> {
        layouts(which, ranks, &[]).unwrap().cases
    }

    #[test]
    fn all_hold_every_mesh_and_every_pair_of_the_product() {
        let (all, product) = (cases(&Which::All, 4), cases(&Which::Exhaustive, 4));
        assert!(all.len() < product.len() / 2, "{} of {}", all.len(), product.len());
        let covered = |cases: &[Case]| cases.iter().flat_map(pairs_of).collect::<HashSet<_>>();
        assert_eq!(covered(&all), covered(&product));
        for mesh in ["tp4", "pp4", "dp4", "cp4", "tp2pp2", "tp2dp2", "tp2cp2", "pp2dp2", "pp2cp2", "dp2cp2", "tp1"] {
            let mesh = mesh.parse::<Case>().unwrap().factors()[0].clone();
            assert!(all.iter().any(|case| case.factors()[0] == mesh), "{mesh}");
        }
        // Four heads are not cut in three.
        assert!(!product.iter().any(|case| case.tp == 3));
    }

    #[test]
    fn an_option_that_changes_nothing_is_no_layout_of_its_own() {
        // Fused attention keeps nothing that selective recompute could drop, unless weights are dropped out.
        let selective = |sets: &[&str]| {
            let found = layouts(&Which::Exhaustive, 2, sets).unwrap().cases;
            found.iter().filter(|case| case.recompute == RecomputeName::Selective).count()
        };
        assert_eq!(selective(&[]), 0);
        assert!(selective(&["model.dropout=0.1"]) > 0);
    }

    #[test]
    fn the_configured_layout_comes_last_unless_it_is_there_already() {
        let sets = ["parallel.pp=2", "parallel.tp=1", "parallel.chunks=2", "parallel.schedule=interleaved"];
        let split = [&sets[..], &["model.layers=24", "parallel.split=[5, 6, 7, 6]"]].concat();
        for (which, ranks, sets, name) in [
            ("all", 2, &[][..], "tp2 sp mb1"),
            ("all", 4, &sets, "pp2dp2 interleaved"),
            ("exhaustive", 2, &split, "pp2 interleaved split"),
            ("tp2,configured", 2, &["parallel.zero=1", "parallel.tp=1"], "dp2zero1 mb1"),
        ] {
            let found = layouts(&which.parse().unwrap(), ranks, sets).unwrap();
            assert_eq!(found.configured.map(|case| case.to_string()).as_deref(), Some(name));
            assert_eq!(found.cases.iter().filter(|case| Some(**case) == found.configured).count(), 1, "{name}");
            if which != "all" {
                assert_eq!(found.cases.last().copied(), found.configured, "{name}");
            }
        }
        let found = layouts(&"tp2".parse().unwrap(), 2, &[]).unwrap();
        assert_eq!((found.cases.len(), found.not_run), (1, None));
    }

    #[test]
    fn a_configured_layout_that_cannot_be_here_is_spoken_of() {
        let sets = ["parallel.tp=4", "parallel.pp=2"];
        let found = layouts(&Which::All, 2, &sets).unwrap();
        assert!(found.configured.is_none() && found.not_run.unwrap().contains("cannot make 2 ranks"));
        let error = layouts(&"configured".parse().unwrap(), 2, &sets).unwrap_err();
        assert!(
            error.is_input() && error.to_string().starts_with("`--layouts` is \"configured\", but pp 2"),
            "{error}"
        );
        assert!(layouts(&"tp2".parse().unwrap(), 2, &sets).unwrap().not_run.is_none());
    }

    #[test]
    fn what_cannot_be_is_refused_on_a_list_in_the_users_own_numbers() {
        for (list, why) in [
            ("tp8", "takes 8 ranks, and there are 4; start it on 8 or more (mpirun -n 8)"),
            ("tp3", "model.heads 16 cannot be cut in 3 (parallel.tp); parallel.tp may be 1, 2, 4, 8 or 16"),
            (
                "pp4 interleaved chunks3",
                "model.layers 10 cannot fill parallel.pp 4 × 3 chunks of a rank; parallel.pp may be at most 3",
            ),
            ("tp2,pp2zero1", "parallel.zero 1"),
            ("pp2 split", "says split, and parallel.split is empty"),
            ("tp2 zb-v", "parallel.schedule zb-v changes nothing"),
            ("dp2 a2a", "parallel.context all-to-all changes nothing"),
            ("tp2,dp2,tp2 1f1b", "\"tp2\" and \"tp2 1f1b\" in it are the same layout"),
            ("pp2 mb4,pp2", "\"pp2 mb4\" and \"pp2\" in it are the same layout"),
        ] {
            let sets = ["model.heads=16", "model.layers=10"];
            let error = list.parse::<Which>().and_then(|which| layouts(&which, 4, &sets)).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(why), "{error}");
        }
    }
}
