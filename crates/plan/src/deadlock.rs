//! A static proof that the step lists of a pipeline run to their end, or the circle in which they wait.
//!
//! Sends are taken as rendezvous: one that no receive takes is never over. That is the strictest that a communicator
//! may be, so what passes here passes on all. As messages on a channel keep their order, the k-th send meets the k-th
//! receive whatever the timing; so every list runs to its end if and only if each meets one, and no steps wait for each
//! other in a circle. Nothing is executed.
//!
//! [`Step::SumTied`] waits for the same sum on the other of the two ranks that hold the ends of the model; on any other
//! rank, or where one rank holds both ends, there is nobody to wait for. [`Step::Reduce`] and [`Step::Update`] concern
//! no other rank of the pipeline; [`Step::Reduce`] and the end of a list wait for the rank's own sends.
//!
//! Whether the lists do what they should is the matter of [`crate::completeness`].

use std::fmt;

use crate::{
    waits::{Completion, Need, Place, Waits},
    Stages, Step,
};

/// Proves that every list runs to its end.
///
/// # Errors
/// [`Stuck`], which says who waits for whom.
///
/// # Examples
///
/// ```
/// use mp_plan::{deadlock, Folding, Payload, Stages, Step};
///
/// let stages = Stages::with_layers(2, 1, Folding::Loop, &[3, 2])?;
/// let receive = |from| Step::Receive { payload: Payload::Activation, stage: from, micro_batch: 0, from };
/// let send = |stage, to| Step::Send { payload: Payload::Activation, stage, micro_batch: 0, to };
/// let polite = [vec![receive(1), send(0, 1)], vec![receive(0), send(1, 0)]];
/// let stuck = deadlock::check(&polite, &stages).unwrap_err();
/// assert_eq!(stuck.links.len(), 2);
/// println!("{stuck}");
/// # Ok::<(), mp_plan::Error>(())
/// ```
pub fn check(lists: &[Vec<Step>], stages: &Stages) -> Result<(), Stuck> {
    let waits = Waits::new(lists, stages);
    let Completion { next, .. } = waits.order();
    let is_stuck = |rank: &usize| next[*rank] <= lists[*rank].len();
    let Some(first) = (0..lists.len()).find(is_stuck) else {
        return Ok(());
    };
    // From rank to rank, each waiting for the next, until one comes again or waits for nobody.
    let mut places: Vec<(Place, Place)> = Vec::new();
    let mut rank = first;
    while !places.iter().any(|&((waiting, _), _)| waiting == rank) {
        let at = (rank, next[rank]);
        let unmet = |need: &Need| need.completion().is_some_and(|(other, index)| index >= next[other]);
        let needs = waits.needs(at);
        if let Some(&Need::Nothing(lone)) = needs.iter().find(|need| matches!(need, Need::Nothing(_))) {
            return Err(Stuck { links: vec![link(lists, stages, at, lone)], circle: false });
        }
        let need = needs.into_iter().find(unmet);
        let Some(Need::Completion(place) | Need::Arrival(place)) = need else {
            unreachable!("rank {rank} waits at step {} for what is over", at.1);
        };
        places.push((at, place));
        rank = place.0;
    }
    // Those before the circle wait for it, but are not in it.
    let circle = places.into_iter().skip_while(|&((waiting, _), _)| waiting != rank);
    Err(Stuck { links: circle.map(|(at, place)| link(lists, stages, at, place)).collect(), circle: true })
}

fn link(lists: &[Vec<Step>], stages: &Stages, at: Place, awaited: Place) -> Link {
    let step = |(rank, index): Place| StuckStep {
        rank,
        index,
        step: lists[rank].get(index).copied(),
        text: lists[rank].get(index).map_or("its end".into(), |step| step.describe(rank, stages)),
    };
    Link { waits: step(at), awaits: step(awaited) }
}

/// Why lists do not run to their end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stuck {
    /// The ranks that wait, each for the next and the last for the first; or one that waits for what never comes.
    pub links: Vec<Link>,
    /// Whether they wait in a circle.
    pub circle: bool,
}

/// A rank that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Link {
    /// Where it waits.
    pub waits: StuckStep,
    /// For which step of another rank; or, outside a circle, which of its own steps finds no partner.
    pub awaits: StuckStep,
}

/// A step of a rank, or the end of its list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StuckStep {
    /// The rank.
    pub rank: usize,
    /// The step's index in the rank's list.
    pub index: usize,
    /// The step; `None` is the end of the list.
    pub step: Option<Step>,
    /// The step in words, with its layers.
    pub text: String,
}

impl fmt::Display for StuckStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} at step {} ({})", self.rank, self.index, self.text)
    }
}

impl fmt::Display for Stuck {
    /// Writes a line for each rank of a circle, or what a lone one misses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.circle {
            f.write_str("ranks wait for each other:")?;
            for Link { waits, awaits } in &self.links {
                write!(f, "\n  {waits} waits for {awaits}")?;
            }
            return Ok(());
        }
        for Link { waits, awaits } in &self.links {
            match awaits.step {
                Some(Step::Send { to, .. }) => {
                    write!(f, "{waits} waits for step {} ({}), which rank {to} never takes", awaits.index, awaits.text)?
                }
                Some(Step::Receive { from, .. }) => write!(f, "{waits} waits for what rank {from} never sends")?,
                _ => write!(f, "{waits} waits for the other rank of the tied table, which never comes to it")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Stuck {}
