//! Files of examples: what is learned of each line, what is refused, and how examples are packed.

use std::fs;
use std::io::Write;
use std::path::Path;

use mp_data::{
    ExampleReader, Examples, Packed, PackedRows, PackedSource, Reading, Result, Sample, SampleSource, Template,
    Tokenizer, IGNORED,
};
use proptest::prelude::*;

fn read(path: &Path, reading: Reading, seq: usize) -> Result<Examples> {
    let tokenizer = Tokenizer::bytes();
    ExampleReader { tokenizer: &tokenizer, reading, vocab: 256, seq, threads: 2 }.read(path)
}

/// Reads lines as prompts and completions that a zero ends, over bytes.
fn completions(lines: &str, seq: usize) -> Result<Examples> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, lines).unwrap();
    read(file.path(), Reading::Completion(0), seq)
}

fn chats(lines: &str, seq: usize) -> Result<Examples> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, lines).unwrap();
    read(file.path(), Reading::chats(Template::chatml()), seq)
}

/// An example as two lines: its bytes, and beneath each `^` where it is learned. Line ends show as `/`, the end as `0`.
fn shown(examples: &Examples, number: u64) -> [String; 2] {
    let byte = |id: i64| match id as u8 {
        b'\n' => '/',
        0 => '0',
        other => char::from(other),
    };
    let tokens: String = examples.example(number).map(|(id, _)| byte(id)).collect();
    let mask = examples.example(number).map(|(_, counted)| if counted { '^' } else { ' ' }).collect::<String>();
    [tokens, mask]
}

