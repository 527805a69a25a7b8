//! Stages: layers over virtual stages by cost or as given, stages over ranks, and what is refused in which words.

use mp_plan::{Architecture, ArchitectureName, Error, Folding, ModelConfig, Stages};
use proptest::prelude::*;

fn model(layers: usize, vocab: usize) -> Architecture {
    Architecture::resolve(&ModelConfig { layers, ..ModelConfig::default() }, vocab, 64).unwrap()
}

/// The FLOPs of a layer and of the head, from the count of whole models.
fn flops(architecture: &Architecture) -> (f64, f64) {
    let of = |layers| Architecture { layers, ..architecture.clone() }.flops_per_token(architecture.max_seq);
    (of(2) - of(1), 2.0 * of(1) - of(2))
}

/// The cost of the dearest stage, the ends' element-wise work left out.
fn dearest(split: &[usize], (layer, head): (f64, f64)) -> f64 {
    let last = split.len() - 1;
    let cost = |(stage, &layers): (usize, &usize)| layers as f64 * layer + if stage == last { head } else { 0.0 };
    split.iter().enumerate().map(cost).fold(0.0, f64::max)
}

/// All ways to cut `layers` in `parts`.
fn splits(layers: usize, parts: usize) -> Vec<Vec<usize>> {
    if parts == 1 {
        return vec![vec![layers]];
    }
    let with =
        |first: usize| splits(layers - first, parts - 1).into_iter().map(move |rest| [vec![first], rest].concat());
    (1..=layers + 1 - parts).flat_map(with).collect()
}

proptest! {
    #[test]
    fn no_cut_has_a_cheaper_dearest_stage(
        count in 1..5_usize, extra in 0..6_usize, vocab in 1..60_000_usize, gpt2 in any::<bool>(),
    ) {
        let name = if gpt2 { ArchitectureName::Gpt2 } else { ArchitectureName::Llama };
        let config = ModelConfig { architecture: name, layers: count + extra, ..ModelConfig::default() };
        let architecture = Architecture::resolve(&config, vocab, 64).unwrap();
        let split = Stages::new(&architecture, architecture.max_seq, count, 1, Folding::Loop, None).unwrap().split();
        let best = splits(count + extra, count)
            .iter()
            .map(|split| dearest(split, flops(&architecture)))
            .fold(f64::INFINITY, f64::min);
        // What `dearest` leaves out is at most 3·d of the embedding and 12·d of the final norm.
        prop_assert!(dearest(&split, flops(&architecture)) <= best + 15.0 * architecture.hidden as f64);
    }

    #[test]
    fn middle_stages_differ_by_one_layer_at_most(pp in 3..9_usize, extra in 0..40_usize, vocab in 1..60_000_usize) {
        let split = Stages::new(&model(pp + extra, vocab), 64, pp, 1, Folding::Loop, None).unwrap().split();
        prop_assert_eq!(split.iter().sum::<usize>(), pp + extra);
        let middle = &split[1..pp - 1];
        prop_assert!(middle.is_sorted());
        prop_assert!(middle[middle.len() - 1] - middle[0] <= 1);
    }

    #[test]
    fn stages_and_places_correspond(pp in 1..7_usize, chunks in 1..5_usize, v in any::<bool>()) {
        let (folding, chunks) = if v { (Folding::V, 2) } else { (Folding::Loop, chunks) };
        let split: Vec<usize> = (1..=pp * chunks).collect();
        let stages = Stages::with_layers(pp, chunks, folding, &split).unwrap();
        let mut end = 0;
        for (stage, &layers) in split.iter().enumerate() {
            prop_assert_eq!(stages.stage_of(stages.rank_of(stage), stages.chunk_of(stage)), stage);
            prop_assert_eq!(stages.layers(stage), end..end + layers);
            end += layers;
            prop_assert_eq!((stages.is_first(stage), stages.is_last(stage)), (stage == 0, stage == pp * chunks - 1));
        }
        let by_rank: usize = (0..pp).flat_map(|rank| stages.rank_layers(rank)).map(|layers| layers.len()).sum();
        prop_assert_eq!((end, by_rank), (stages.total(), stages.total()));
    }
}

