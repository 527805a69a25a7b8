//! What `config.json` says, and where parameters lie among published tensors.

use mp_model::huggingface::{config, Description, Family, Inventory, Published, Refusal};
use mp_plan::{Architecture, RopeScaling};
use rstest::rstest;
use serde_json::{json, Value};

fn gpt2() -> Value {
    json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 12, "n_layer": 2, "n_head": 3,
        "n_positions": 16, "n_ctx": 16, "n_inner": null, "vocab_size": 37, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attn_pdrop": 0.0, "activation_function": "gelu_new", "transformers_version": "4.0.0",
    })
}

fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 3, "intermediate_size": 20, "vocab_size": 37, "max_position_embeddings": 16,
        "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 4.0},
    })
}

fn mistral() -> Value {
    let mut json = llama();
    json["model_type"] = json!("mistral");
    json["sliding_window"] = json!(5);
    json["rope_scaling"] = Value::Null;
    json
}

fn qwen2() -> Value {
    let mut json = llama();
    json["model_type"] = json!("qwen2");
    json["use_sliding_window"] = json!(false);
    json["sliding_window"] = json!(5);
    json["max_window_layers"] = json!(1);
    json["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    });
    json
}

fn bert() -> Value {
    json!({
        "model_type": "bert", "architectures": ["BertForPreTraining"], "hidden_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 3, "intermediate_size": 20, "vocab_size": 37, "max_position_embeddings": 16,
        "type_vocab_size": 3, "layer_norm_eps": 1e-12, "position_embedding_type": "absolute", "pad_token_id": 0,
    })
}

fn of(model: &str) -> Value {
    match model {
        "bert" => bert(),
        "mistral" => mistral(),
        "qwen2" => qwen2(),
        "gpt2" => gpt2(),
        "llama" => llama(),
        other => panic!("{other}"),
    }
}

fn read(json: &Value) -> Architecture {
    Description::read(json).unwrap().architecture
}

#[test]
fn keys_become_an_architecture() {
    let model = read(&gpt2());
    assert_eq!((model.hidden, model.heads, model.ffn, model.max_seq, model.vocab), (12, 3, 48, 16, 37));
    assert!(model.tie_embeddings && model.bias);
    let model = read(&llama());
    assert_eq!((model.kv_heads, model.head_dim, model.ffn, model.norm_eps), (3, 2, 20, 1e-6));
    assert_eq!((model.rope_theta, model.rope_scaling), (500000.0, Some(RopeScaling::Linear { factor: 4.0 })));
    assert!(!model.tie_embeddings && !model.bias);
}

#[test]
fn windows_are_those_of_transformers() {
    let window = |json: &Value| Description::read(json).map(|read| read.architecture.window);
    let set = |json: &Value, key: &str, value: Value| {
        let mut json = json.clone();
        json[key] = value;
        json
    };
    assert_eq!(window(&mistral()), Ok(Some(5)));
    assert_eq!(window(&set(&mistral(), "sliding_window", Value::Null)), Ok(None));
    let mut silent = mistral();
    silent.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(window(&silent), Ok(Some(4096)));
    assert_eq!(window(&qwen2()), Ok(None));
    // The second of two layers alone.
    let second = set(&qwen2(), "use_sliding_window", json!(true));
    assert!(window(&second).unwrap_err().to_string().contains("`max_window_layers` = 1"));
    assert_eq!(window(&set(&second, "max_window_layers", json!(0))), Ok(Some(5)));
    assert_eq!(window(&set(&second, "max_window_layers", json!(2))), Ok(None));
    assert_eq!(window(&set(&second, "layer_types", json!(["sliding_attention", "sliding_attention"]))), Ok(Some(5)));
}

#[test]
fn biases_are_those_of_transformers() {
    use mp_plan::AttentionBias;
    let read = |attention: bool, mlp: bool| {
        let mut json = llama();
        (json["attention_bias"], json["mlp_bias"]) = (json!(attention), json!(mlp));
        let architecture = Description::read(&json).unwrap().architecture;
        (architecture.attention_biases(), architecture.bias)
    };
    assert_eq!(read(false, false), (AttentionBias::None, false));
    assert_eq!(read(true, false), (AttentionBias::All, false));
    assert_eq!(read(false, true), (AttentionBias::None, true));
    assert_eq!(read(true, true), (AttentionBias::All, true));
    let qwen2 = Description::read(&qwen2()).unwrap().architecture;
    assert_eq!((qwen2.attention_biases(), qwen2.bias), (AttentionBias::Qkv, false));
}

#[test]
fn both_forms_of_the_rotary_keys_say_the_same() {
    let mut new = llama();
    for key in ["rope_theta", "rope_scaling"] {
        new.as_object_mut().unwrap().remove(key);
    }
    new["rope_parameters"] = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0});
    assert_eq!(read(&new), read(&llama()));
}

