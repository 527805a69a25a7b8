//! How many ranks take from one memory.

use mp_comm::{Buffer, BufferMut, Communicator};
use mp_runtime::{device, Device};

use crate::agree::agree;
use crate::Result;

/// What tells a device apart from all others.
type Number = [u8; 16];

/// Returns how many ranks take from the fullest memory: on the host all of this machine's, on devices those of the one that
/// most ranks have, by the driver's number, for a launcher may show each rank another device as its first. Collective where
/// tensors lie on devices.
///
/// # Errors
/// On all ranks, what the driver refuses on one.
pub(crate) fn ranks_a_memory(world: &dyn Communicator, device: Device) -> Result<usize> {
    let Device::Cuda(index) = device else { return Ok(world.local_size()) };
    let mine: Number = agree(world, device::identity(index).map_err(Into::into))?;
    let mut all = vec![0u8; size_of::<Number>() * world.size()];
    world.all_gather(Buffer::new(&mine), BufferMut::new(&mut all))?;
    Ok(most_alike(all.as_chunks().0))
}

/// Counts the most that are alike.
fn most_alike(all: &[Number]) -> usize {
    all.iter().map(|number| all.iter().filter(|other| *other == number).count()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_device_counts() {
        let [a, b] = [[1; 16], [2; 16]];
        assert_eq!([&[a][..], &[a, b], &[a, a, b], &[b, a, b, b]].map(most_alike), [1, 1, 2, 3]);
    }

    #[test]
    fn ranks_of_a_host_share_its_memory() {
        let counts = mp_comm::threads::run(3, |world| ranks_a_memory(&*world, Device::Cpu));
        assert_eq!(counts, [3; 3]);
    }
}
