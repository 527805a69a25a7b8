//! Architectures: what defaults resolve to, what is refused, and the names, order and counts of parameters.

use mp_plan::{Architecture, ArchitectureName, AttentionBias, Cut, Error, Init, ModelConfig, RopeScaling};

fn llama() -> ModelConfig {
    ModelConfig::default()
}

fn gpt2() -> ModelConfig {
    ModelConfig { architecture: ArchitectureName::Gpt2, ..ModelConfig::default() }
}

fn bert() -> ModelConfig {
    ModelConfig { architecture: ArchitectureName::Bert, ..ModelConfig::default() }
}

fn resolve(config: &ModelConfig) -> Architecture {
    Architecture::resolve(config, 257, 64).unwrap()
}

fn refusal(config: &ModelConfig) -> Error {
    Architecture::resolve(config, 257, 64).unwrap_err()
}

#[test]
fn defaults_follow_the_family() {
    let llama = resolve(&llama());
    assert_eq!((llama.kv_heads, llama.head_dim, llama.ffn), (4, 32, 352));
    assert_eq!((llama.vocab, llama.max_seq), (257, 64));
    assert_eq!((llama.tie_embeddings, llama.bias), (false, false));
    let gpt2 = resolve(&gpt2());
    assert_eq!((gpt2.ffn, gpt2.tie_embeddings, gpt2.bias), (512, true, true));
}

#[test]
fn what_is_given_is_kept() {
    let config = ModelConfig {
        kv_heads: 2,
        ffn: 100,
        vocab: 300,
        max_seq: 80,
        tie_embeddings: Some(true),
        head_dim: 10,
        bias: Some(true),
        rope_scaling: Some(RopeScaling::Linear { factor: 4.0 }),
        ..llama()
    };
    let architecture = resolve(&config);
    assert_eq!(architecture.to_config(), config);
    assert_eq!(resolve(&architecture.to_config()), architecture);
}

#[test]
fn the_configuration_of_an_architecture_resolves_to_it() {
    for config in [llama(), gpt2(), bert()] {
        let architecture = resolve(&config);
        assert_eq!(Architecture::resolve(&architecture.to_config(), 1, 1).unwrap(), architecture);
    }
}

#[test]
fn architectures_survive_json() {
    let architecture = resolve(&ModelConfig { norm_eps: 1e-6, dropout: 0.1, ..llama() });
    let json = serde_json::to_string(&architecture).unwrap();
    assert_eq!(serde_json::from_str::<Architecture>(&json).unwrap(), architecture);
}

#[test]
fn zero_sizes_are_refused() {
    for (config, what) in [
        (ModelConfig { hidden: 0, ..llama() }, "model.hidden"),
        (ModelConfig { layers: 0, ..llama() }, "model.layers"),
        (ModelConfig { heads: 0, ..llama() }, "model.heads"),
    ] {
        assert_eq!(refusal(&config), Error::Zero { what });
    }
    assert_eq!(Architecture::resolve(&llama(), 0, 64).unwrap_err(), Error::Zero { what: "model.vocab" });
    assert_eq!(Architecture::resolve(&llama(), 257, 0).unwrap_err(), Error::Zero { what: "model.max_seq" });
}

#[test]
fn heads_must_divide() {
    let error = refusal(&ModelConfig { hidden: 12, heads: 5, ..llama() });
    assert_eq!(
        error.to_string(),
        "model.hidden 12 cannot be cut in 5 (model.heads); model.heads may be 1, 2, 3, 4, 6 or 12"
    );
    assert!(Architecture::resolve(&ModelConfig { hidden: 12, heads: 5, head_dim: 4, ..llama() }, 257, 64).is_ok());
    let error = refusal(&ModelConfig { heads: 8, kv_heads: 3, ..llama() });
    assert_eq!(
        error.to_string(),
        "model.heads 8 cannot be cut in 3 (model.kv_heads); model.kv_heads may be 1, 2, 4 or 8"
    );
}