#[test]
fn of_a_conversation_the_assistants_words_and_their_end_are_learned() {
    let line = r#"{"id": 7, "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "de"}]}"#;
    let examples = chats(&line.replace('\n', ""), 1000).unwrap();
    let question = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\n";
    let expected = [
        (question, false),
        ("b<|im_end|>", true),
        ("\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n", false),
        ("de<|im_end|>", true),
        ("\n", false),
    ];
    let tokens = |(text, counted): (&'static str, bool)| text.bytes().map(move |byte| (i64::from(byte), counted));
    assert_eq!(examples.example(0).collect::<Vec<_>>(), expected.into_iter().flat_map(tokens).collect::<Vec<_>>());
}

#[test]
fn of_a_completion_all_is_learned_with_its_end_and_of_the_prompt_nothing() {
    let lines =
        "{\"prompt\": \"2+2=\", \"completion\": \"4\"}\n\n{\"prompt\": \"\", \"completion\": \"hi\", \"id\": 1}\n";
    let examples = completions(lines, 100).unwrap();
    assert_eq!(shown(&examples, 0), ["2+2=40", "    ^^"]);
    assert_eq!(shown(&examples, 1), ["hi0", "^^^"]);
    assert_eq!((examples.len(), examples.tokens()), (2, 9));
    let mut sample = Sample::default();
    Packed::new(examples, 10).unwrap().row(0, &mut sample);
    let end = i64::from(0u8);
    let (four, i) = (i64::from(b'4'), i64::from(b'i'));
    let none = IGNORED;
    assert_eq!(sample.targets, [none, none, none, four, end, i, end, none, none, none]);
    assert_eq!(sample.tokens[..7].iter().map(|&id| id as u8 as char).collect::<String>(), "2+2=4hi");
    assert_eq!(sample.segments.unwrap(), [0, 0, 0, 0, 0, 1, 1, -1, -1, -1]);
    assert_eq!(sample.positions.unwrap(), [0, 1, 2, 3, 4, 0, 1, 0, 0, 0]);
}

#[test]
fn lines_that_are_no_examples_are_refused_with_their_number() {
    let good = "{\"prompt\": \"a\", \"completion\": \"b\"}";
    for (line, problem) in [
        ("{\"prompt\": ", "it is no JSON: "),
        ("[1]", "it is no object"),
        ("{\"prompt\": \"a\"}", "there is no `completion` in it, but `prompt`; `data.format` = \"completion\" needs"),
        ("{\"messages\": []}", "there is no `prompt` in it, but `messages`"),
        ("{}", "there is no `prompt` in it, but nothing"),
        ("{\"prompt\": 1, \"completion\": \"b\"}", "`prompt` is no string"),
        ("{\"prompt\": \"a\", \"completion\": \"\"}", "`completion` is empty"),
    ] {
        let error = completions(&format!("{good}\n\n{line}\n"), 100).unwrap_err().to_string();
        assert!(error.contains(&format!("`, line 3: {problem}")), "{line}: {error}");
    }
    let user = "{\"role\": \"user\", \"content\": \"a\"}";
    for (messages, problem) in [
        ("[]", "`messages` is empty"),
        ("1", "`messages` is no list"),
        (&*format!("[{user}]"), "no message is the assistant's"),
        (
            &*format!("[{user}, {{\"role\": \"tool\", \"content\": \"\"}}]"),
            "message 2 has the `role` \"tool\", but must",
        ),
        ("[{\"content\": \"a\"}]", "message 1 has no `role`"),
        ("[{\"role\": \"user\"}]", "message 1 has no `content`"),
        ("[{\"role\": \"user\", \"content\": [1]}]", "message 1 has a `content` that is no string"),
        ("[{\"role\": \"assistant\", \"content\": \"\"}]", "message 1 is the assistant's and empty"),
        ("[3]", "message 1 has no `role`"),
    ] {
        let error = chats(&format!("{{\"messages\": {messages}}}"), 100).unwrap_err().to_string();
        assert!(error.contains(&format!("`, line 1: {problem}")), "{messages}: {error}");
    }
    let tools = format!("{{\"messages\": [{user}], \"tools\": [1]}}");
    assert!(chats(&tools, 100).unwrap_err().to_string().contains("line 1: it has `tools`"));
    assert!(chats(good, 100)
        .unwrap_err()
        .to_string()
        .contains("there is no `messages` in it, but `completion`, `prompt`"));
}

#[test]
fn examples_that_do_not_fit_are_refused_with_their_number() {
    let line = |letters: usize| format!("{{\"prompt\": \"\", \"completion\": \"{}\"}}\n", "a".repeat(letters));
    completions(&line(8), 8).unwrap();
    let error = completions(&[line(3), line(9), line(8), line(20)].concat(), 8).unwrap_err().to_string();
    let expected =
        "line 2: the example has 10 tokens, and `train.seq` = 8 leaves room for 9; 2 of 4 examples are too long: set \
                    `train.seq` to at least 20, or shorten or leave out those examples";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn files_that_hold_none_are_refused() {
    assert!(completions("\n \n", 8).unwrap_err().to_string().contains("is empty"));
    let folder = tempfile::tempdir().unwrap();
    let reading = || Reading::Completion(0);
    let error = read(&folder.path().join("none.jsonl"), reading(), 8).unwrap_err().to_string();
    assert!(error.contains("there is no file"), "{error}");
    for name in ["a.bin", "a.idx"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    for name in ["a", "a.bin", "a.idx"] {
        let error = read(&folder.path().join(name), reading(), 8).unwrap_err().to_string();
        assert!(error.contains("holds tokens, which say nothing of prompts"), "{error}");
    }
    let error = Reading::completions(&Tokenizer::bytes()).unwrap_err().to_string();
    assert!(error.contains("the tokenizer `bytes` has no token that ends a document"), "{error}");
    let big = "{\"prompt\": \"\", \"completion\": \"\u{e9}\"}";
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, big).unwrap();
    let tokenizer = Tokenizer::bytes();
    let reader = ExampleReader { tokenizer: &tokenizer, reading: reading(), vocab: 100, seq: 8, threads: 1 };
    assert!(reader.read(file.path()).unwrap_err().to_string().contains("beyond the vocabulary of 100"));
}

#[test]
fn compressed_files_and_folders_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let line = |word: &str| format!("{{\"prompt\": \"\", \"completion\": \"{word}\"}}\n");
    let mut packed =
        flate2::write::GzEncoder::new(fs::File::create(folder.path().join("a.jsonl.gz")).unwrap(), Default::default());
    packed.write_all(line("one").as_bytes()).unwrap();
    packed.finish().unwrap();
    fs::write(folder.path().join("b.zst"), zstd::encode_all(line("two").as_bytes(), 1).unwrap()).unwrap();
    fs::write(folder.path().join("c"), [line("three"), "nonsense".into()].concat()).unwrap();
    let error = read(folder.path(), Reading::Completion(0), 8).unwrap_err().to_string();
    assert!(error.contains("c`, line 2: it is no JSON"), "{error}");
    fs::write(folder.path().join("c"), line("three")).unwrap();
    let examples = read(folder.path(), Reading::Completion(0), 8).unwrap();
    let words: Vec<String> = examples.numbers().map(|number| shown(&examples, number)[0].clone()).collect();
    assert_eq!(words, ["one0", "two0", "three0"]);
}

/// Examples of so many tokens each, the first of which names them.
fn of_lengths(lengths: &[usize]) -> Examples {
    let word = |(number, &tokens): (usize, &usize)| {
        let first = char::from(b'A' + (number % 26) as u8);
        format!("{{\"prompt\": \"{first}\", \"completion\": \"{}\"}}\n", "x".repeat(tokens - 2))
    };
    completions(&lengths.iter().enumerate().map(word).collect::<String>(), 1000).unwrap()
}

#[test]
fn the_longest_go_first_and_where_the_least_room_is_left() {
    // Inputs: 3, 6, 4, 2, 7 into rows of ten: 7 | 6 | 6+4 | 7+3 | 2.
    let packed = Packed::new(of_lengths(&[4, 7, 5, 3, 8]), 10).unwrap();
    assert_eq!(packed.rows(), 3);
    let source = PackedSource::new(packed, 3);
    let mut rows: Vec<Vec<u64>> =
        (0..3).map(|number| source.pieces(number).unwrap().iter().map(|piece| piece.document).collect()).collect();
    rows.sort();
    assert_eq!(rows, [vec![0, 4], vec![1, 2], vec![3]]);
    let whole = source.pieces(0).unwrap().iter().all(|piece| piece.tokens.start == 0 && piece.tokens.end > 2);
    assert!(whole, "no example is cut");
}

#[test]
fn the_last_examples_are_held_out() {
    let examples = of_lengths(&[10, 10, 10, 10, 10]);
    for (fraction, first) in [(0.1, 4), (0.2, 4), (0.21, 3), (0.9, 1), (0.999, 1)] {
        let (train, held_out) = examples.split(fraction, 16).unwrap();
        let held_out = held_out.unwrap();
        assert_eq!((train.numbers(), held_out.numbers()), (0..first, first..5), "{fraction}");
        assert_eq!(train.tokens() + held_out.tokens(), 50);
        assert!(held_out.origin().starts_with("the validation part of `"));
    }
    assert!(examples.split(0.0, 16).unwrap().1.is_none());
    assert!(examples.split(1.0, 16).unwrap_err().to_string().contains("not in [0, 1)"));
    let error = of_lengths(&[9]).split(0.5, 16).unwrap_err().to_string();
    assert!(error.contains("the validation part of `") && error.contains("another fraction than 0.5"), "{error}");
}

#[test]
fn the_first_rows_are_not_those_of_the_longest_examples() {
    // Inputs: 3, 8, 4, 9, 8 into rows of ten: 3+4 | 8 | 9 | 8, and longest first the third row would be the first.
    let rows = PackedRows::new(vec![of_lengths(&[4, 9, 5, 10, 9])], 10).unwrap();
    let inputs = |row: usize| rows.batch(row..row + 1).unwrap().target_count();
    assert_eq!((0..rows.count()).map(inputs).collect::<Vec<_>>(), [7, 8, 9, 8]);
}

#[test]
fn held_out_examples_are_walked_once() {
    let examples = of_lengths(&[4, 7, 5, 3, 8]);
    let (train, held_out) = examples.split(0.4, 10).unwrap();
    let learned = |examples: &Examples| {
        examples.numbers().flat_map(|number| examples.example(number).skip(1)).filter(|(_, counted)| *counted).count()
    };
    let expected = learned(&train) + learned(held_out.as_ref().unwrap());
    let rows = PackedRows::new(vec![train, held_out.unwrap()], 10).unwrap();
    let found: usize = (0..rows.count()).map(|row| rows.batch(row..row + 1).unwrap().target_count()).sum();
    assert_eq!(found, expected);
    let all = rows.batch(0..rows.count()).unwrap();
    assert_eq!((all.batch, all.target_count()), (rows.count(), expected));
}

proptest! {
    #[test]
    fn every_epoch_has_every_example_once_and_whole(
        lengths in proptest::collection::vec(3usize..30, 1..60), seq in 29usize..64, seed in 0u64..9,
    ) {
        let examples = of_lengths(&lengths);
        let source = PackedSource::new(Packed::new(examples.clone(), seq).unwrap(), seed);
        let epoch = source.samples_per_epoch();
        // No more rows than twice the fewest possible: only one can be half empty.
        let inputs: usize = lengths.iter().map(|length| length - 1).sum();
        prop_assert!((epoch as usize) < 2 * inputs.div_ceil(seq) + 1);
        let mut sample = Sample::default();
        for number in [0, 1].map(|turn| turn * epoch) {
            let mut seen = Vec::new();
            for number in number..number + epoch {
                source.sample(number, &mut sample).unwrap();
                let (segments, positions) = (sample.segments.clone().unwrap(), sample.positions.clone().unwrap());
                for (segment, piece) in source.pieces(number).unwrap().into_iter().enumerate() {
                    seen.push(piece.document);
                    let own: Vec<usize> = (0..seq).filter(|&at| segments[at] == segment as i64).collect();
                    let found = own.iter().map(|&at| (sample.tokens[at], sample.targets[at]));
                    let tokens: Vec<(i64, bool)> = examples.example(piece.document).collect();
                    let expected = tokens.windows(2).map(|pair| (pair[0].0, if pair[1].1 { pair[1].0 } else { IGNORED }));
                    prop_assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
                    prop_assert_eq!(piece.tokens, 0..tokens.len() as u64);
                    prop_assert!(own.iter().zip(0..).all(|(&at, position)| positions[at] == position));
                }
                let padding = (0..seq).filter(|&at| segments[at] == -1);
                prop_assert!(padding.clone().all(|at| sample.targets[at] == IGNORED));
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, examples.numbers().collect::<Vec<_>>());
        }
    }
}
