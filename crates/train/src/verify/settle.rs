//! From what each rank found to one verdict, the same on all.

use std::thread::sleep;
use std::time::{Duration, Instant};

use mp_comm::{BufferMut, Communicator, Rank, ReduceOp};

use super::compare::{Difference, Quantity, LIMIT, NOISE_LIMIT};
use super::report::{First, Verdict, Worst};
use super::Case;
use crate::{Error, Result};

/// How long a rank that failed waits for the others to have failed, or ended, too.
const PATIENCE: Duration = Duration::from_secs(10);
const QUANTITIES: usize = Quantity::ALL.len();
/// Comes after every place.
const NOWHERE: i64 = i64::MAX;

/// What one rank found of a layout.
#[derive(Debug, Clone)]
pub(super) struct Findings {
    /// The largest difference by quantity.
    worst: [f64; QUANTITIES],
    /// The first difference above the limit, and the first of them that is a tensor's: places, which are ordered, with
    /// their differences.
    first: (i64, f64),
    first_tensor: (i64, f64),
    /// The tensor that differs most.
    nearest: (i64, f64),
    /// Squares of noise and of the rounding expected.
    pub noise: [f64; 2],
}

impl Findings {
    /// What a rank finds that does not take part.
    pub fn nothing() -> Self {
        let nowhere = (NOWHERE, 0.0);
        let (first, first_tensor, nearest) = (nowhere, nowhere, nowhere);
        Self { worst: [0.0; QUANTITIES], first, first_tensor, nearest, noise: [0.0; 2] }
    }

    /// Sums up the differences of a model of so many parameters.
    pub fn of(differences: &[Difference], parameters: usize) -> Self {
        let mut found = Self::nothing();
        for difference in differences {
            let worst = &mut found.worst[difference.quantity as usize];
            *worst = worst.max(difference.by);
            let place = (place(difference, parameters), difference.by);
            let tensor = matches!(difference.quantity, Quantity::Gradient | Quantity::Value);
            if tensor && (difference.by > found.nearest.1 || found.nearest.0 == NOWHERE) {
                found.nearest = place;
            }
            if difference.by > LIMIT {
                found.first = if place.0 < found.first.0 { place } else { found.first };
                if tensor {
                    found.first_tensor = if place.0 < found.first_tensor.0 { place } else { found.first_tensor };
                }
            }
        }
        found
    }
}

/// Numbers a difference so that earlier steps come first, then quantities in their order, then parameters in execution
/// order.
fn place(difference: &Difference, parameters: usize) -> i64 {
    let quantity = difference.step * QUANTITIES + difference.quantity as usize;
    (quantity * parameters + difference.parameter) as i64
}

/// Says what a place is of.
fn first(place: i64, by: f64, names: &[String]) -> First {
    let (place, parameters) = (place as usize, names.len());
    let quantity = Quantity::ALL[place / parameters % QUANTITIES];
    let tensor = match quantity {
        Quantity::Gradient | Quantity::Value => Some(names[place % parameters].clone()),
        Quantity::Loss | Quantity::Norm => None,
    };
    First { step: place / parameters / QUANTITIES, quantity: quantity.name(), tensor, by }
}

/// Makes one verdict of all ranks' findings. Collective over the world.
///
/// # Errors
/// This rank's own failure, if the others do not come: they wait for it inside the layout.
pub(super) fn settle(
    world: &dyn Communicator,
    case: &Case,
    names: &[String],
    found: Result<Findings>,
) -> Result<Verdict> {
    let (failing, found) = meet(world, case, found)?;
    let mut verdict = Verdict {
        layout: case.to_string(),
        ranks: case.ranks(),
        configured: false,
        worst: f64::MAX,
        tensor: None,
        pass: false,
        differences: Worst::default(),
        first: None,
        noise: None,
        error: None,
    };
    match (failing, found) {
        (None, Ok(found)) => judge(world, names, &found, &mut verdict)?,
        (failing, found) => {
            let (speaker, own) = (failing.unwrap_or(Rank(0)), found.err().map(|error| error.to_string()));
            let text = tell(world, speaker, own.unwrap_or_default())?;
            verdict.tensor = names.iter().find(|name| text.contains(&format!("`{name}`"))).cloned();
            verdict.error = Some(text);
        }
    }
    Ok(verdict)
}