#[rstest]
#[case("gpt2", "activation_function", json!("relu"))]
#[case("gpt2", "activation_function", json!("gelu"))]
#[case("gpt2", "scale_attn_by_inverse_layer_idx", json!(true))]
#[case("gpt2", "scale_attn_weights", json!(false))]
#[case("gpt2", "reorder_and_upcast_attn", json!(true))]
#[case("gpt2", "add_cross_attention", json!(true))]
#[case("gpt2", "n_ctx", json!(8))]
#[case("gpt2", "architectures", json!(["GPT2ForSequenceClassification"]))]
#[case("bert", "hidden_act", json!("gelu_new"))]
#[case("bert", "position_embedding_type", json!("relative_key"))]
#[case("bert", "is_decoder", json!(true))]
#[case("bert", "tie_word_embeddings", json!(false))]
#[case("bert", "architectures", json!(["BertModel"]))]
#[case("llama", "hidden_act", json!("gelu"))]
#[case("llama", "pretraining_tp", json!(2))]
#[case("qwen2", "use_sliding_window", json!("sometimes"))]
#[case("qwen2", "layer_types", json!(["full_attention", "sliding_attention"]))]
#[case("llama", "partial_rotary_factor", json!(0.5))]
#[case("llama", "attn_logit_softcapping", json!(30.0))]
#[case("llama", "final_logit_softcapping", json!(30.0))]
#[case("llama", "quantization_config", json!({"bits": 4}))]
#[case("llama", "model_type", json!("mamba"))]
#[case("llama", "hidden_size", json!("wide"))]
#[case("llama", "num_attention_heads", json!(0))]
fn what_is_not_computed_is_refused_by_name(#[case] model: &str, #[case] key: &str, #[case] value: Value) {
    let mut json = of(model);
    json[key] = value.clone();
    match Description::read(&json).unwrap_err() {
        Refusal::Value { key: named, value: shown, .. } => {
            assert_eq!((named.as_str(), shown), (key, value.to_string()))
        }
        other => panic!("{other}"),
    }
}

#[rstest]
#[case(json!({"type": "dynamic", "factor": 2.0}), "rope_scaling.type")]
#[case(json!({"rope_type": "yarn", "factor": 2.0}), "rope_scaling.rope_type")]
#[case(json!({"rope_type": "linear"}), "rope_scaling.factor")]
#[case(json!({"rope_type": "linear", "factor": 2.0, "attention_factor": 1.5}), "rope_scaling.attention_factor")]
#[case(json!({"rope_type": "default", "partial_rotary_factor": 0.5}), "rope_scaling.partial_rotary_factor")]
fn scalings_that_are_not_computed_are_refused(#[case] scaling: Value, #[case] key: &str) {
    let mut json = llama();
    json["rope_scaling"] = scaling;
    let error = Description::read(&json).unwrap_err().to_string();
    assert!(error.contains(&format!("`{key}`")), "{error}");
}

#[test]
fn keys_that_nobody_knows_are_refused_and_empty_ones_are_not() {
    let mut json = llama();
    json["query_pre_attn_scalar"] = json!(256);
    let expected =
        Refusal::UnknownKey { file: "config.json", key: "query_pre_attn_scalar".into(), value: "256".into() };
    assert_eq!(Description::read(&json).unwrap_err(), expected);
    json["query_pre_attn_scalar"] = Value::Null;
    Description::read(&json).unwrap();
    json.as_object_mut().unwrap().remove("vocab_size");
    assert_eq!(Description::read(&json).unwrap_err(), Refusal::MissingKey { file: "config.json", key: "vocab_size" });
    assert_eq!(Description::read(&json!([])).unwrap_err(), Refusal::NoObject { file: "config.json" });
}

#[test]
fn dropouts_that_differ_are_told() {
    let mut json = gpt2();
    json["attn_pdrop"] = json!(0.5);
    let uneven = Description::read(&json).unwrap().uneven_dropout.unwrap();
    assert!(uneven.contains("`attn_pdrop` = 0.5"), "{uneven}");
}