#[test]
fn rotary_positions_need_pairs() {
    let odd = ModelConfig { head_dim: 7, ..llama() };
    assert_eq!(refusal(&odd), Error::OddHeadDim { head_dim: 7 });
    resolve(&ModelConfig { head_dim: 7, ..gpt2() });
    let scaled = ModelConfig { rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }), ..gpt2() };
    assert_eq!(refusal(&scaled), Error::NoRotary);
}

#[test]
fn numbers_out_of_range_are_refused() {
    let linear = |factor| Some(RopeScaling::Linear { factor });
    let llama3 = |low_freq_factor, high_freq_factor| {
        Some(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: 8192,
        })
    };
    for config in [
        ModelConfig { dropout: 1.0, ..llama() },
        ModelConfig { dropout: -0.1, ..llama() },
        ModelConfig { dropout: f64::NAN, ..llama() },
        ModelConfig { norm_eps: 0.0, ..llama() },
        ModelConfig { norm_eps: f64::INFINITY, ..llama() },
        ModelConfig { rope_theta: -1.0, ..llama() },
        ModelConfig { rope_theta: f64::NAN, ..llama() },
        ModelConfig { rope_scaling: linear(0.0), ..llama() },
        ModelConfig { rope_scaling: linear(f64::INFINITY), ..llama() },
        ModelConfig { rope_scaling: llama3(4.0, 4.0), ..llama() },
        ModelConfig { rope_scaling: llama3(0.0, 4.0), ..llama() },
    ] {
        assert!(matches!(refusal(&config), Error::OutOfRange { .. }), "{config:?}");
    }
    let message = refusal(&ModelConfig { dropout: 1.0, ..llama() }).to_string();
    assert_eq!(message, "model.dropout is 1, and must be at least 0 and below 1");
}

#[test]
fn sizes_beyond_counting_are_refused() {
    let most = usize::MAX;
    for config in [
        ModelConfig { hidden: most - most % 4, ..llama() },
        ModelConfig { hidden: most - most % 4, ..gpt2() },
        ModelConfig { ffn: most, ..llama() },
        ModelConfig { head_dim: most - 1, ..llama() },
        ModelConfig { vocab: most, ..llama() },
        ModelConfig { max_seq: most, ..gpt2() },
        ModelConfig { layers: 100_001, ..llama() },
    ] {
        assert!(matches!(refusal(&config), Error::TooLarge { .. }), "{config:?}");
    }
}

#[test]
fn tokenizer_and_training_must_fit_the_model() {
    let small = ModelConfig { vocab: 256, ..llama() };
    assert_eq!(refusal(&small), Error::Vocabulary { vocab: 256, tokenizer: 257 });
    let short = ModelConfig { max_seq: 63, ..llama() };
    assert_eq!(refusal(&short), Error::SequenceTooLong { seq: 64, max_seq: 63 });
}

fn names(architecture: &Architecture) -> Vec<String> {
    architecture.parameters().into_iter().map(|parameter| parameter.name).collect()
}

#[test]
fn gpt2_parameters_come_in_order() {
    let names = names(&resolve(&ModelConfig { layers: 1, ..gpt2() }));
    let expected = [
        "embedding.weight",
        "positions.weight",
        "layers.0.attention_norm.weight",
        "layers.0.attention_norm.bias",
        "layers.0.attention.query.weight",
        "layers.0.attention.key.weight",
        "layers.0.attention.value.weight",
        "layers.0.attention.query.bias",
        "layers.0.attention.key.bias",
        "layers.0.attention.value.bias",
        "layers.0.attention.output.weight",
        "layers.0.attention.output.bias",
        "layers.0.mlp_norm.weight",
        "layers.0.mlp_norm.bias",
        "layers.0.mlp.up.weight",
        "layers.0.mlp.up.bias",
        "layers.0.mlp.down.weight",
        "layers.0.mlp.down.bias",
        "final_norm.weight",
        "final_norm.bias",
    ];
    assert_eq!(names, expected);
}

