//! Four ranks as threads of one process estimate π together: `cargo run -p mp-comm --example threads`.

use mp_comm::{threads, BufferMut, Error, ReduceOp};

const STRIPS: usize = 1_000_000;

fn main() {
    let estimates = threads::run(4, |comm| {
        // Each rank integrates 4 / (1 + x²) over every fourth strip of [0, 1].
        let width = 1.0 / STRIPS as f64;
        let mine = (comm.rank().0..STRIPS).step_by(comm.size());
        let mut area = [mine.map(|i| 4.0 * width / (1.0 + ((i as f64 + 0.5) * width).powi(2))).sum::<f64>()];
        comm.all_reduce(BufferMut::new(&mut area), ReduceOp::Sum)?;
        Ok::<_, Error>(area[0])
    });
    for (rank, estimate) in estimates.iter().enumerate() {
        println!("rank {rank}: pi is about {estimate:.12}");
    }
}
