//! What verification is worth: each mistake of the list is caught on rank-threads, and the tensor named that is the first
//! to be wrong. Without the mistake, or where it cannot act, the same layouts pass.

use mp_comm::threads;
use mp_model::faults::{inject, Fault};
use mp_runtime::Device;
use mp_train::verify::{verify, Case, Listener, Outline, Report, Verdict, Which};
use mp_train::Config;
use rstest::rstest;

struct Nobody;

impl Listener for Nobody {
    fn start(&mut self, _outline: &Outline<'_>) {}
    fn begin(&mut self, _case: &Case) {}
    fn end(&mut self, _verdict: &Verdict) {}
}

fn verified(fault: Option<Fault>, sets: &[&str], layouts: &str) -> Report {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    let config = Config::load(None, None, &sets).unwrap();
    let which: Which = layouts.parse().unwrap();
    let _acting = inject(fault);
    threads::run(2, |world| verify(&config, &world, Device::Cpu, &which, &mut Nobody)).remove(0)
}

/// Where a mistake acts, and what is to be said of it.
struct Example {
    fault: Fault,
    sets: &'static [&'static str],
    layout: &'static str,
    /// One that it does not touch.
    unharmed: &'static str,
    /// What differs first.
    quantity: &'static str,
    step: usize,
    tensor: &'static str,
}

/// One for each mistake; the last are the quantity, the step and the tensor.
fn example(fault: Fault) -> Example {
    let at = |sets, layout, unharmed, (quantity, step, tensor)| Example {
        fault,
        sets,
        layout,
        unharmed,
        quantity,
        step,
        tensor,
    };
    let all = ("gradient", 1, "embedding.weight");
    match fault {
        Fault::ScaledByContext => at(&[], "cp2", "tp2", all),
        Fault::ScaledByAccumulation => at(&[], "tp1", "tp1 mb1", all),
        Fault::ScaledByData => at(&[], "dp2", "tp2", all),
        Fault::NormsUnsummed => at(&[], "tp2 sp", "tp2", ("gradient", 1, "layers.0.attention_norm.weight")),
        // The gradients are right; what they are clipped by is not, so the first value to be updated is wrong.
        Fault::NormCountsReplicas => at(&[], "tp2", "pp2", ("clip norm", 1, "embedding.weight")),
        Fault::LayerDropped => at(&["model.layers=6"], "pp2", "tp2", ("error", 1, "layers.2.attention_norm.weight")),
        Fault::SlicesSwapped => at(&[], "tp2", "dp2", ("value", 0, "layers.0.attention.query.weight")),
        Fault::TiedUnsummed => at(&["model.tie_embeddings=true"], "pp2", "tp2", all),
        Fault::SameMask => at(&["model.dropout=0.1"], "dp2", "tp2 sp", all),
        Fault::PaddingCounts => at(&[], "tp2", "dp2", all),
    }
}

#[rstest]
fn a_mistake_is_caught_and_its_tensor_named(
    #[values(
        Fault::ScaledByContext,
        Fault::ScaledByAccumulation,
        Fault::ScaledByData,
        Fault::NormsUnsummed,
        Fault::NormCountsReplicas,
        Fault::LayerDropped,
        Fault::SlicesSwapped,
        Fault::TiedUnsummed,
        Fault::SameMask,
        Fault::PaddingCounts
    )]
    fault: Fault,
) {
    let Example { fault, sets, layout, unharmed, quantity, step, tensor } = example(fault);
    let report = verified(Some(fault), sets, layout);
    let verdict = &report.layouts[0];
    println!("{fault:?} | {layout} | {}", verdict.complaint().unwrap_or_default());
    assert!(!report.pass && !verdict.pass, "{verdict:#?}");
    assert_eq!(verdict.tensor.as_deref(), Some(tensor), "{verdict:#?}");
    let complaint = verdict.complaint().unwrap();
    assert!(complaint.contains(tensor), "{complaint}");
    match &verdict.first {
        Some(first) => assert_eq!((first.quantity, first.step), (quantity, step), "{verdict:#?}"),
        None => assert!(quantity == "error" && verdict.error.is_some(), "{verdict:#?}"),
    }
    assert!(verified(Some(fault), sets, unharmed).pass, "{unharmed} is not touched");
    assert!(verified(None, sets, layout).pass, "{layout} without a mistake");
}