#[test]
fn llama_parameters_come_in_order() {
    let names = names(&resolve(&ModelConfig { layers: 1, bias: Some(true), ..llama() }));
    let expected = [
        "embedding.weight",
        "layers.0.attention_norm.weight",
        "layers.0.attention.query.weight",
        "layers.0.attention.key.weight",
        "layers.0.attention.value.weight",
        "layers.0.attention.query.bias",
        "layers.0.attention.key.bias",
        "layers.0.attention.value.bias",
        "layers.0.attention.output.weight",
        "layers.0.attention.output.bias",
        "layers.0.mlp_norm.weight",
        "layers.0.mlp.gate.weight",
        "layers.0.mlp.up.weight",
        "layers.0.mlp.gate.bias",
        "layers.0.mlp.up.bias",
        "layers.0.mlp.down.weight",
        "layers.0.mlp.down.bias",
        "final_norm.weight",
        "head.weight",
    ];
    assert_eq!(names, expected);
}

#[test]
fn bert_parameters_come_in_order() {
    let names = names(&resolve(&ModelConfig { layers: 1, next_sentence: true, ..bert() }));
    let expected = [
        "embedding.weight",
        "positions.weight",
        "token_types.weight",
        "embedding_norm.weight",
        "embedding_norm.bias",
        "layers.0.attention.query.weight",
        "layers.0.attention.key.weight",
        "layers.0.attention.value.weight",
        "layers.0.attention.query.bias",
        "layers.0.attention.key.bias",
        "layers.0.attention.value.bias",
        "layers.0.attention.output.weight",
        "layers.0.attention.output.bias",
        "layers.0.attention_norm.weight",
        "layers.0.attention_norm.bias",
        "layers.0.mlp.up.weight",
        "layers.0.mlp.up.bias",
        "layers.0.mlp.down.weight",
        "layers.0.mlp.down.bias",
        "layers.0.mlp_norm.weight",
        "layers.0.mlp_norm.bias",
        "head.dense.weight",
        "head.dense.bias",
        "head.norm.weight",
        "head.norm.bias",
        "head.bias",
        "pooler.weight",
        "pooler.bias",
        "next_sentence.weight",
        "next_sentence.bias",
    ];
    assert_eq!(names, expected);
    let refused = refusal(&ModelConfig { next_sentence: true, ..gpt2() });
    assert_eq!(refused.to_string(), "model.next_sentence is set, and only bert has it");
}

#[test]
fn the_attention_may_have_other_biases_than_the_rest() {
    let biases = |attention_bias: Option<AttentionBias>, bias: bool| {
        let config = ModelConfig { layers: 1, attention_bias, bias: Some(bias), ..llama() };
        let architecture = resolve(&config);
        assert_eq!(Architecture::resolve(&architecture.to_config(), 1, 1).unwrap(), architecture);
        let names = names(&architecture).into_iter().filter(|name| name.ends_with("bias"));
        names.map(|name| name["layers.0.".len()..name.len() - ".bias".len()].to_owned()).collect::<Vec<_>>()
    };
    let (qkv, output) = (["attention.query", "attention.key", "attention.value"], ["attention.output"]);
    let mlp = ["mlp.gate", "mlp.up", "mlp.down"];
    assert_eq!(biases(Some(AttentionBias::Qkv), false), qkv);
    assert_eq!(biases(Some(AttentionBias::All), false), [&qkv[..], &output].concat());
    assert_eq!(biases(Some(AttentionBias::None), true), mlp);
    assert_eq!(biases(None, true), [&qkv[..], &output, &mlp].concat());
    assert_eq!(resolve(&ModelConfig { attention_bias: Some(AttentionBias::All), ..gpt2() }), resolve(&gpt2()));
}

#[test]
fn a_window_bounds_the_attention() {
    let at = |window, seq| resolve(&ModelConfig { window, ..llama() }).flops_per_token(seq);
    assert_eq!(at(16, 64), at(0, 64) - (12 * 4 * 128 * 48) as f64);
    assert_eq!(at(64, 48), at(0, 48));
}

