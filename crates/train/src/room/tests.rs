//! A device that says that it is full, though there is none.

use super::*;

const GIB: u64 = 1 << 30;

/// A model of which a layout keeps some MiB a rank.
fn config(sets: &[&str]) -> Config {
    let base = [
        "model.hidden=256",
        "model.layers=4",
        "model.heads=4",
        "model.vocab=512",
        "train.seq=256",
        "train.global_batch=32",
        "parallel.tp=1",
    ];
    Config::load(None, None, &base.iter().chain(sets).map(|set| set.to_string()).collect::<Vec<_>>()).unwrap()
}

fn refused(bytes: u64, total: u64) -> mp_runtime::Error {
    let (free, allocated, idle) = (bytes / 2, Some(total - bytes), Some(bytes / 2));
    mp_runtime::Error::DeviceOutOfMemory { device: 1, bytes, total, free, allocated, idle }
}

/// Explains a refusal on one of `ranks`, and returns what is kept and the way out.
fn explained(config: &Config, ranks: usize, error: Error, sharing: usize) -> (String, String) {
    let layout = Layout::new(config, 512, ranks).unwrap();
    let full = Full { config, layout: &layout, machine: None, sharing, stage: 0 };
    match full.explain(error) {
        Error::DeviceMemory { source, kept, way_out } => {
            assert!(source.to_string().starts_with("a tensor of "), "{source}");
            (kept, way_out)
        }
        other => panic!("{other}"),
    }
}

/// What the fullest rank of a layout keeps.
fn predicted(config: &Config, ranks: usize) -> usize {
    let layout = Layout::new(config, 512, ranks).unwrap();
    let (job, candidate) = layout.planned(config).unwrap();
    let cluster = Cluster::preset("h100").unwrap().with_ranks(ranks);
    let costs = cost::of(&cluster);
    Estimator::new(&job, &cluster, &*costs).estimate(&candidate).unwrap().largest().total()
}

/// Reads the settings of each way out, with its bytes as they are written.
fn ways(way_out: &str) -> Vec<(Vec<&str>, &str)> {
    let list = way_out.strip_prefix("by the same plan there is room with ").unwrap_or_else(|| panic!("{way_out}"));
    list.split(", or with ")
        .map(|way| {
            let (settings, bytes) = way.trim_end_matches(')').split_once(" (").unwrap();
            (settings.split(' ').collect(), bytes)
        })
        .collect()
}

#[test]
fn what_is_kept_is_told_by_component() {
    let config = config(&[]);
    let (kept, _) = explained(&config, 1, refused(1 << 20, 80 * GIB).into(), 1);
    assert!(kept.starts_with(&format!("{} at its fullest: activations ", size(predicted(&config, 1)))), "{kept}");
    for name in ["parameters", "gradients", "master weights", "moments", "tables", "activations", "workspace"] {
        let count = kept.matches(&format!("{name} ")).count();
        // In fp32 the parameters are their own masters.
        assert_eq!(count, usize::from(name != "master weights"), "{name}: {kept}");
    }
}

#[test]
fn every_setting_that_is_named_is_a_layout_with_room() {
    for (ranks, sets, sharing) in [
        (1, &[][..], 1),
        (4, &[], 1),
        (4, &["parallel.zero=1"], 4),
        (4, &["parallel.pp=2", "parallel.micro_batch=4"], 2),
        (4, &["parallel.pp=2", "parallel.schedule=gpipe", "parallel.zero=1"], 1),
        (4, &["model.kv_heads=2", "parallel.tp=2", "train.precision=bf16", "parallel.recompute=selective"], 1),
    ] {
        let present = config(sets);
        let keeps = predicted(&present, ranks);
        let asked = keeps as u64 / 5;
        let (_, way_out) = explained(&present, ranks, refused(asked, 80 * GIB).into(), sharing);
        let ways = ways(&way_out);
        assert!(!ways.is_empty() && ways.len() <= MOST, "{way_out}");
        for (settings, bytes) in ways {
            // The same as the user would write: over what the configuration says.
            let other = config(&[sets, &settings].concat());
            let predicted = predicted(&other, ranks);
            assert!(predicted <= keeps - asked as usize, "{settings:?} of {sets:?}: {predicted} of {keeps}");
            assert_eq!(size(predicted), bytes, "{settings:?} of {sets:?}");
        }
    }
}

#[test]
fn what_fits_nowhere_is_told() {
    let config = config(&[]);
    let (_, way_out) = explained(&config, 2, refused(1 << 20, 8 << 20).into(), 2);
    assert!(
        way_out.starts_with("no layout of 2 ranks keeps less than 3.") && way_out.contains("start more ranks"),
        "{way_out}"
    );
}

