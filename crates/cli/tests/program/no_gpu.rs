//! The program on PyTorch's own CUDA library, over a CUDA runtime without a GPU: see `tests/no_gpu/runtime.c` of mp-runtime. What devices
//! compute is not there to see; all that the host does for them is: initialisation, shapes, kinds, which side a tensor lies on,
//! the caching allocator's figures and its words when a device is full.
//!
//! The tests pass over machines without that library: see `harness.rs` beside it.

#[path = "../../../runtime/tests/no_gpu/harness.rs"]
mod harness;

use std::path::Path;

use mp_train::metrics;
use mp_train::records::Record;

use self::harness::Harness;
use crate::common::{finish, launcher, program, start, with_sets, Ended, TINY};

/// A machine whose GPUs do nothing.
struct Machine {
    harness: Harness,
    devices: usize,
    /// Bytes of each device.
    bytes: Option<u64>,
    /// Whether freed memory is kept for the next tensor, as libtorch does. Else all that no kernel has written is zero.
    caches: bool,
    /// Whether MPI says that it takes device pointers.
    aware: bool,
}

impl Machine {
    /// Makes one, where there is a library for it.
    fn new() -> Option<Self> {
        let harness = Harness::new()?;
        Some(Self { harness, devices: 1, bytes: None, caches: false, aware: false })
    }

    fn path(&self) -> &Path {
        self.harness.path()
    }

    /// Runs the program with these words, on so many ranks.
    fn run(&self, ranks: usize, words: &[&str]) -> Ended {
        let mut command = if ranks == 1 { program(self.path()) } else { launcher(ranks, self.path()) };
        self.harness.surround(&mut command, self.devices);
        if let Some(bytes) = self.bytes {
            command.env("FAKE_BYTES", bytes.to_string());
        }
        if self.aware {
            command.env("FAKE_AWARE", "1");
        }
        if !self.caches {
            command.env("PYTORCH_NO_CUDA_MEMORY_CACHING", "1");
        }
        finish(start(command.args(words)))
    }

    fn train(&self, ranks: usize, sets: &[&str]) -> Ended {
        self.run(ranks, &with_sets("train", &[TINY, &["train.device=cuda"], sets]))
    }
}

#[test]
fn a_run_goes_through_on_a_device() {
    let Some(machine) = Machine::new() else { return };
    let cases: [&[&str]; 8] = [
        &[],
        // What each position sees is not asked of the device.
        &["train.precision=bf16", "model.architecture=bert"],
        &["train.deterministic=true", "model.architecture=llama", "model.window=4"],
        &["train.precision=bf16", "model.dropout=0.2"],
        &["train.precision=fp64", "train.deterministic=true"],
        &["train.tf32=true", "optimizer.name=sgd"],
        &["train.precision=bf16", "model.architecture=llama", "parallel.recompute=full"],
        &["train.precision=bf16", "train.deterministic=true", "parallel.recompute=selective", "model.dropout=0.1"],
    ];
    for sets in cases {
        let ended = machine.train(1, sets).success();
        assert!(ended.out.contains("device    CUDA device 0"), "{sets:?}: {ended:#?}");
    }
    let words =
        ["generate", "--set", "train.device=cuda", "--prompt", "Once", "--max-new-tokens", "4", "--temperature", "0"];
    let run = std::fs::read_dir(machine.path().join("runs")).unwrap().next().unwrap().unwrap().path();
    let from = format!("model.from={}", run.display());
    machine.run(1, &[&words[..], &["--set", &from]].concat()).success();
}

#[test]
fn products_of_single_precision_are_in_tf32_where_that_is_asked_for() {
    let Some(machine) = Machine::new() else { return };
    for (asked, tf32) in [("true", true), ("false", false)] {
        let ended = machine.train(1, &[&format!("train.tf32={asked}")]).success();
        assert_eq!(ended.err.contains("products in mode 3"), tf32, "{ended:#?}");
    }
}

