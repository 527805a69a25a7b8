//! A reference interpreter of step lists, as plain as can be: all ranks in rounds, each doing one step if it can, until
//! none moves. Numbers are symbols that remember how they were made, so what was computed can be compared.

use std::collections::{hash_map::DefaultHasher, HashMap, VecDeque};
use std::hash::{Hash, Hasher};

use mp_plan::{Payload, Stages, Step};

/// A number that remembers how it was made; `None` where something was used that was not there.
type Symbol = Option<u64>;

/// What lists came to.
pub struct Run {
    /// By rank, the index of the step it did not get beyond; one past the last is the wait at the end.
    pub stuck: Vec<Option<usize>>,
    /// What was computed.
    pub outcome: Vec<Outcome>,
}

impl Run {
    pub fn hangs(&self) -> bool {
        self.stuck.iter().any(Option::is_some)
    }
}

/// All that a rank's lists make of parameters and losses: per stage, the order of what is added up; then the closing
/// events, each with all that was done before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    forwards: HashMap<usize, Vec<(usize, Symbol)>>,
    inputs: HashMap<usize, Vec<(usize, Symbol)>>,
    weights: HashMap<usize, Vec<(usize, Symbol)>>,
    closing: Vec<(Step, u64)>,
}

#[derive(Default)]
struct Rank {
    next: usize,
    over: bool,
    /// Sends that nobody has taken.
    under_way: usize,
    messages: usize,
    held: HashMap<(Payload, usize, usize), u64>,
    saved: HashMap<(usize, usize), u64>,
    pending: HashMap<(usize, usize), Symbol>,
    outcome: Outcome,
}

/// Runs lists to their end, or to where they hang.
pub fn run(lists: &[Vec<Step>], stages: &Stages) -> Run {
    let mut ranks: Vec<Rank> = lists.iter().map(|_| Rank::default()).collect();
    let mut channels: HashMap<(usize, usize, Payload, usize), VecDeque<Symbol>> = HashMap::new();
    loop {
        let mut moved = false;
        for rank in 0..lists.len() {
            moved |= advance(rank, lists, stages, &mut ranks, &mut channels);
        }
        if !moved {
            break;
        }
    }
    Run {
        stuck: ranks.iter().map(|rank| (!rank.over).then_some(rank.next)).collect(),
        outcome: ranks.into_iter().map(|rank| rank.outcome).collect(),
    }
}

fn advance(
    rank: usize,
    lists: &[Vec<Step>],
    stages: &Stages,
    ranks: &mut [Rank],
    channels: &mut HashMap<(usize, usize, Payload, usize), VecDeque<Symbol>>,
) -> bool {
    if ranks[rank].over {
        return false;
    }
    let Some(&step) = lists[rank].get(ranks[rank].next) else {
        ranks[rank].over = ranks[rank].under_way == 0;
        return ranks[rank].over;
    };
    match step {
        Step::Send { payload, stage, micro_batch, to } => {
            let value = ranks[rank].held.get(&(payload, stage, micro_batch)).copied();
            channels.entry((rank, to, payload, stage)).or_default().push_back(value);
            ranks[rank].under_way += 1;
            ranks[rank].messages += 1;
        }
        Step::Receive { payload, stage, micro_batch, from } => {
            let Some(value) = channels.entry((from, rank, payload, stage)).or_default().pop_front() else {
                return false;
            };
            ranks[from].under_way -= 1;
            ranks[rank].messages += 1;
            if let Some(value) = value {
                ranks[rank].held.insert((payload, stage, micro_batch), value);
            }
        }
        Step::SumTied => return sum_tied(rank, lists, stages, ranks),
        Step::Reduce if ranks[rank].under_way > 0 => return false,
        Step::Reduce | Step::Update => {
            let Rank { outcome, messages, .. } = &ranks[rank];
            let done =
                symbol(&(sorted(&outcome.weights), sorted(&outcome.inputs), sorted(&outcome.forwards), messages));
            let done = symbol(&(done, outcome.closing.len()));
            ranks[rank].outcome.closing.push((step, done));
        }
        _ => compute(&mut ranks[rank], rank, stages, step),
    }
    ranks[rank].next += 1;
    true
}

/// Sums over the first and the last stage's ranks, when both have come to it.
fn sum_tied(rank: usize, lists: &[Vec<Step>], stages: &Stages, ranks: &mut [Rank]) -> bool {
    let ends = [0, stages.count() - 1];
    let pair = ends.map(|stage| stages.rank_of(stage));
    let here = |rank: usize, ranks: &[Rank]| lists[rank].get(ranks[rank].next) == Some(&Step::SumTied);
    let members = if pair[0] != pair[1] && pair.contains(&rank) { pair.to_vec() } else { vec![rank] };
    if !members.iter().all(|&member| here(member, ranks)) {
        return false;
    }
    let gradients: Vec<_> =
        members.iter().map(|&member| ends.map(|stage| ranks[member].outcome.weights.get(&stage).cloned())).collect();
    for member in members {
        ranks[member].outcome.closing.push((Step::SumTied, symbol(&gradients)));
        ranks[member].next += 1;
    }
    true
}

fn compute(state: &mut Rank, rank: usize, stages: &Stages, step: Step) {
    let (chunk, micro_batch) = step.computes().unwrap();
    let stage = stages.stage_of(rank, chunk);
    let last = stage + 1 == stages.count();
    let held = |payload, stage| state.held.get(&(payload, stage, micro_batch)).copied();
    match step {
        Step::Forward { .. } => {
            let input =
                if stage == 0 { Some(symbol(&("tokens", micro_batch))) } else { held(Payload::Activation, stage - 1) };
            let output = input.map(|input| symbol(&("forward", stage, input)));
            if let Some(output) = output {
                state.held.insert((Payload::Activation, stage, micro_batch), output);
                state.saved.insert((stage, micro_batch), output);
            }
            state.outcome.forwards.entry(stage).or_default().push((micro_batch, output));
        }
        Step::Backward { .. } | Step::BackwardInput { .. } => {
            let saved = state.saved.get(&(stage, micro_batch)).copied();
            let given = if last { Some(0) } else { held(Payload::Gradient, stage + 1) };
            let gradient = saved.zip(given).map(|both| symbol(&("backward", stage, both)));
            if let Some(gradient) = gradient {
                state.held.insert((Payload::Gradient, stage, micro_batch), gradient);
            }
            state.outcome.inputs.entry(stage).or_default().push((micro_batch, gradient));
            if matches!(step, Step::Backward { .. }) {
                state.outcome.weights.entry(stage).or_default().push((micro_batch, gradient));
            } else {
                state.pending.insert((stage, micro_batch), gradient);
            }
        }
        _ => {
            let gradient = state.pending.get(&(stage, micro_batch)).copied().flatten();
            state.outcome.weights.entry(stage).or_default().push((micro_batch, gradient));
        }
    }
}

fn sorted(by_stage: &HashMap<usize, Vec<(usize, Symbol)>>) -> Vec<(&usize, &Vec<(usize, Symbol)>)> {
    let mut all: Vec<_> = by_stage.iter().collect();
    all.sort();
    all
}

fn symbol(made_of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    made_of.hash(&mut hasher);
    hasher.finish()
}
