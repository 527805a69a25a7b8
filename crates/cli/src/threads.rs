//! A rank's share of the cores.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::thread::available_parallelism;

use mp_comm::{Buffer, BufferMut, Communicator};

/// Returns how many threads this rank should compute with: the cores that it may use, divided by the ranks that may use
/// the very same ones.
///
/// # Communication
/// One all-gather of one integer.
///
/// # Errors
/// What the communicator refuses.
pub fn share(world: &dyn Communicator) -> mp_comm::Result<usize> {
    let mine = [place()];
    let mut all = vec![0i64; world.size()];
    world.all_gather(Buffer::new(&mine), BufferMut::new(&mut all))?;
    let sharers = all.iter().filter(|&&place| place == mine[0]).count();
    Ok((cores() / sharers.max(1)).max(1))
}

/// Has this rank compute with so many threads; 0: with its share.
///
/// # Communication
/// That of [`share`].
///
/// # Errors
/// What the communicator refuses.
pub fn prepare(world: &dyn Communicator, threads: usize) -> mp_comm::Result<()> {
    let shared = share(world)?;
    mp_runtime::device::prepare(if threads > 0 { threads } else { shared });
    Ok(())
}

/// Returns the cores that this process may use, by affinity and by the container's limit.
pub fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Refuses more threads than the machine has processors: they would only wait for each other.
///
/// # Errors
/// An input error that names the processors.
pub fn check(threads: usize) -> mp_train::Result<()> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count().max(cores());
    if threads <= processors {
        return Ok(());
    }
    let rule = format!("this machine has {processors} processors; set it to at most that, or to 0 for a rank's share");
    Err(mp_train::Error::Config { key: "train.threads", value: threads.to_string(), rule })
}

/// Digests where this process runs: the host, and the cores of it that the launcher bound the process to.
fn place() -> i64 {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let bound = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    (read("/proc/sys/kernel/hostname"), bound).hash(&mut hasher);
    hasher.finish() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_threads_than_processors_are_refused() {
        check(0).unwrap();
        check(cores()).unwrap();
        let error = check(1_000_000).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("processors"), "{error}");
    }

    #[test]
    fn ranks_of_one_process_share_its_cores() {
        let shares = mp_comm::threads::run(4, |world| share(&*world));
        assert!(shares.iter().all(|&share| share == (cores() / 4).max(1)), "{shares:?}");
    }
}
