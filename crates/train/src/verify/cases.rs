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
    /// Every mesh of as many ranks as there are or fewer, and with each mesh every option, and every two options.
    All,
    /// Every mesh with every combination of options.
    Exhaustive,
    /// These.
    List(Vec<Case>),
}

impl FromStr for Which {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "all" => Which::All,
            "exhaustive" => Which::Exhaustive,
            list => Which::List(list.split(',').map(str::parse).collect::<Result<_>>()?),
        })
    }
}

impl Which {
    /// Lists the layouts, fewest ranks first.
    ///
    /// # Errors
    /// What a layout on a list is refused for. Of all layouts, those that cannot be are left out.
    pub(super) fn cases(&self, ranks: usize, shrunk: &Shrunk) -> Result<Vec<Case>> {
        match self {
            Which::List(cases) => {
                for case in cases {
                    listed(case, ranks, shrunk)?;
                }
                Ok(cases.clone())
            }
            Which::Exhaustive => Ok(legal(ranks, shrunk)),
            Which::All => Ok(pairs(legal(ranks, shrunk))),
        }
    }
}

/// Refuses a layout of a list that cannot be.
fn listed(case: &Case, ranks: usize, shrunk: &Shrunk) -> Result<()> {
    let refused = |rule: String| Error::Config { key: "--layouts", value: format!("\"{case}\""), rule };
    if case.ranks() > ranks {
        return Err(refused(format!("takes {} ranks, and there are {ranks}", case.ranks())));
    }
    shrunk.layout(case).map(drop).map_err(|error| refused(error.to_string()))
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

    fn cases(which: &Which, ranks: usize) -> Vec<Case> {
        which.cases(ranks, &Shrunk::new(&Config::default(), 257, ranks).unwrap()).unwrap()
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
    fn what_cannot_be_is_refused_on_a_list() {
        let shrunk = Shrunk::new(&Config::default(), 257, 4).unwrap();
        for (list, why) in
            [("tp8", "takes 8 ranks"), ("tp3", "cannot be cut in 3"), ("tp2,pp2zero1", "parallel.zero 1")]
        {
            let error = list.parse::<Which>().unwrap().cases(4, &shrunk).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(why), "{error}");
        }
    }
}