#[test]
fn a_v_goes_down_and_up() {
    let stages = Stages::with_layers(3, 2, Folding::V, &[1, 2, 3, 4, 5, 6]).unwrap();
    assert_eq!((0..6).map(|stage| stages.rank_of(stage)).collect::<Vec<_>>(), [0, 1, 2, 2, 1, 0]);
    assert_eq!(stages.rank_layers(1), [1..3, 10..15]);
    assert_eq!(stages.tied_ranks(), None);
    let round = Stages::with_layers(3, 2, Folding::Loop, &[1, 2, 3, 4, 5, 6]).unwrap();
    assert_eq!((0..6).map(|stage| round.rank_of(stage)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
    assert_eq!(round.tied_ranks(), Some((0, 2)));
}

#[test]
fn ends_that_weigh_more_get_fewer_layers() {
    // A vocabulary of bytes weighs little: even, and the odd layer goes to a later stage, but not to the head's.
    assert_eq!(Stages::new(&model(9, 257), 64, 4, 1, Folding::Loop, None).unwrap().split(), [2, 2, 3, 2]);
    // A head that outweighs all layers together still leaves its stage one.
    assert_eq!(Stages::new(&model(10, 200_000), 64, 4, 1, Folding::Loop, None).unwrap().split(), [3, 3, 3, 1]);
}

/// What a layer costs beside the head is what it costs in training: its attention over the sequences that there are, as far
/// as the window reaches.
#[test]
fn layers_are_dealt_out_by_the_sequences_that_are_trained_on() {
    let split = |seq: usize, max_seq: usize, window: usize| {
        let wide = ModelConfig { hidden: 512, layers: 8, max_seq, window, ..ModelConfig::default() };
        let architecture = Architecture::resolve(&wide, 128_256, seq).unwrap();
        Stages::new(&architecture, seq, 2, 1, Folding::Loop, None).unwrap().split()
    };
    // The matrices of a layer cost 19 million FLOPs, those of the head 394, attention over 2,048 tokens 13.
    assert_eq!([split(2048, 2048, 0), split(2048, 131_072, 0)], [[7, 1], [7, 1]]);
    assert_eq!([split(131_072, 131_072, 0), split(32_768, 32_768, 0)], [[4, 4], [5, 3]]);
    assert_eq!([split(32_768, 32_768, 128), split(128, 32_768, 0)], [[7, 1], [7, 1]]);
}

#[test]
fn splits_that_are_none_are_refused() {
    let architecture = model(8, 257);
    let cut = |pp, chunks, folding, split: Option<&[usize]>| {
        Stages::new(&architecture, architecture.max_seq, pp, chunks, folding, split).unwrap_err().to_string()
    };
    let around = Folding::Loop;
    assert_eq!(
        cut(9, 1, around, None),
        "model.layers 8 cannot fill parallel.pp 9 × 1 chunk of a rank; parallel.pp may be at most 8"
    );
    assert_eq!(
        cut(4, 3, around, None),
        "model.layers 8 cannot fill parallel.pp 4 × 3 chunks of a rank; parallel.pp may be at most 2"
    );
    assert_eq!(
        cut(usize::MAX, 9, around, None),
        format!(
            "model.layers 8 cannot fill parallel.pp {} × 9 chunks of a rank; parallel.pp × parallel.chunks may be at most 8",
            usize::MAX
        )
    );
    assert_eq!(cut(2, 1, around, Some(&[5, 4])), "parallel.split [5, 4] sums to 9, and model.layers is 8");
    assert_eq!(
        cut(2, 2, around, Some(&[4, 4])),
        "parallel.split [4, 4] names 2 stages, and parallel.pp 2 × 2 chunks are 4"
    );
    assert_eq!(
        cut(3, 1, around, Some(&[4, 0, 4])),
        "parallel.split [4, 0, 4] leaves stage 1 without layers; each needs at least 1"
    );
    assert_eq!(cut(0, 1, around, None), "parallel.pp is 0, and must be at least 1");
    assert_eq!(cut(2, 0, around, None), "parallel.chunks is 0, and must be at least 1");
    assert_eq!(cut(2, 3, Folding::V, None), "stages in a V are 2 chunks of each rank, down and up again; not 3");
    let overflow = Stages::with_layers(2, 1, around, &[usize::MAX, 1]).unwrap_err();
    assert!(matches!(overflow, Error::TooLarge { what: "layers of all stages", .. }), "{overflow}");
}

#[test]
fn stages_survive_json_and_wrong_ones_do_not() {
    let stages = Stages::new(&model(8, 257), 64, 2, 2, Folding::V, None).unwrap();
    let json = serde_json::to_string(&stages).unwrap();
    assert_eq!(json, r#"{"pp":2,"chunks":2,"folding":"v","layers":[2,2,2,2]}"#);
    assert_eq!(serde_json::from_str::<Stages>(&json).unwrap(), stages);
    for (right, wrong) in [("[2,2,2,2]", "[2,2,2]"), ("[2,2,2,2]", "[2,0,2,4]"), ("\"pp\":2", "\"pp\":0")] {
        assert!(serde_json::from_str::<Stages>(&json.replace(right, wrong)).is_err(), "{wrong}");
    }
}
