//! Which ranks are on which node: equal blocks of consecutive ones, or nothing is measured.
//!
//! Groups and pairs are cut by rank, as layouts cut theirs, and by that are in one node or in several. Where ranks are
//! dealt out otherwise, what is measured of one would be written down as the other.

use mp_comm::{Buffer, BufferMut, Communicator, Rank};

use crate::agree::agree;
use crate::{Error, Result};

/// Returns how many ranks are on each node, the same on all ranks.
///
/// # Errors
/// On all ranks, an input error where nodes have not equally many, or not consecutive ones.
pub(super) fn devices(world: &dyn Communicator) -> Result<usize> {
    let own = [world.local_rank().0 as i64, world.local_size() as i64];
    let mut all = vec![0i64; 2 * world.size()];
    world.all_gather(Buffer::new(&own), BufferMut::new(&mut all))?;
    let places: Vec<[usize; 2]> = all.chunks_exact(2).map(|place| [place[0] as usize, place[1] as usize]).collect();
    agree(world, if world.rank() == Rank(0) { check(&places) } else { Ok(()) })?;
    Ok(places[0][1])
}

/// Checks places of all ranks: each one's number on its node, and how many that has.
fn check(places: &[[usize; 2]]) -> Result<()> {
    let devices = places[0][1];
    // Blocks are consecutive if and only if each rank has as many before it on its node as its number says.
    let block = |(rank, &[local, size]): (usize, &[usize; 2])| size == devices && local == rank % devices;
    if places.iter().enumerate().all(block) {
        return Ok(());
    }
    let mut nodes: Vec<usize> = places.iter().filter(|place| place[0] == 0).map(|place| place[1]).collect();
    nodes.sort_unstable();
    let counts = nodes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    Err(Error::Nodes { counts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp_comm::threads;

    #[test]
    fn equal_blocks_of_consecutive_ranks_are_nodes_and_nothing_else_is() {
        let checked = |places: &[[usize; 2]]| check(places).map_err(|error| error.to_string());
        assert_eq!(checked(&[[0, 1]]), Ok(()));
        assert_eq!(checked(&[[0, 2], [1, 2], [0, 2], [1, 2]]), Ok(()));
        let uneven = checked(&[[0, 3], [1, 3], [2, 3], [0, 2], [1, 2]]).unwrap_err();
        assert!(uneven.starts_with("a machine is measured with as many ranks on each node, consecutive ones, and there are 2, 3 on a node;"), "{uneven}");
        // By node: 0 and 2 here, 1 and 3 there.
        let dealt = checked(&[[0, 2], [0, 2], [1, 2], [1, 2]]).unwrap_err();
        assert!(dealt.contains("and there are 2, 2 on a node; ") && dealt.contains("`--map-by slot`"), "{dealt}");
        assert!(check(&[[0, 2], [1, 2], [0, 1]]).unwrap_err().is_input());
    }

    #[test]
    fn ranks_of_one_process_are_one_node() {
        assert_eq!(threads::run(3, |world| devices(&*world)), [3; 3]);
    }
}