#[rstest]
fn what_is_written_is_read_again(#[values("gpt2", "llama", "mistral", "qwen2", "bert")] model: &str) {
    let architecture = read(&of(model));
    let written = Value::Object(config(&architecture, "float32").unwrap());
    let again = Description::read(&written).unwrap();
    assert_eq!((again.architecture, again.uneven_dropout), (architecture, None));
}

#[test]
fn models_without_a_counterpart_are_not_written() {
    for change in [
        |model: &mut Architecture| model.bias = false,
        |model: &mut Architecture| model.head_dim = 8,
        |model: &mut Architecture| model.kv_heads = 1,
    ] {
        let mut model = read(&gpt2());
        change(&mut model);
        assert!(matches!(config(&model, "float32"), Err(Refusal::NoCounterpart { .. })), "{model:?}");
    }
}

type Tensors = Vec<(String, Vec<usize>)>;

/// The tensors of a model as files would have them.
fn stored(family: Family, architecture: &Architecture) -> Tensors {
    let tensors = Published::gather(family.places(architecture));
    tensors.into_iter().map(|tensor| (tensor.name, tensor.shape)).collect()
}

#[rstest]
fn published_tensors_are_the_sum_of_their_parts(#[values("gpt2", "llama", "mistral", "qwen2", "bert")] model: &str) {
    let Description { family, architecture, .. } = Description::read(&of(model)).unwrap();
    for tensor in Published::gather(family.places(&architecture)) {
        let mut reached = 0;
        for part in &tensor.parts {
            assert_eq!((part.start, part.tensor_shape()), (reached, tensor.shape.clone()), "{part:?}");
            reached += part.shape[0];
        }
        assert_eq!(tensor.parts[0].rows, reached, "{}", tensor.name);
    }
    let parts = family.places(&architecture).len();
    assert_eq!(parts, architecture.parameters().len());
}

#[test]
fn a_box_of_a_fused_matrix_is_found() {
    let places = Family::Gpt2.places(&read(&gpt2()));
    let key = places.iter().find(|place| place.parameter == "layers.1.attention.key.weight").unwrap();
    assert_eq!((key.tensor.as_str(), key.tensor_shape()), ("transformer.h.1.attn.c_attn.weight", vec![12, 36]));
    assert_eq!(key.region(&[4..8, 0..5]), [0..5, 16..20]);
}

#[test]
fn bare_models_and_old_buffers_are_known() {
    let model = read(&gpt2());
    let bare = |(name, shape): (String, Vec<usize>)| (name.strip_prefix("transformer.").unwrap().to_owned(), shape);
    let mut tensors: Vec<_> = stored(Family::Gpt2, &model).into_iter().map(bare).collect();
    tensors.push(("h.1.attn.bias".into(), vec![1, 1, 16, 16]));
    let inventory = Inventory::take(Family::Gpt2, &model, &tensors).unwrap();
    assert_eq!((inventory.places[0].tensor.as_str(), inventory.same), ("wte.weight", Vec::new()));
    tensors.push(("lm_head.weight".into(), vec![37, 12]));
    let same = Inventory::take(Family::Gpt2, &model, &tensors).unwrap().same;
    assert_eq!(same, [("lm_head.weight".into(), "wte.weight".into())]);
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let model = read(&llama());
    let whole = stored(Family::Llama, &model);
    let refused = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        Inventory::take(Family::Llama, &model, &tensors).unwrap_err()
    };
    let name = "model.layers.0.self_attn.q_proj.bias".to_string();
    let extra = refused(&|tensors| tensors.push((name.clone(), vec![12])));
    assert_eq!(extra, Refusal::UnexpectedTensor { name: name.clone(), count: 1 });
    let lacks = refused(&|tensors| tensors.retain(|(name, _)| !name.ends_with("up_proj.weight")));
    assert_eq!(lacks, Refusal::MissingTensor { name: "model.layers.0.mlp.up_proj.weight".into(), count: 2 });
    let shape = refused(&|tensors| tensors[0].1 = vec![38, 12]);
    assert!(matches!(shape, Refusal::Shape { .. }), "{shape}");
    let twice = refused(&|tensors| tensors.push(("norm.weight".into(), vec![12])));
    assert!(matches!(twice, Refusal::TwiceTensor { .. }), "{twice}");
}

