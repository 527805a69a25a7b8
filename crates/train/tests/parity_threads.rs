//! Every layout of 1, 2 and 4 rank-threads against one rank.

mod parity;

use mp_comm::threads;
use parity::Layout;

/// Holds a model of the suite, of `layers` layers where its own two are too few, against one rank under layouts of so many
/// ranks. One test a model, so that they run side by side.
fn hold(name: &str, layers: Option<usize>, ranks: &[usize], layouts: impl Fn(&parity::Model, usize) -> Vec<Layout>) {
    let mut model = parity::models().into_iter().find(|model| model.name == name).unwrap();
    model.config.layers = layers.unwrap_or(model.config.layers);
    let expected = parity::oracle(&model).unwrap();
    let first = &expected[0];
    assert!(first.norm > model.clip_norm && first.loss > 1.0, "clipping takes part: {first:?}");
    for &ranks in ranks {
        for layout in layouts(&model, ranks) {
            let traces = threads::run(ranks, |world| parity::train(&model, layout, world));
            for (rank, trace) in traces.iter().enumerate() {
                if let Err(difference) = parity::compare(trace, &expected) {
                    panic!("{name}, {layout:?}, rank {rank}: {difference}");
                }
            }
        }
    }
}

fn check(name: &str) {
    hold(name, None, &[1, 2, 4], |_, ranks| parity::layouts(ranks));
}

/// Stages: eight layers, so that four ranks can hold two chunks each.
fn check_stages(name: &str) {
    hold(name, Some(8), &[2, 4], |_, ranks| parity::staged_layouts(ranks, 8));
}

/// Parts of sequences, of four layers so that two ranks can hold two chunks each.
fn check_context(name: &str) {
    hold(name, Some(4), &[2, 4], |model, ranks| {
        let kv_heads = if model.config.kv_heads == 0 { 4 } else { model.config.kv_heads };
        parity::context_layouts(ranks, kv_heads, 4)
    });
}

#[test]
fn sequences_of_gpt2_cut_in_parts() {
    check_context("gpt2");
}

#[test]
fn sequences_of_gpt2_with_dropout_cut_in_parts() {
    check_context("gpt2 dropout");
}

#[test]
fn sequences_of_llama_with_grouped_queries_cut_in_parts() {
    check_context("llama dropout");
}

#[test]
fn stages_of_gpt2() {
    check_stages("gpt2");
}

#[test]
fn stages_of_gpt2_with_dropout() {
    check_stages("gpt2 dropout");
}

#[test]
fn stages_of_llama_with_grouped_queries() {
    check_stages("llama grouped");
}

#[test]
fn stages_of_llama_tied() {
    check_stages("llama tied");
}

#[test]
fn gpt2() {
    check("gpt2");
}

#[test]
fn gpt2_untied_with_sgd() {
    check("gpt2 untied");
}

#[test]
fn gpt2_with_dropout() {
    check("gpt2 dropout");
}

#[test]
fn llama_with_grouped_queries() {
    check("llama grouped");
}

#[test]
fn llama_with_one_key_value_head_and_biases() {
    check("llama one kv head, biases");
}

#[test]
fn llama_tied() {
    check("llama tied");
}

#[test]
fn llama_with_dropout() {
    check("llama dropout");
}

/// A mean over micro-batches' or ranks' own means would weigh their tokens differently.
#[test]
fn ignored_targets_spread_unevenly() {
    check("gpt2 with ignored targets");
}

#[test]
fn ignored_targets_over_stages_and_parts_of_sequences() {
    let name = "gpt2 with ignored targets";
    hold(name, Some(4), &[2], |_, ranks| parity::staged_layouts(ranks, 4));
    hold(name, Some(4), &[2], |_, ranks| parity::context_layouts(ranks, 4, 4));
}

/// Examples that share a row must not see each other, under any layout, and their targets are weighted over all ranks.
#[test]
fn packed_examples() {
    check("gpt2 with packed examples");
    check("llama with packed examples");
}

#[test]
fn packed_examples_over_stages_and_parts_of_sequences() {
    for name in ["gpt2 with packed examples", "llama with packed examples"] {
        hold(name, Some(4), &[2], |_, ranks| parity::staged_layouts(ranks, 4));
        hold(name, Some(4), &[2, 4], |_, ranks| parity::context_layouts(ranks, 2, 4));
    }
}

#[test]
fn adapters_of_gpt2() {
    check("gpt2 adapters");
}

#[test]
fn adapters_of_llama_everywhere_with_dropout() {
    check("llama adapters");
}

#[test]
fn stages_of_adapters() {
    hold("gpt2 adapters", Some(8), &[2], |_, ranks| parity::staged_layouts(ranks, 8));
}

#[test]
fn sequences_under_adapters_cut_in_parts() {
    hold("llama adapters", None, &[4], |_, ranks| parity::context_layouts(ranks, 1, 2));
}
