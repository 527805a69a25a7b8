//! What waits for what in the step lists of a pipeline: a graph of all steps, and an order in which they complete.
//!
//! [`crate::deadlock`] asks whether there is such an order, [`mod@crate::simulate`] when each step of it is over.

use std::collections::HashMap;

use crate::{Stages, Step};

/// A step of a rank; one past the last is the list's end.
pub(crate) type Place = (usize, usize);

/// All steps, with every message's send and receive brought together.
pub(crate) struct Waits<'a> {
    lists: &'a [Vec<Step>],
    /// By rank and step: a message's other side, or the same sum on the other rank.
    partners: Vec<Vec<Option<Place>>>,
    /// The ranks of [`Step::SumTied`].
    tied: Option<(usize, usize)>,
}

/// What the completion of a step waits for, beside the step before it.
pub(crate) enum Need {
    /// The completion of another rank's step.
    Completion(Place),
    /// That another rank comes to a step.
    Arrival(Place),
    /// What no list has: the partner of this step.
    Nothing(Place),
}

impl<'a> Waits<'a> {
    /// Brings the k-th send of a channel between two ranks together with the k-th receive, and the k-th sum of tied
    /// gradients of one rank with that of the other.
    pub fn new(lists: &'a [Vec<Step>], stages: &Stages) -> Self {
        let tied = stages.tied_ranks();
        let mut waits = Self { lists, partners: lists.iter().map(|list| vec![None; list.len()]).collect(), tied };
        let mut meetings: HashMap<Meeting, [Vec<Place>; 2]> = HashMap::new();
        for (rank, list) in lists.iter().enumerate() {
            for (index, step) in list.iter().enumerate() {
                if let Some((meeting, side)) = waits.meeting(rank, step) {
                    meetings.entry(meeting).or_default()[side].push((rank, index));
                }
            }
        }
        for [one, other] in meetings.into_values() {
            for (a, b) in one.into_iter().zip(other) {
                waits.partners[a.0][a.1] = Some(b);
                waits.partners[b.0][b.1] = Some(a);
            }
        }
        waits
    }

    /// Returns where a step meets another, and on which side of it this rank stands.
    fn meeting(&self, rank: usize, step: &Step) -> Option<(Meeting, usize)> {
        match (*step, self.tied) {
            (Step::Send { to, .. }, _) => Some((Meeting::Channel(rank, to, step.channel()), 0)),
            (Step::Receive { from, .. }, _) => Some((Meeting::Channel(from, rank, step.channel()), 1)),
            (Step::SumTied, Some((first, _))) if rank == first => Some((Meeting::Tied, 0)),
            (Step::SumTied, Some((_, last))) if rank == last => Some((Meeting::Tied, 1)),
            _ => None,
        }
    }

    /// Returns the other side of a message or sum.
    pub fn partner(&self, (rank, index): Place) -> Option<Place> {
        self.partners[rank][index]
    }

    /// Lists what a step, or the end of a list, waits for.
    pub fn needs(&self, (rank, index): Place) -> Vec<Need> {
        let list = &self.lists[rank];
        let partner = || self.partner((rank, index));
        match list.get(index) {
            Some(Step::Receive { .. }) => vec![partner().map_or(Need::Nothing((rank, index)), Need::Completion)],
            Some(step @ Step::SumTied) if self.meeting(rank, step).is_some() => {
                vec![partner().map_or(Need::Nothing((rank, index)), Need::Arrival)]
            }
            Some(Step::Reduce) | None => self.takers(rank, index),
            _ => Vec::new(),
        }
    }

    /// Lists the receives of the sends that a rank waits for at a step.
    fn takers(&self, rank: usize, index: usize) -> Vec<Need> {
        let list = &self.lists[rank][..index];
        // Those before an earlier wait are over.
        let start = list.iter().rposition(|step| *step == Step::Reduce).map_or(0, |reduce| reduce + 1);
        let is_send = |&at: &usize| matches!(list[at], Step::Send { .. });
        let taker = |at| self.partner((rank, at)).map_or(Need::Nothing((rank, at)), Need::Completion);
        (start..index).filter(is_send).map(taker).collect()
    }

    /// Orders all steps and ends so that each comes after what it waits for, as far as that goes.
    pub fn order(&self) -> Completion {
        let (mut open, mut followers) = self.edges();
        let mut ready: Vec<Place> =
            (0..self.lists.len()).filter(|&rank| open[rank][0] == 0).map(|rank| (rank, 0)).collect();
        let mut done = Completion { order: Vec::new(), next: vec![0; self.lists.len()] };
        while let Some((rank, index)) = ready.pop() {
            done.order.push((rank, index));
            done.next[rank] = index + 1;
            let after = (index < self.lists[rank].len()).then_some((rank, index + 1));
            for place in followers.remove(&(rank, index)).into_iter().flatten().chain(after) {
                let open = &mut open[place.0][place.1];
                *open -= 1;
                if *open == 0 {
                    ready.push(place);
                }
            }
        }
        done
    }

    /// Counts for each step and end what it waits for, and lists for each what waits for it on other ranks.
    fn edges(&self) -> (Vec<Vec<usize>>, HashMap<Place, Vec<Place>>) {
        let mut followers: HashMap<Place, Vec<Place>> = HashMap::new();
        let mut count = |place: Place| {
            // The step before.
            let mut open = usize::from(place.1 > 0);
            for need in self.needs(place) {
                match need.completion() {
                    Some(awaited) => followers.entry(awaited).or_default().push(place),
                    // A rank always comes to its first step.
                    None if matches!(need, Need::Arrival(_)) => continue,
                    // Waits for ever.
                    None => {}
                }
                open += 1;
            }
            open
        };
        let open = (0..self.lists.len())
            .map(|rank| (0..=self.lists[rank].len()).map(|index| count((rank, index))).collect())
            .collect();
        (open, followers)
    }
}

impl Need {
    /// Returns the step whose completion fulfils the need.
    pub fn completion(&self) -> Option<Place> {
        match *self {
            Need::Completion(place) => Some(place),
            // A rank comes to a step when it has completed the one before.
            Need::Arrival((rank, index)) => index.checked_sub(1).map(|before| (rank, before)),
            Need::Nothing(_) => None,
        }
    }
}

/// How far lists run.
pub(crate) struct Completion {
    /// The steps that complete, each after what it waits for.
    pub order: Vec<Place>,
    /// By rank the first step that does not; past the end if all do.
    pub next: Vec<usize>,
}

/// Where two steps meet.
#[derive(PartialEq, Eq, Hash)]
enum Meeting {
    /// Sender, receiver, channel.
    Channel(usize, usize, Option<usize>),
    /// The two ranks of a tied table.
    Tied,
}
