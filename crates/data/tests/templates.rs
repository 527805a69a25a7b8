//! Chat templates against what transformers renders and masks; see `templates/generate.py`.
#![cfg(feature = "huggingface")]

use std::fs;
use std::path::{Path, PathBuf};

use mp_data::{ExampleReader, Examples, Reading, Result, Template, Tokenizer};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates")
}

/// Reads conversations from lines, with a template.
fn read(lines: &str, template: Template) -> Result<Examples> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, lines).unwrap();
    let tokenizer = Tokenizer::load(folder().join("tokenizer.json").to_str().unwrap())?;
    let (reading, vocab) = (Reading::chats(template), tokenizer.vocab_size());
    ExampleReader { tokenizer: &tokenizer, reading, vocab, seq: 1 << 12, threads: 2 }.read(file.path())
}

#[test]
fn texts_tokens_and_masks_are_those_of_transformers() {
    let golden: Vec<Value> = serde_json::from_slice(&fs::read(folder().join("golden.json")).unwrap()).unwrap();
    let tokenizer = Tokenizer::load(folder().join("tokenizer.json").to_str().unwrap()).unwrap();
    assert!(golden.len() >= 12);
    for case in golden {
        let name = case["template"].as_str().unwrap();
        let template = match name {
            "chatml" => Template::chatml(),
            name => Template::find(&[&folder().join("nowhere"), &folder().join(name)]).unwrap().unwrap(),
        };
        let line = serde_json::json!({ "messages": case["messages"] }).to_string();
        let expected = case["ids"].as_array().unwrap().iter().zip(case["mask"].as_array().unwrap());
        let expected: Vec<(i64, bool)> = expected.map(|(id, one)| (id.as_i64().unwrap(), *one == 1)).collect();
        let examples = read(&line, template).unwrap_or_else(|error| panic!("{name}: {error}"));
        let found: Vec<(i64, bool)> = examples.example(0).collect();
        let ids: Vec<u32> = found.iter().map(|(id, _)| *id as u32).collect();
        assert_eq!(tokenizer.decode(&ids).unwrap(), case["text"].as_str().unwrap(), "{name}");
        assert_eq!(found, expected, "{name}: {}", case["messages"]);
    }
}

#[test]
fn a_text_is_encoded_whole_but_for_tokens_over_a_border() {
    let tokenizer = Tokenizer::load(folder().join("tokenizer.json").to_str().unwrap()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let read = |prompt: &str, completion: &str| -> Vec<(i64, bool)> {
        fs::write(&file, serde_json::json!({ "prompt": prompt, "completion": completion }).to_string()).unwrap();
        let reader =
            ExampleReader { tokenizer: &tokenizer, reading: Reading::Completion(5), vocab: 400, seq: 99, threads: 1 };
        reader.read(file.path()).unwrap().example(0).collect()
    };
    let ids =
        |text: &str, counted: bool| tokenizer.encode(text).unwrap().into_iter().map(move |id| (i64::from(id), counted));
    let end = [(5, true)];
    // A blank and the word behind it are one token; its byte in the text is the blank's.
    let whole = read("The capital is", " Paris");
    assert_eq!(whole, ids("The capital is", false).chain(ids(" Paris", true)).chain(end).collect::<Vec<_>>());
    let cut = read("The capital is ", "Paris");
    assert_eq!(cut, ids("The capital is ", false).chain(ids("Paris", true)).chain(end).collect::<Vec<_>>());
    assert_ne!(
        tokenizer.encode("The capital is Paris").unwrap().len() + 1,
        cut.len(),
        "one token would be over the border"
    );
    assert_eq!(tokenizer.encode("The capital is Paris").unwrap().len() + 1, whole.len());
}

#[test]
fn what_templates_refuse_and_what_cannot_be_told_is_said_with_its_line() {
    let refused = |source: &str, messages: &str| {
        let template = Template::new(source, "the template of `t`", Default::default()).unwrap();
        let line = format!("\n{{\"messages\": [{messages}]}}\n");
        read(&line, template).unwrap_err().to_string()
    };
    let talk = r#"{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}"#;
    let error = refused("{{ raise_exception('roles must alternate') }}", talk);
    assert!(error.ends_with(", line 2: the template of `t` refuses it: roles must alternate"), "{error}");
    let error = refused("{{ messages[7].content }}", talk);
    assert!(error.contains("line 2: the template of `t` refuses it: "), "{error}");
    // The number of messages stands before them all.
    let error = refused("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", talk);
    assert!(error.contains("writes what comes before message 2 (assistant) otherwise when more follows"), "{error}");
    assert!(error.contains("mark that with `{% generation %}`"), "{error}");
    let error = refused("{{ messages[0].content.strip() }}", r#"{"role": "assistant", "content": "b"}"#);
    assert!(error.contains("line 2: the conversation begins with the assistant"), "{error}");
    assert!(error.contains("the template of `t` refuses it: ") && error.contains("`{% generation %}`"), "{error}");
    // Marks, but around the wrong role.
    let wrong =
        "{% for m in messages %}{% if m.role == 'user' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}\
                 {{ m.content }}{% endif %}{% endfor %}";
    let error = refused(wrong, talk);
    assert!(error.contains("line 2: none of its tokens is to be learned"), "{error}");
    let error = refused("{% generation %}{% endgeneration %}", r#"{"role": "assistant", "content": "\ufdd0"}"#);
    assert!(error.contains("it has the character U+FDD0"), "{error}");
}

#[test]
fn files_that_hold_no_template_are_refused_or_passed_by() {
    let place = tempfile::tempdir().unwrap();
    let find = || Template::find(&[place.path()]);
    assert!(find().unwrap().is_none());
    let config = place.path().join("tokenizer_config.json");
    fs::write(&config, r#"{"eos_token": "</s>", "chat_template": [{"name": "tool_use", "template": "x"}]}"#).unwrap();
    assert!(find().unwrap().is_none());
    fs::write(&config, r#"{"chat_template": "{% for %}"}"#).unwrap();
    assert!(find().unwrap_err().to_string().contains("tokenizer_config.json` is no template"));
    fs::write(&config, "{").unwrap();
    assert!(find().unwrap_err().to_string().contains("tokenizer_config.json` is no JSON"));
    fs::write(&config, r#"{"chat_template": "from the config"}"#).unwrap();
    assert_eq!(find().unwrap().unwrap().source(), "from the config");
    fs::write(place.path().join("chat_template.jinja"), "from its own file").unwrap();
    assert_eq!(find().unwrap().unwrap().source(), "from its own file");
}
