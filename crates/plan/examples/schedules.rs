//! Draws every schedule of eight micro-batches on four ranks, where forward, input gradient and weight gradient of a
//! layer take the same time, with its idle share and the activations that each rank keeps.
//!
//! `cargo run -p mp-plan --example schedules`

use mp_plan::{simulate, Costs, Schedule, ScheduleName, Span, StageCosts, Stages, Step, Timeline};

const RANKS: usize = 4;
const MICRO_BATCHES: usize = 8;
/// Layers of all stages together.
const LAYERS: usize = 8;

fn main() -> mp_plan::Result<()> {
    println!("digits: forward; lower case: input gradient; upper case: weight gradient (a, A: micro-batch 0)");
    println!("a whole backward is its two parts; chunks above the first are underlined\n");
    for name in ScheduleName::ALL {
        let chunks = name.default_chunks();
        let stages =
            Stages::with_layers(RANKS, chunks, name.folding(), &vec![LAYERS / (RANKS * chunks); RANKS * chunks])?;
        let schedule = Schedule::new(name, stages, MICRO_BATCHES, true)?;
        schedule.check()?;
        // One unit of time is one layer's.
        let layers = (LAYERS / (RANKS * chunks)) as f64;
        let cost = StageCosts { forward: layers, backward_input: layers, backward_weight: layers };
        let timeline = simulate(&schedule, &Costs::equal(RANKS * chunks, cost));
        draw(&schedule, &timeline);
    }
    Ok(())
}

fn draw(schedule: &Schedule, timeline: &Timeline) {
    let Timeline { seconds, bubble, ranks } = timeline;
    let chunks = schedule.stages.chunks();
    let word = if chunks == 1 { "chunk" } else { "chunks" };
    println!("{}: {chunks} {word} a rank, {seconds} units of time, bubble {:.1} %", schedule.name, 100.0 * bubble);
    for (rank, spans) in ranks.iter().enumerate() {
        let (work, marks) = lines(spans, *seconds as usize);
        let live = schedule.peak_live(rank);
        println!("  rank {rank} |{work}| {live} live of {chunks}·{MICRO_BATCHES}");
        if chunks > 1 {
            println!("         {}", marks.trim_end());
        }
    }
    println!();
}

/// Writes a rank's computations and below them a mark under those of higher chunks.
fn lines(spans: &[Span], units: usize) -> (String, String) {
    let (mut work, mut marks) = (vec![' '; units], vec![' '; units + 1]);
    for span in spans {
        let Some((chunk, micro_batch)) = span.step.computes() else { continue };
        let (start, end) = (span.start as usize, span.end as usize);
        let middle = (start + end) / 2;
        let letter = |first: u8| char::from(first + micro_batch as u8);
        let letters = match span.step {
            Step::Forward { .. } => [letter(b'0'); 2],
            Step::BackwardInput { .. } => [letter(b'a'); 2],
            Step::BackwardWeight { .. } => [letter(b'A'); 2],
            _ => [letter(b'a'), letter(b'A')],
        };
        work[start..middle].fill(letters[0]);
        work[middle..end].fill(letters[1]);
        if chunk > 0 {
            marks[start + 1..end + 1].fill('¯');
        }
    }
    (work.into_iter().collect(), marks.into_iter().collect())
}

#[test]
fn runs() {
    main().unwrap();
}