#[test]
fn shapes_are_those_of_torch_storage() {
    let config = ModelConfig { hidden: 24, heads: 4, kv_heads: 2, head_dim: 10, ffn: 36, ..llama() };
    let parameters = resolve(&config).parameters();
    let shape = |name: &str| parameters.iter().find(|parameter| parameter.name == name).unwrap().shape.clone();
    assert_eq!(shape("embedding.weight"), [257, 24]);
    assert_eq!(shape("layers.3.attention.query.weight"), [40, 24]);
    assert_eq!(shape("layers.3.attention.key.weight"), [20, 24]);
    assert_eq!(shape("layers.3.attention.value.weight"), [20, 24]);
    assert_eq!(shape("layers.3.attention.output.weight"), [24, 40]);
    assert_eq!(shape("layers.3.mlp.gate.weight"), [36, 24]);
    assert_eq!(shape("layers.3.mlp.down.weight"), [24, 36]);
    assert_eq!(shape("head.weight"), [257, 24]);
}

#[test]
fn initial_values_decay_and_layers_follow_the_role() {
    let small = Init::Normal { std: 0.02 / 8.0_f64.sqrt() };
    for parameter in resolve(&gpt2()).parameters() {
        let name = parameter.name.as_str();
        let expected = match name {
            _ if name.ends_with(".bias") => Init::Zeros,
            _ if name.contains("norm") => Init::Ones,
            _ if name.ends_with("output.weight") || name.ends_with("down.weight") => small,
            _ => Init::Normal { std: 0.02 },
        };
        assert_eq!(parameter.init, expected, "{name}");
        assert_eq!(parameter.decays, parameter.shape.len() == 2, "{name}");
        assert_eq!(parameter.decays, name.ends_with(".weight") && !name.contains("norm"), "{name}");
        let layer = name.strip_prefix("layers.").map(|rest| rest.split('.').next().unwrap().parse().unwrap());
        assert_eq!(parameter.layer, layer, "{name}");
        assert_eq!(parameter.cut == Cut::Vocabulary, name == "embedding.weight", "{name}");
    }
}

#[test]
fn published_models_count_as_published() {
    // GPT-2 small: 124,439,808 (Radford et al. 2019, as released).
    let gpt2 = ModelConfig { hidden: 768, layers: 12, heads: 12, ..gpt2() };
    assert_eq!(Architecture::resolve(&gpt2, 50_257, 1024).unwrap().parameter_count(), 124_439_808);
    // BERT base, uncased, with both heads: 110,106,428 (Devlin et al. 2019, as released).
    let base = ModelConfig { hidden: 768, layers: 12, heads: 12, next_sentence: true, ..bert() };
    assert_eq!(Architecture::resolve(&base, 30_522, 512).unwrap().parameter_count(), 110_106_428);
    // Llama 2 7B: 6,738,415,616; Llama 3 8B, with grouped queries: 8,030,261,248 (both as released).
    let llama2 = ModelConfig { hidden: 4096, layers: 32, heads: 32, ffn: 11_008, ..llama() };
    assert_eq!(Architecture::resolve(&llama2, 32_000, 4096).unwrap().parameter_count(), 6_738_415_616);
    let llama3 = ModelConfig { kv_heads: 8, ffn: 14_336, ..llama2 };
    assert_eq!(Architecture::resolve(&llama3, 128_256, 8192).unwrap().parameter_count(), 8_030_261_248);
}

#[test]
fn flops_are_six_a_matrix_element_and_the_full_attention_square() {
    for tie_embeddings in [Some(true), Some(false)] {
        for base in [llama(), gpt2()] {
            let config = ModelConfig { kv_heads: 2, tie_embeddings, ..base };
            let architecture = resolve(&config);
            let multiplied =
                |name: &str| name.starts_with("layers.") && name.ends_with("weight") && !name.contains("norm");
            let layers: usize =
                architecture.parameters().iter().filter(|p| multiplied(&p.name)).map(|p| p.elements()).sum();
            let head = 257 * 128;
            let attention = 12 * 4 * 128 * 48;
            assert_eq!(architecture.flops_per_token(48), (6 * (layers + head) + attention) as f64);
        }
    }
}
