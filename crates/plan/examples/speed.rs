//! How long a search takes on one core where there is most to look at: about ten thousand devices and a trillion parameters.
//!
//! ```sh
//! cargo run --release -p mp-plan --example speed
//! ```

use std::time::Instant;

use mp_plan::{published, search, Analytic, Cluster, Executor, Job, Result, Space};

/// What is searched: a preset, devices, dropout, sequences of a step.
type Case = (&'static str, usize, f64, usize);

/// Round numbers and ones with more divisors; with dropout attention keeps its weights, and less fits.
const CASES: [Case; 4] = [
    ("h100", 10_000, 0.0, 10_000),
    ("h100", 10_240, 0.0, 30_720),
    ("a100-80", 10_080, 0.1, 10_080),
    ("a100-80", 10_080, 0.1, 40_320),
];

fn main() -> Result<()> {
    println!(
        "{:<8} {:>7} {:>7} {:>10} {:>10} {:>9} {:>9} {:>11}",
        "device", "devices", "dropout", "sequences", "layouts", "estimated", "wall, s", "one core, s"
    );
    for (preset, ranks, dropout, global_batch) in CASES {
        let job = job(dropout, global_batch)?;
        let cluster = Cluster::preset(preset)?.with_ranks(ranks);
        let costs = Analytic::new(&cluster);
        let (start, before) = (Instant::now(), processor_seconds());
        let found = search(&job, &cluster, &costs, &Space::of(&job, ranks), ranks, 5)?;
        let wall = start.elapsed().as_secs_f64();
        let core = processor_seconds()
            .zip(before)
            .map_or("n/a".to_owned(), |(after, before)| format!("{:.2}", after - before));
        println!(
            "{preset:<8} {ranks:>7} {dropout:>7} {global_batch:>10} {:>10} {:>9} {wall:>9.2} {core:>11}",
            found.considered, found.estimated
        );
    }
    Ok(())
}

/// GPT with a trillion parameters, as Narayanan et al. 2021 trained it, by this engine.
fn job(dropout: f64, global_batch: usize) -> Result<Job> {
    let row = published::rows().into_iter().find(|row| row.billions == 1008.0).expect("the largest row of the paper");
    let mut job = Job { global_batch, executor: Executor::ENGINE, ..row.job()? };
    job.architecture.dropout = dropout;
    Ok(job)
}

/// Returns the seconds that this thread has had a processor; `None` where the system does not say.
fn processor_seconds() -> Option<f64> {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds: f64 = told.split_whitespace().next()?.parse().ok()?;
    Some(nanoseconds / 1e9)
}