#[test]
fn ranks_share_a_device() {
    let Some(machine) = Machine::new() else { return };
    let cases: [&[&str]; 6] = [
        &["parallel.dp=2", "parallel.zero=3", "train.precision=bf16"],
        &["parallel.tp=2", "parallel.sequence_parallel=true", "model.dropout=0.1"],
        &["parallel.cp=2", "train.precision=bf16"],
        &["parallel.cp=2", "model.dropout=0.1"],
        &["parallel.cp=2", "parallel.context=all-to-all", "train.precision=fp64"],
        &["parallel.pp=2", "model.layers=2", "parallel.micro_batch=1", "parallel.schedule=zb-h1"],
    ];
    for sets in cases {
        let ended = machine.train(2, sets).success();
        assert!(ended.out.contains("2 ranks share a device, which NCCL refuses"), "{sets:?}: {ended:#?}");
    }
}

#[test]
fn ranks_with_a_device_each_use_no_other() {
    let Some(machine) = Machine::new() else { return };
    let machine = Machine { devices: 2, ..machine };
    let ended = machine.train(2, &["parallel.tp=2", "parallel.transport=staged"]).success();
    assert!(ended.out.contains("a CUDA device for each of 2 ranks"), "{ended:#?}");
    let context = |line: &str| line.strip_prefix("context on device ").and_then(|rest| rest[..1].parse().ok());
    let mut contexts: Vec<usize> = ended.err.lines().filter_map(context).collect();
    contexts.sort_unstable();
    // One each: a context takes half a gigabyte of a device.
    assert_eq!(contexts, [0, 1], "{ended:#?}");
}

#[test]
fn an_nccl_that_does_not_start_is_done_without_or_refused_in_one_message() {
    let Some(machine) = Machine::new() else { return };
    let machine = Machine { devices: 2, ..machine };
    // NVIDIA's own opens, and finds that the driver is none of its.
    let own = machine.harness.torch.join("../nvidia/nccl/lib/libnccl.so.2").exists();
    let why = if own { "NCCL does not start in group world: rank 0: " } else { "NCCL cannot be used: " };
    let ended = machine.train(2, &["parallel.tp=2"]).success();
    let told = format!("a CUDA device for each of 2 ranks; MPI through host memory: {why}");
    assert!(ended.out.contains(&told), "{ended:#?}");
    let ended = machine.train(2, &["parallel.tp=2", "parallel.transport=nccl"]);
    let message = ended.message(2);
    assert!(message.contains(&format!("`parallel.transport` is \"nccl\", but {why}")), "{message}");
    assert!(message.contains("set parallel.transport=mpi"), "{message}");
}

#[test]
fn ranks_hand_device_memory_to_an_mpi_that_takes_it() {
    let Some(machine) = Machine::new() else { return };
    let machine = Machine { aware: true, ..machine };
    for sets in [["parallel.tp=2", "train.precision=bf16"], ["parallel.dp=2", "parallel.zero=2"]] {
        let ended = machine.train(2, &[&sets[..], &["parallel.transport=mpi"]].concat()).success();
        assert!(
            ended.out.contains("MPI on device memory: as asked; MPI takes device pointers"),
            "{sets:?}: {ended:#?}"
        );
    }
}

#[test]
fn a_checkpoint_goes_to_a_device_and_comes_back_as_it_was() {
    let Some(machine) = Machine::new() else { return };
    let leg = |precision: &str, steps: u64, device: &str| {
        let sets = [
            "checkpoint.keep=0",
            &format!("checkpoint.resume={}", steps > 2),
            &format!("train.name={precision}"),
            &format!("train.precision={precision}"),
            &format!("train.steps={steps}"),
            &format!("train.device={device}"),
        ];
        machine.run(1, &with_sets("train", &[TINY, &sets])).success();
    };
    for precision in ["fp32", "bf16", "fp64"] {
        [(2, "cpu"), (4, "cuda"), (6, "cpu")].into_iter().for_each(|(steps, device)| leg(precision, steps, device));
        let checkpoints = machine.path().join("runs").join(precision).join("checkpoints");
        let saved = |step: u64, part: &str| {
            std::fs::read(checkpoints.join(format!("step-{step:08}/{part}-00000.safetensors"))).unwrap()
        };
        for part in ["model", "optimizer"] {
            // Steps of a device whose kernels do nothing change nothing of what it was given.
            assert!(saved(2, part) == saved(4, part), "{part} in {precision} is not what went there");
            assert!(saved(4, part) != saved(6, part), "{part} in {precision} does not go on");
        }
    }
}

