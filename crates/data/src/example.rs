//! One line of a file as an example: its tokens, and which of them are to be learned.

use serde_json::{Map, Value};

use crate::template::ASSISTANT;
use crate::{Error, Result, Template, Tokenizer};

/// How lines are read.
#[derive(Debug, Clone)]
pub enum Reading {
    /// As `{"prompt": …, "completion": …}`: the completion is learned, with this token that ends it.
    Completion(u32),
    /// As `{"messages": [{"role": …, "content": …}, …]}`: what the assistant says is learned, as the template writes it.
    Chat(Box<Template>),
}

impl Reading {
    /// Reads prompts and completions, which a tokenizer's token for the end of documents ends.
    ///
    /// # Errors
    /// [`Error::NoEnd`] if it has none.
    pub fn completions(tokenizer: &Tokenizer) -> Result<Self> {
        tokenizer.end_of_document().map(Reading::Completion).ok_or_else(|| Error::NoEnd {
            spec: tokenizer.spec().into(),
            token: "token that ends a document, and nothing else would end a completion".into(),
            mend: "name one as `eos_token` in the `tokenizer_config.json` beside it, or write conversations \
                   (`data.format` = \"chat\")",
        })
    }

    /// Reads conversations.
    pub fn chats(template: Template) -> Self {
        Reading::Chat(Box::new(template))
    }

    /// Makes an example of a line.
    pub(crate) fn read(&self, line: &[u8], tokenizer: &Tokenizer) -> Outcome<Example> {
        let object = match serde_json::from_slice(line) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return Err("it is no object".into()),
            Err(error) => return Err(format!("it is no JSON: {error}; each line must be an object")),
        };
        let example = match self {
            Reading::Completion(end) => completion(&object, tokenizer, *end)?,
            Reading::Chat(template) => chat(&object, tokenizer, template)?,
        };
        // The first token is predicted from nothing, and so never.
        match example.counted.iter().skip(1).any(|&counted| counted) {
            true => Ok(example),
            false => {
                Err("none of its tokens is to be learned; the template marks nothing of it as the assistant's".into())
            }
        }
    }
}

/// A result whose error is words for a line's.
type Outcome<T> = std::result::Result<T, String>;

/// An example's tokens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Example {
    pub ids: Vec<u32>,
    /// Which are to be learned.
    pub counted: Vec<bool>,
}

impl Example {
    /// Encodes a text of which some stretches are to be learned, between one border and the next in turn; no token is of
    /// both.
    fn new(text: &str, borders: &[usize], tokenizer: &Tokenizer) -> Outcome<Self> {
        let placed = tokenizer.encode_between(text, borders).map_err(|error| error.to_string())?;
        // An odd number of borders up to its first byte: it is behind a beginning and before an end.
        let counts = |start: usize| borders.partition_point(|&border| border <= start) % 2 == 1;
        let (ids, counted) = placed.into_iter().map(|(id, bytes)| (id, counts(bytes.start))).unzip();
        Ok(Self { ids, counted })
    }
}

fn completion(object: &Map<String, Value>, tokenizer: &Tokenizer, end: u32) -> Outcome<Example> {
    let field = |name: &str| match object.get(name) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(format!("`{name}` is no string")),
        None => Err(missing(object, name, "\"completion\" needs `prompt` and `completion`")),
    };
    let (prompt, completion) = (field("prompt")?, field("completion")?);
    if completion.is_empty() {
        return Err("`completion` is empty, and there is nothing to learn".into());
    }
    let text = [prompt, completion].concat();
    let mut example = Example::new(&text, &[prompt.len(), text.len()], tokenizer)?;
    example.ids.push(end);
    example.counted.push(true);
    Ok(example)
}

fn chat(object: &Map<String, Value>, tokenizer: &Tokenizer, template: &Template) -> Outcome<Example> {
    let messages = match object.get("messages") {
        Some(Value::Array(messages)) => messages,
        Some(_) => return Err("`messages` is no list".into()),
        None => return Err(missing(object, "messages", "\"chat\" needs `messages`")),
    };
    if messages.is_empty() {
        return Err("`messages` is empty".into());
    }
    if object.get("tools").is_some_and(|tools| !tools.is_null()) {
        return Err("it has `tools`, which templates are not given; write them into the system's message".into());
    }
    messages
        .iter()
        .enumerate()
        .try_for_each(|(at, message)| check(message).map_err(|problem| format!("message {} {problem}", at + 1)))?;
    if !messages.iter().any(|message| message["role"] == ASSISTANT) {
        return Err("no message is the assistant's, and there is nothing to learn".into());
    }
    let written = template.write(messages)?;
    let borders: Vec<usize> = written.answers.iter().flat_map(|answer| [answer.start, answer.end]).collect();
    Example::new(&written.text, &borders, tokenizer)
}

/// Checks that a message has a known role and says something where it must.
fn check(message: &Value) -> Outcome<()> {
    let role = match &message["role"] {
        Value::String(role) if ["system", "user", ASSISTANT].contains(&role.as_str()) => role,
        Value::Null => return Err("has no `role`".into()),
        other => return Err(format!("has the `role` {other}, but must have \"system\", \"user\" or \"assistant\"")),
    };
    match &message["content"] {
        Value::String(text) if text.is_empty() && role == ASSISTANT => {
            Err("is the assistant's and empty, and there is nothing to learn".into())
        }
        Value::String(_) => Ok(()),
        Value::Null => Err("has no `content`".into()),
        _ => Err("has a `content` that is no string".into()),
    }
}

fn missing(object: &Map<String, Value>, name: &str, rule: &str) -> String {
    let keys: Vec<String> = object.keys().map(|key| format!("`{key}`")).collect();
    let has = if keys.is_empty() { "nothing".into() } else { keys.join(", ") };
    format!("there is no `{name}` in it, but {has}; `data.format` = {rule}")
}
