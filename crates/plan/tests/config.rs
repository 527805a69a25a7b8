//! The two sections in TOML and JSON: what is read back, and what is refused in which words.

use mp_plan::{
    ArchitectureName, AttentionBias, ModelConfig, ParallelConfig, RopeScaling, ScheduleName, Switch, TransportName,
};

/// Settings of which none is the default.
fn unusual() -> (ModelConfig, ParallelConfig) {
    let model = ModelConfig {
        architecture: ArchitectureName::Gpt2,
        tie_embeddings: Some(false),
        attention_bias: Some(AttentionBias::Qkv),
        window: 7,
        dropout: 0.1,
        rope_scaling: Some(RopeScaling::Linear { factor: 2.5 }),
        ..ModelConfig::default()
    };
    let parallel = ParallelConfig {
        tp: 4,
        dp: 2,
        sequence_parallel: Switch::Set(true),
        chunks: 2,
        schedule: Switch::Set(ScheduleName::ZbV),
        split: vec![1, 2, 3, 2],
        transport: TransportName::Staged,
        ..ParallelConfig::default()
    };
    (model, parallel)
}

#[test]
fn sections_survive_toml_and_json() {
    let (model, parallel) = unusual();
    assert_eq!(toml::from_str::<ModelConfig>(&toml::to_string(&model).unwrap()).unwrap(), model);
    assert_eq!(toml::from_str::<ParallelConfig>(&toml::to_string(&parallel).unwrap()).unwrap(), parallel);
    assert_eq!(serde_json::from_str::<ModelConfig>(&serde_json::to_string(&model).unwrap()).unwrap(), model);
    assert_eq!(serde_json::from_str::<ParallelConfig>(&serde_json::to_string(&parallel).unwrap()).unwrap(), parallel);
}

#[test]
fn nothing_typed_is_the_default() {
    assert_eq!(toml::from_str::<ModelConfig>("").unwrap(), ModelConfig::default());
    assert_eq!(toml::from_str::<ParallelConfig>("").unwrap(), ParallelConfig::default());
}

#[test]
fn switches_are_values_or_the_word_auto() {
    for (switch, json) in [(Switch::Auto, "\"auto\""), (Switch::Set(true), "true"), (Switch::Set(false), "false")] {
        assert_eq!(serde_json::to_string(&switch).unwrap(), json);
        assert_eq!(serde_json::from_str::<Switch<bool>>(json).unwrap(), switch);
        let toml = format!("sequence_parallel = {json}");
        assert_eq!(toml::from_str::<ParallelConfig>(&toml).unwrap().sequence_parallel, switch);
        let parallel = ParallelConfig { sequence_parallel: switch, ..ParallelConfig::default() };
        // What is open is left out: written, it would ask.
        let written = toml::to_string(&parallel).unwrap();
        assert_eq!(written.contains("sequence_parallel"), switch != Switch::Auto, "{written}");
        assert_eq!(toml::from_str::<ParallelConfig>(&written).unwrap(), parallel);
    }
    // Words are values too, but "auto" never is.
    assert_eq!(serde_json::from_str::<Switch<String>>("\"auto\"").unwrap(), Switch::Auto);
    assert_eq!(serde_json::from_str::<Switch<String>>("\"full\"").unwrap(), Switch::Set("full".into()));
}

#[test]
fn wrong_switches_are_refused() {
    for wrong in ["\"yes\"", "1", "\"Auto\"", "[true]"] {
        let error = toml::from_str::<ParallelConfig>(&format!("sequence_parallel = {wrong}")).unwrap_err();
        assert!(error.message().contains("neither a legal value nor \"auto\""), "{wrong}: {error}");
    }
}

#[test]
fn schedules_have_their_names() {
    for name in ScheduleName::ALL {
        let config = toml::from_str::<ParallelConfig>(&format!("schedule = '{name}'")).unwrap();
        assert_eq!(config.schedule, Switch::Set(name));
    }
    for wrong in ["'1F1B'", "'zb'", "1"] {
        assert!(toml::from_str::<ParallelConfig>(&format!("schedule = {wrong}")).is_err(), "{wrong}");
    }
}

#[test]
fn unknown_keys_are_named_with_the_known_ones() {
    let error = toml::from_str::<ModelConfig>("hiden = 64").unwrap_err();
    assert!(
        error.message().starts_with("unknown field `hiden`, expected one of `from`, `base`, `architecture`"),
        "{error}"
    );
    let error = toml::from_str::<ParallelConfig>("tensor = 2").unwrap_err();
    assert!(error.message().starts_with("unknown field `tensor`, expected one of `tp`"), "{error}");
    let error = toml::from_str::<ModelConfig>("rope_scaling = { kind = 'linear', factr = 2.0 }").unwrap_err();
    assert!(error.message().contains("unknown field `factr`"), "{error}");
    let error = toml::from_str::<ModelConfig>("architecture = 'mamba'").unwrap_err();
    assert!(error.message().contains("unknown variant `mamba`, expected one of `llama`, `gpt2`, `bert`"), "{error}");
}

#[test]
fn wrong_types_and_signs_are_refused() {
    for wrong in ["hidden = '64'", "hidden = -1", "hidden = 1.5", "dropout = 'a'", "bias = 1", "rope_scaling = 2"] {
        assert!(toml::from_str::<ModelConfig>(wrong).is_err(), "{wrong}");
    }
}