#[test]
fn berts_second_head_and_old_names_are_known() {
    let mut json = bert();
    let both = Description::read(&json).unwrap().architecture;
    json["architectures"] = json!(["BertForMaskedLM"]);
    let one = Description::read(&json).unwrap().architecture;
    assert!(both.next_sentence && !one.next_sentence);
    let old = |(name, shape): (String, Vec<usize>)| {
        (name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"), shape)
    };
    let mut tensors: Tensors = stored(Family::Bert, &both).into_iter().map(old).collect();
    tensors.push(("bert.embeddings.position_ids".into(), vec![1, 16]));
    tensors.push(("cls.predictions.decoder.weight".into(), vec![37, 12]));
    let table = "bert.embeddings.word_embeddings.weight";
    for model in [&both, &one] {
        let inventory = Inventory::take(Family::Bert, model, &tensors).unwrap();
        assert_eq!(inventory.same, [("cls.predictions.decoder.weight".into(), table.into())]);
    }
    let lacks = Inventory::take(Family::Bert, &both, &stored(Family::Bert, &one)).unwrap_err();
    assert_eq!(lacks, Refusal::MissingTensor { name: "bert.pooler.dense.weight".into(), count: 4 });
}

#[test]
fn rotary_keys_that_contradict_each_other_are_refused() {
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8 });
    for (theta, old, new, key) in [
        (
            json!(10_000.0),
            json!(null),
            json!({ "rope_type": "default", "rope_theta": 500_000.0 }),
            "rope_parameters.rope_theta",
        ),
        (json!(null), json!(null), json!({ "rope_type": "default", "rope_theta": 500_000.0 }), ""),
        (json!(10_000.0), llama3.clone(), json!({ "rope_type": "default" }), "rope_parameters"),
        (json!(10_000.0), llama3.clone(), llama3.clone(), ""),
        (
            json!(null),
            json!({ "type": "linear", "factor": 2.0 }),
            json!({ "rope_type": "linear", "factor": 4.0 }),
            "rope_parameters",
        ),
    ] {
        let mut json = llama();
        (json["rope_theta"], json["rope_scaling"], json["rope_parameters"]) = (theta, old, new);
        match Description::read(&json) {
            Ok(_) => assert_eq!(key, "", "{json}"),
            Err(error) => {
                let shown = format!("`config.json` has `{key}` = ");
                assert!(!key.is_empty() && error.to_string().contains(&shown), "{error}");
                assert!(error.to_string().ends_with("leave one of them out"), "{error}");
            }
        }
    }
}