/// Waits for all ranks; says which failed one speaks. A failure between ranks may be another's echo and speaks last.
fn meet(world: &dyn Communicator, case: &Case, found: Result<Findings>) -> Result<(Option<Rank>, Result<Findings>)> {
    let (rank, size) = (world.rank().0 as i64, world.size() as i64);
    let word = match &found {
        Ok(_) => NOWHERE,
        Err(error) => rank + if is_echo(error) { size } else { 0 },
    };
    let mut request = world.start_all_reduce(vec![word].into(), ReduceOp::Min)?;
    let begun = Instant::now();
    let found = match found {
        Err(error) => loop {
            if request.is_complete()? {
                break Err(error);
            }
            if begun.elapsed() > PATIENCE {
                // What never completes must not be waited for when it is dropped.
                std::mem::forget(request);
                return Err(Error::Layout { layout: case.to_string(), source: Box::new(error) });
            }
            sleep(Duration::from_millis(1));
        },
        found => found,
    };
    let lowest = request.wait()?.to_vec::<i64>()[0];
    Ok(((lowest != NOWHERE).then_some(Rank((lowest % size) as usize)), found))
}

fn is_echo(error: &Error) -> bool {
    match error {
        Error::Comm(_) | Error::Model(mp_model::Error::Comm(_)) => true,
        // An error inside a backward closure comes as text.
        Error::Model(mp_model::Error::Runtime(error)) | Error::Runtime(error) => error.to_string().contains("is gone"),
        _ => false,
    }
}

/// Gives all ranks one rank's text.
fn tell(world: &dyn Communicator, speaker: Rank, text: String) -> Result<String> {
    let mut length = [text.len() as i64];
    world.broadcast(BufferMut::new(&mut length), speaker)?;
    let mut bytes = text.into_bytes();
    bytes.resize(length[0] as usize, 0);
    if !bytes.is_empty() {
        world.broadcast(BufferMut::new(&mut bytes), speaker)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Fills a verdict in from the findings of ranks that all came to the end.
fn judge(world: &dyn Communicator, names: &[String], found: &Findings, verdict: &mut Verdict) -> Result<()> {
    let mut worst = found.worst;
    world.all_reduce(BufferMut::new(&mut worst), ReduceOp::Max)?;
    let mut squares = found.noise;
    world.all_reduce(BufferMut::new(&mut squares), ReduceOp::Sum)?;
    let mut places = [found.first.0, found.first_tensor.0];
    world.all_reduce(BufferMut::new(&mut places), ReduceOp::Min)?;
    let mut amounts = [if found.first.0 == places[0] { found.first.1 } else { 0.0 }, found.nearest.1];
    let own_nearest = amounts[1];
    world.all_reduce(BufferMut::new(&mut amounts), ReduceOp::Max)?;
    let mut nearest = [if own_nearest == amounts[1] { found.nearest.0 } else { NOWHERE }];
    world.all_reduce(BufferMut::new(&mut nearest), ReduceOp::Min)?;

    let named = |place: i64| (place != NOWHERE).then(|| first(place, amounts[0], names));
    verdict.differences = Worst::of(&worst);
    verdict.worst = verdict.differences.all();
    verdict.first = named(places[0]);
    let tensor = match &verdict.first {
        Some(_) => named(places[1]),
        None => named(nearest[0]),
    };
    verdict.tensor = tensor.and_then(|first| first.tensor);
    verdict.noise = (squares[1] > 0.0).then(|| (squares[0] / squares[1]).sqrt());
    verdict.pass = verdict.first.is_none() && verdict.noise.is_none_or(|noise| noise <= NOISE_LIMIT);
    Ok(())
}