#[test]
fn the_message_is_one_line_and_the_run_is_to_blame() {
    let config = config(&[]);
    let layout = Layout::new(&config, 512, 1).unwrap();
    let full = Full { config: &config, layout: &layout, machine: None, sharing: 1, stage: 0 };
    // From a layer, as most of them come.
    let error = full.explain(Error::Model(mp_model::Error::Runtime(refused(2 * GIB, 80 * GIB))));
    let words = error.to_string();
    assert!(words.starts_with("a tensor of 2.00 GiB found no memory on CUDA device 1: "), "{words}");
    assert!(words.contains("; this rank's part of the plan is "), "{words}");
    assert_eq!((words.lines().count(), error.is_input()), (1, false));
    // Others stay as they are.
    let other = full.explain(Error::NotFinite { step: 3, what: "loss" });
    assert!(matches!(other, Error::NotFinite { step: 3, .. }));
}

#[test]
fn what_the_planner_does_not_know_is_told_as_it_came() {
    let config = config(&["lora.rank=2"]);
    let layout = Layout::new(&config, 512, 1).unwrap();
    let full = Full { config: &config, layout: &layout, machine: None, sharing: 1, stage: 0 };
    assert!(matches!(full.explain(refused(GIB, 2 * GIB).into()), Error::Runtime(_)));
}

#[test]
fn a_model_that_is_larger_than_its_device_is_told_so_before_it_is_made() {
    let config = config(&[]);
    let memory = |memory| Error::Memory { memory, rank_bytes: 60 << 20, ranks: 2, free: 100 << 20 };
    let layout = Layout::new(&config, 512, 4).unwrap();
    let full = Full { config: &config, layout: &layout, machine: None, sharing: 2, stage: 0 };
    let error = full.explain(memory("device"));
    let words = error.to_string();
    let begin = "weights, gradients and optimizer state take 120.0 MiB on this device, 60.0 MiB on each of its 2 ranks, and 100.0 \
                 MiB are free; make the model smaller";
    assert!(words.starts_with(begin), "{words}");
    let (_, way_out) = words.split_once("; by the same plan").expect(&words);
    // What half of the device has, less what is left to others.
    let ways = format!("by the same plan{way_out}");
    assert!(!super::tests::ways(&ways).is_empty(), "{words}");
    assert!(error.is_input() && words.lines().count() == 1, "{words}");
    // The planner's counts are of devices.
    assert!(matches!(full.explain(memory("machine")), Error::Memory { .. }));
}

/// Explains a refusal of `bytes` to a model that is used, on one of `ranks`.
fn used(sets: &[&str], ranks: usize, bytes: u64) -> String {
    let config = config(sets);
    let cut = |config: &Config| Layout::new(config, 512, ranks);
    let layout = cut(&config).unwrap();
    let used = Used { config: &config, layout: &layout, sharing: 1, stage: 0 };
    used.explain(refused(bytes, 80 * GIB).into(), cut).to_string()
}

#[test]
fn a_model_that_is_used_is_told_by_its_weights() {
    let elements = Layout::new(&config(&[]), 512, 1).unwrap().partition.local_elements();
    let told = |bytes: usize| size(bytes);
    let words = used(&[], 1, 1 << 20);
    let expected = format!(
        "; this rank's part of the plan is {} of weights in fp32; by the same plan there is room with train.precision=bf16 ({})",
        told(4 * elements),
        told(2 * elements)
    );
    assert!(words.ends_with(&expected), "{words}");
    assert_eq!(words.lines().count(), 1);

    // More than half of it is lacking: neither half precision alone nor two ranks a model would do.
    let words = used(&["parallel.dp=4"], 4, (4 * elements * 12 / 10) as u64);
    let (_, way_out) = words.split_once("; by the same plan").expect(&words);
    let named = ways_of_use(way_out);
    assert!(named.contains(&vec!["parallel.tp=4", "parallel.dp=1"]), "{words}");
    assert!(
        named.iter().all(|way| way != &["train.precision=bf16"] && way != &["parallel.tp=2", "parallel.dp=2"]),
        "{words}"
    );

    let words = used(&["train.precision=bf16"], 1, 1 << 20);
    assert!(
        words.contains("; no layout of 1 rank keeps weights of less than ") && words.ends_with("train.device=cpu)"),
        "{words}"
    );
    // Others stay as they are.
    let config = config(&[]);
    let layout = Layout::new(&config, 512, 1).unwrap();
    let used = Used { config: &config, layout: &layout, sharing: 1, stage: 0 };
    let other = used.explain(Error::Unmeasurable, |config| Layout::new(config, 512, 1));
    assert!(matches!(other, Error::Unmeasurable), "{other}");
    let words = used.explain_pass(refused(GIB, 80 * GIB).into(), 8).to_string();
    assert!(words.ends_with("take less at a time (`--batch`, 8 now), shorten the texts, or cut the model over more ranks (`parallel.tp`)"), "{words}");
    assert!(matches!(used.explain_pass(Error::Unmeasurable, 8), Error::Unmeasurable));
}

fn ways_of_use(way_out: &str) -> Vec<Vec<&str>> {
    let list = way_out.trim_start_matches(" there is room with ");
    list.split(", or with ").map(|way| way.split_once(" (").unwrap().0.split(' ').collect()).collect()
}
