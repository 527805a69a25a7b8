//! Options that would change nothing are refused with the way out; what changes something, and what is chosen, is not.

use mp_plan::{
    check_effect, Architecture, ArchitectureName, Degrees, Mesh, ModelConfig, ParallelConfig, Result, Sequences,
};

/// A model of eight query heads on as many key/value heads as are given.
fn model(kv_heads: usize) -> ModelConfig {
    ModelConfig { hidden: 64, heads: 8, kv_heads, ..ModelConfig::default() }
}

fn on(mesh: Degrees, model: &ModelConfig, within_documents: bool, parallel: &str) -> Result<()> {
    let architecture = Architecture::resolve(model, 256, 128).unwrap();
    let config: ParallelConfig = toml::from_str(parallel).unwrap();
    check_effect(&config, &Mesh::new(mesh).unwrap(), &architecture, Sequences { seq: 128, within_documents })
}

const ONE: Degrees = Degrees { pp: 1, dp: 1, cp: 1, tp: 1, ep: 1 };

#[test]
fn options_of_an_axis_need_several_ranks_of_it() {
    for (parallel, axis, enough) in [
        ("schedule = 'gpipe'", "pp", Degrees { pp: 2, ..ONE }),
        ("schedule = 'zb-v'", "pp", Degrees { pp: 2, ..ONE }),
        ("chunks = 2", "pp", Degrees { pp: 2, ..ONE }),
        ("context = 'all-to-all'", "cp", Degrees { cp: 2, ..ONE }),
        ("sequence_parallel = true", "tp", Degrees { tp: 2, ..ONE }),
    ] {
        let (key, value) = parallel.split_once(" = ").unwrap();
        // The axis is missing, whatever else there is.
        let rest = Degrees { pp: 2, dp: 2, cp: 2, tp: 2, ep: 1 };
        let without = match axis {
            "pp" => Degrees { pp: 1, ..rest },
            "cp" => Degrees { cp: 1, ..rest },
            _ => Degrees { tp: 1, ..rest },
        };
        for mesh in [ONE, without] {
            let error = on(mesh, &model(0), false, parallel).unwrap_err().to_string();
            let begin = format!("parallel.{key} {} changes nothing: ", value.trim_matches('\''));
            let end = format!(", and parallel.{axis} is 1; leave it out, or set parallel.{axis} to 2 or more");
            assert!(error.starts_with(&begin) && error.ends_with(&end), "{mesh}: {error}");
        }
        on(enough, &model(0), false, parallel).unwrap();
    }
}

#[test]
fn what_is_chosen_anyway_is_never_refused() {
    for parallel in [
        "",
        "schedule = '1f1b'\nchunks = 1\ncontext = 'ring'\nsequence_parallel = false\nrecompute = 'none'",
        "schedule = 'auto'\nsequence_parallel = 'auto'\nrecompute = 'auto'",
        "recompute = 'full'\nrecompute_every = 2",
    ] {
        on(ONE, &model(0), false, parallel).unwrap();
    }
    let error = on(ONE, &model(0), false, "recompute_every = 2").unwrap_err().to_string();
    assert!(error.contains("set parallel.recompute = \"full\" with it"), "{error}");
}

const SELECTIVE: &str = "recompute = 'selective'";
const EXCHANGED: &str = "recompute = 'selective'\ncontext = 'all-to-all'";

#[test]
fn selective_recompute_needs_weights_or_repeated_heads_to_drop() {
    let dropout = ModelConfig { dropout: 0.1, ..model(0) };
    let (windowed, wide) =
        (ModelConfig { window: 64, ..dropout.clone() }, ModelConfig { window: 128, ..dropout.clone() });
    let bert = ModelConfig { architecture: ArchitectureName::Bert, ..dropout.clone() };
    let tp = |tp| Degrees { tp, ..ONE };
    let cp = |cp| Degrees { cp, ..ONE };
    for (mesh, model, within, parallel, because) in [
        (ONE, &model(0), false, SELECTIVE, "fused attention"),
        (tp(2), &model(0), false, SELECTIVE, "fused attention"),
        (ONE, &dropout, true, SELECTIVE, "data.attend_across = false"),
        (ONE, &windowed, false, SELECTIVE, "window of 64 (model.window)"),
        (ONE, &bert, false, SELECTIVE, "in both directions"),
        (cp(2), &dropout, false, SELECTIVE, "the ring over parallel.cp 2"),
        // Each rank has as many key/value heads as query heads.
        (tp(8), &model(2), false, SELECTIVE, "fused attention"),
        (cp(8), &model(2), false, EXCHANGED, "fused attention"),
        (Degrees { cp: 4, ..tp(2) }, &model(2), false, EXCHANGED, "fused attention"),
    ] {
        let error = on(mesh, model, within, parallel).unwrap_err().to_string();
        assert!(error.starts_with("parallel.recompute selective changes nothing: "), "{error}");
        assert!(error.contains(because) && error.ends_with("; set it to \"none\", or to \"full\""), "{mesh}: {error}");
    }
    for (mesh, model, parallel) in [
        (ONE, &dropout, SELECTIVE),
        (ONE, &wide, SELECTIVE),
        (tp(8), &dropout, SELECTIVE),
        (cp(8), &dropout, EXCHANGED),
        (ONE, &model(2), SELECTIVE),
        (tp(4), &model(2), SELECTIVE),
        (cp(4), &model(2), EXCHANGED),
        (Degrees { cp: 2, ..tp(2) }, &model(2), EXCHANGED),
    ] {
        on(mesh, model, false, parallel).unwrap();
    }
}

#[test]
fn every_how_many_th_layer_is_one_that_there_is() {
    let layers = model(4).layers;
    let every = |every: usize| {
        let text = format!("recompute = 'full'\nrecompute_every = {every}");
        on(Degrees::default(), &model(4), false, &text)
    };
    every(layers).unwrap();
    let error = every(layers + 1).unwrap_err().to_string();
    let head = format!("parallel.recompute_every {} changes nothing: of {layers} layers", layers + 1);
    assert!(error.starts_with(&head) && error.ends_with(&format!("set it to {layers} or less")), "{error}");
}