/// What is published, key by key, but for labels.
fn published(name: &str) -> Value {
    let qwen = |hidden: u64, ffn: u64, layers: u64, heads: u64, kv: u64, tied: bool, vocab: u64| {
        json!({
            "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
            "hidden_act": "silu", "hidden_size": hidden, "initializer_range": 0.02, "intermediate_size": ffn,
            "max_position_embeddings": 32768, "max_window_layers": layers, "model_type": "qwen2",
            "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": kv, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": tied, "torch_dtype": "bfloat16",
            "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false, "use_sliding_window": false,
            "vocab_size": vocab
        })
    };
    let llama3 = |hidden: u64, ffn: u64, layers: u64, factor: f64| {
        json!({
            "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": hidden,
            "initializer_range": 0.02, "intermediate_size": ffn, "max_position_embeddings": 131072, "mlp_bias": false,
            "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": layers, "num_key_value_heads": 8,
            "pretraining_tp": 1, "rms_norm_eps": 1e-5,
            "rope_scaling": { "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                              "original_max_position_embeddings": 8192, "rope_type": "llama3" },
            "rope_theta": 500000.0, "tie_word_embeddings": hidden == 2048, "torch_dtype": "bfloat16",
            "transformers_version": "4.43.0.dev0", "use_cache": true, "vocab_size": 128256
        })
    };
    let mistral = |vocab: u64, theta: f64, window: Value, positions: u64| {
        json!({
            "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
            "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
            "max_position_embeddings": positions, "model_type": "mistral", "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": theta,
            "sliding_window": window, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
            "transformers_version": "4.42.0.dev0", "use_cache": true, "vocab_size": vocab
        })
    };
    let gpt2 = |width: u64, layers: u64, heads: u64| {
        json!({
            "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
            "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-5, "model_type": "gpt2", "n_ctx": 1024, "n_embd": width, "n_head": heads,
            "n_layer": layers, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null,
            "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index",
            "summary_use_proj": true, "vocab_size": 50257,
            "task_specific_params": { "text-generation": { "do_sample": true, "max_length": 50 } }
        })
    };
    let bert = |vocab: u64| {
        json!({
            "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
            "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
            "num_hidden_layers": 12, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": vocab
        })
    };
    let with = |mut json: Value, more: Value| {
        json.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        json
    };
    match name {
        "gpt2" => gpt2(768, 12, 12),
        "gpt2-medium" => with(gpt2(1024, 24, 16), json!({ "n_special": 0, "predict_special_tokens": true })),
        "gpt2 of transformers 2" => with(
            gpt2(768, 12, 12),
            json!({ "output_past": true, "pruned_heads": {}, "finetuning_task": null, "num_labels": 1 }),
        ),
        "Llama-3.1-8B" => llama3(4096, 14336, 32, 8.0),
        "Llama-3.2-1B" => with(llama3(2048, 8192, 16, 32.0), json!({ "head_dim": 64 })),
        "Llama-3.2-1B of unsloth" => with(
            llama3(2048, 8192, 16, 32.0),
            json!({ "head_dim": 64, "pad_token_id": 128004, "unsloth_fixed": true, "unsloth_version": "2024.9" }),
        ),
        "TinyLlama" => json!({
            "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 1, "eos_token_id": 2,
            "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5632,
            "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 22,
            "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": null,
            "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
            "transformers_version": "4.35.0", "use_cache": true, "vocab_size": 32000
        }),
        "Mistral-7B-v0.1" => mistral(32000, 10000.0, json!(4096), 32768),
        "Mistral-7B-v0.3" => mistral(32768, 1000000.0, json!(null), 32768),
        "Qwen2.5-0.5B" => qwen(896, 4864, 24, 14, 2, true, 151936),
        "Qwen2.5-7B" => qwen(3584, 18944, 28, 28, 4, false, 152064),
        "bert-base-uncased" => with(
            bert(30522),
            json!({ "gradient_checkpointing": false, "position_embedding_type": "absolute", "use_cache": true,
                    "transformers_version": "4.6.0.dev0" }),
        ),
        "bert-base-chinese" => with(
            bert(21128),
            json!({ "directionality": "bidi", "pooler_fc_size": 768, "pooler_num_attention_heads": 12,
                    "pooler_num_fc_layers": 3, "pooler_size_per_head": 128, "pooler_type": "first_token_transform" }),
        ),
        other => unreachable!("{other}"),
    }
}

#[rstest]
#[case("gpt2", 768, 50257)]
#[case("gpt2-medium", 1024, 50257)]
#[case("gpt2 of transformers 2", 768, 50257)]
#[case("Llama-3.1-8B", 4096, 128256)]
#[case("Llama-3.2-1B", 2048, 128256)]
#[case("Llama-3.2-1B of unsloth", 2048, 128256)]
#[case("TinyLlama", 2048, 32000)]
#[case("Mistral-7B-v0.1", 4096, 32000)]
#[case("Mistral-7B-v0.3", 4096, 32768)]
#[case("Qwen2.5-0.5B", 896, 151936)]
#[case("Qwen2.5-7B", 3584, 152064)]
#[case("bert-base-uncased", 768, 30522)]
#[case("bert-base-chinese", 768, 21128)]
fn configurations_as_they_are_published_are_read(#[case] name: &str, #[case] hidden: usize, #[case] vocab: usize) {
    let architecture = read(&published(name));
    assert_eq!((architecture.hidden, architecture.vocab), (hidden, vocab));
    assert_eq!(architecture.window, if name == "Mistral-7B-v0.1" { Some(4096) } else { None });
    assert_eq!(architecture.rope_scaling.is_some(), name.starts_with("Llama-3"));
}

#[rstest]
#[case("gpt2-medium", "n_special", json!(3))]
#[case("gpt2 of transformers 2", "pruned_heads", json!({ "0": [1] }))]
#[case("bert-base-chinese", "directionality", json!("left"))]
fn old_keys_that_change_something_are_refused(#[case] name: &str, #[case] key: &str, #[case] value: Value) {
    let mut json = published(name);
    json[key] = value;
    let error = Description::read(&json).unwrap_err().to_string();
    assert!(error.contains(&format!("`{key}` = ")), "{error}");
}