#[test]
fn layouts_are_verified_on_a_device() {
    let Some(machine) = Machine::new() else { return };
    let ended = machine.run(1, &with_sets("verify", &[&["train.device=cuda", "train.precision=bf16"]]));
    // Nothing was computed, so that zeros were compared; but compared they were.
    assert_eq!(ended.code, 1, "{ended:#?}");
    let failed = ended.out.lines().filter(|line| line.contains("FAIL")).count();
    let compared = ended.out.lines().filter(|line| line.contains("differs by")).count();
    assert!(failed > 0 && failed == compared, "{ended:#?}");
}

#[test]
fn the_allocators_peak_and_what_it_has_reserved_are_in_the_metrics() {
    let Some(machine) = Machine::new() else { return };
    let machine = Machine { caches: true, ..machine };
    machine.train(1, &["train.name=figures"]).success();
    let metrics = metrics::read(&machine.path().join("runs/figures/metrics.jsonl")).unwrap();
    let steps = metrics.into_iter().filter_map(|record| match record {
        Record::Step(step) => Some((step.memory_bytes, step.memory_reserved_bytes)),
        _ => None,
    });
    let steps: Vec<_> = steps.collect();
    // Values, gradients and AdamW's moments of 12,336 parameters at the least; of the device the allocator takes whole pieces.
    let told =
        |&(peak, reserved): &(u64, Option<u64>)| peak >= 16 * 12_336 && reserved.is_some_and(|held| held >= peak);
    assert!(steps.len() == 2 && steps.iter().all(told), "{steps:?}");
}

#[test]
fn a_full_device_is_told_in_the_allocators_figures() {
    let Some(machine) = Machine::new() else { return };
    let machine = Machine { bytes: Some(60_000_000), caches: true, ..machine };
    let sets = ["model.hidden=256", "model.layers=4", "train.seq=128", "train.global_batch=64"];
    let ended = machine.train(1, &sets);
    let message = ended.message(1);
    assert!(message.contains(" found no memory on CUDA device 0: "), "{message}");
    assert!(message.contains(" of its 57.22 MiB are free, tensors of this process hold "), "{message}");
}

#[test]
fn a_device_without_room_is_told_before_the_first_step() {
    let Some(machine) = Machine::new() else { return };
    let sizes = ["model.hidden=256", "model.layers=4", "train.seq=128"];
    // State for which there is no room is refused before it is asked for.
    let small = Machine { bytes: Some(30_000_000), caches: true, ..machine };
    let ended = small.train(1, &sizes);
    let message = ended.message(2);
    assert!(
        message.contains("weights, gradients and optimizer state take ") && message.contains(" on this device, "),
        "{message}"
    );
    assert!(
        message.contains("; this rank's part of the plan is ") && message.contains(" at its fullest: "),
        "{message}"
    );

    // Room for the state to the byte, and none for what the allocator rounds up.
    let full = Machine { bytes: Some(54_500_000), ..small };
    let ended = full.train(1, &[&sizes[..], &["train.out=.", "train.name=full"]].concat());
    let message = ended.message(1);
    assert!(message.contains(" found no memory on CUDA device 0: "), "{message}");
    assert!(
        message.contains("; this rank's part of the plan is ") && message.contains(" at its fullest: "),
        "{message}"
    );
    assert!(!full.path().join("full/metrics.jsonl").exists(), "{message}");

    // The weights of a run, where there is room for half of them.
    let large = Machine { bytes: None, ..full };
    large.train(1, &[&sizes[..], &["train.out=.", "train.name=run"]].concat()).success();
    let tiny = Machine { bytes: Some(10_000_000), ..large };
    let text = tiny.path().join("text.txt");
    std::fs::write(&text, "Once upon a time there was a text.".repeat(40)).unwrap();
    let path = format!("data.path={}", text.display());
    for (words, batch) in [(&["generate", "--prompt", "Once"][..], "--max-new-tokens"), (&["eval"], "--batch")] {
        let sets = ["--set", "train.device=cuda", "--set", "model.from=run", "--set", &path, batch, "2"];
        let ended = tiny.run(1, &[words, &sets].concat());
        let message = ended.message(1);
        assert!(message.contains(" found no memory on CUDA device 0: "), "{message}");
        assert!(
            message.contains(" of weights in fp32; by the same plan there is room with train.precision=bf16 ("),
            "{message}"
        );
    }
}
