//! What is said in words of a run: what was chosen for it, what was predicted wrongly, how it goes on.

use std::path::Path;

use mp_plan::words::{grouped, seconds, size};
use mp_train::ledger::{Bytes, Deviation, Seconds, TimeDeviation};
use mp_train::records::{Choice, Report, Start};

/// Says in one line what the planner has chosen, and why.
pub(super) fn chosen(choice: &Choice) -> String {
    let step = |time: Option<f64>| time.map_or("unknown".into(), seconds);
    let [memory, room] = [choice.memory_bytes, choice.room_bytes].map(|bytes| size(bytes as usize));
    let next =
        choice.next.as_ref().map(|next| format!("; next {}: {}, {}", next.layout, step(next.step_seconds), next.why));
    format!(
        "planner   {}: {} a step, {memory} of {room} a rank on {}{}",
        choice.layout,
        step(choice.step_seconds),
        choice.machine,
        next.unwrap_or_default()
    )
}

/// Says where an interrupted run is saved and how it goes on.
pub(super) fn stopped(report: &Report, saved: Option<&Path>, ranks: usize) -> String {
    // A run that was resumed and stopped at once is saved where it was.
    let place = saved.map(|path| format!(", saved in {}", path.display())).unwrap_or_default();
    let config = report.run_dir.join("config.toml");
    let launcher = if ranks > 1 { format!("mpirun -n {ranks} ") } else { String::new() };
    format!(
        "stopped by a signal after step {}{place}; continue with: {launcher}mp-cli train --config {} --set \
         checkpoint.resume=true",
        report.step,
        config.display()
    )
}

/// Says which memory was predicted wrongly.
pub(super) fn memory_off(deviation: &Deviation) -> String {
    let Deviation { what, predicted_bytes, measured_bytes } = deviation;
    let [predicted, measured] = [predicted_bytes, measured_bytes].map(|&bytes| grouped(bytes as usize));
    let share = share(Bytes::new(Some(*predicted_bytes), Some(*measured_bytes)).error);
    format!("{what}: {predicted} bytes were predicted, {measured} measured{share}; see ledger.json")
}

/// Says which time was predicted worst, and what that makes of the step.
pub(super) fn time_off(deviation: &TimeDeviation) -> String {
    let TimeDeviation { rank, part, seconds, step } = deviation;
    let said = |seconds: &Seconds| {
        let predicted = 1e3 * seconds.predicted_seconds.unwrap_or(0.0);
        let (measured, share) = (1e3 * seconds.measured_seconds, share(seconds.error));
        format!("{predicted:.2} ms were predicted, {measured:.2} measured{share}")
    };
    format!("time of rank {rank}, {part}: {}; of the whole step {}; see ledger.json", said(seconds), said(step))
}

/// Writes by which share a prediction is off. Of nothing it is none.
fn share(error: Option<f64>) -> String {
    error.map(|error| format!(" ({:+.0} %)", 100.0 * error)).unwrap_or_default()
}

/// Says that a run goes on in other numbers, where it does. What is kept of it is converted; a loss may leap a little.
pub(super) fn other_precision(start: &Start) -> String {
    match start.precision_before {
        Some(before) if before != start.precision => format!(
            ", in {} where it was {}: weights and optimizer state are converted, and the loss may leap by the rounding",
            start.precision.name(),
            before.name()
        ),
        _ => String::new(),
    }
}

/// Says of all steps what one more word ends.
pub(super) fn all(steps: u64) -> String {
    match steps {
        1 => "the one step is".into(),
        _ => format!("all {steps} steps are"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use mp_train::config::Precision;

    use super::*;

    #[test]
    fn one_is_no_plural_and_other_numbers_are_spoken_of() {
        assert_eq!([all(1), all(2)], ["the one step is", "all 2 steps are"]);
        let start = |precision_before| Start {
            ranks: 1,
            layout: String::new(),
            adapters: None,
            parameters: 1,
            steps: 1,
            first_step: 2,
            precision: Precision::Bf16,
            precision_before,
            run_dir: PathBuf::new(),
            train_tokens: 1,
            validation_tokens: 1,
        };
        assert_eq!([None, Some(Precision::Bf16)].map(|before| other_precision(&start(before))), ["", ""]);
        assert!(other_precision(&start(Some(Precision::Fp32))).starts_with(", in bf16 where it was fp32: "));
    }

    #[test]
    fn of_nothing_no_share_is_told() {
        let off = |measured_bytes| {
            let what = "memory of rank 1, tables".to_owned();
            memory_off(&Deviation { what, predicted_bytes: 1500, measured_bytes })
        };
        assert_eq!(
            [off(1000), off(0)],
            [
                "memory of rank 1, tables: 1,500 bytes were predicted, 1,000 measured (+50 %); see ledger.json",
                "memory of rank 1, tables: 1,500 bytes were predicted, 0 measured; see ledger.json"
            ]
        );
    }

    #[test]
    fn a_short_step_has_digits() {
        let choice = Choice {
            layout: "tp=2".into(),
            step_seconds: Some(0.0004),
            memory_bytes: 3 << 19,
            room_bytes: 5 << 29,
            machine: "CPU".into(),
            next: None,
        };
        assert_eq!(chosen(&choice), "planner   tp=2: 400.0 µs a step, 1.5 MiB of 2.5 GiB a rank on CPU");
    }
}
