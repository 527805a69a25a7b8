//! Chat templates: from a conversation's messages to the text that a model is shown, and which of it the assistant says.
//!
//! Templates are those that models are published with, in Jinja, and are given what transformers gives them. What the
//! assistant says is known in one of two ways:
//!
//! - the template marks it with `{% generation %} … {% endgeneration %}`, as transformers' own masks ask for; or
//! - the text of all messages before an answer, with the prompt for the next answer behind it, begins the text of all messages
//!   up to the answer, and that begins the whole. What the second has beyond the first is the assistant's, with the token that
//!   ends its turn. A template that writes a message otherwise when more follow is refused.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use minijinja::value::Kwargs;
use minijinja::{context, Environment, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::Value as Json;

use crate::{Error, Result};

/// The template of conversations where a tokenizer has none: ChatML.
const CHATML: &str = include_str!("chatml.jinja");

/// The role whose words are learned.
pub(crate) const ASSISTANT: &str = "assistant";

/// Stand around what a template marks: characters that no text has, for Unicode gives them to programs' own use.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';
/// The filter that puts them there.
const MARK: &str = "mp_generation";
/// The template's name among those of its environment.
const NAME: &str = "chat";

/// Turns conversations into text.
#[derive(Debug, Clone)]
pub struct Template {
    environment: Environment<'static>,
    /// What messages call it.
    origin: String,
    source: String,
    /// The special tokens by the names that templates know them by, such as `bos_token`.
    tokens: BTreeMap<String, String>,
    /// Whether it marks what the assistant says.
    marks: bool,
}

/// A conversation as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// All of it.
    pub text: String,
    /// The bytes of it that the assistant says, in order.
    pub answers: Vec<Range<usize>>,
}

impl Template {
    /// Returns the template for tokenizers without one, ChatML: `<|im_start|>role\ncontent<|im_end|>\n` for each message. Of
    /// what an assistant says, `<|im_end|>` is a part and the line's end is not.
    pub fn chatml() -> Self {
        Self::new(CHATML, "the built-in template", BTreeMap::new()).expect("the built-in template is one")
    }

    /// Compiles a template; `origin` names it in messages.
    ///
    /// # Errors
    /// [`Error::Template`] for what is no template.
    pub fn new(source: &str, origin: impl Into<String>, tokens: BTreeMap<String, String>) -> Result<Self> {
        let origin = origin.into();
        let (marked, marks) = with_marks(source);
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment.add_filter(MARK, |text: String| format!("{OPEN}{text}{CLOSE}"));
        environment
            .add_template_owned(NAME, marked)
            .map_err(|error| Error::Template { origin: origin.clone(), problem: format!("is no template: {error}") })?;
        Ok(Self { environment, origin, source: source.into(), tokens, marks })
    }

    /// Finds the template in the first of `folders` that has one: `chat_template.jinja`, or the `chat_template` of
    /// `tokenizer_config.json`, which also names the special tokens.
    ///
    /// # Errors
    /// [`Error::Template`] for one that is none, [`Error::Unreadable`].
    pub fn find(folders: &[&Path]) -> Result<Option<Self>> {
        for folder in folders {
            let config = config(&folder.join("tokenizer_config.json"))?;
            let file = folder.join("chat_template.jinja");
            let found = match file.is_file() {
                true => Some((read(&file)?, file)),
                false => default_of(&config["chat_template"]).map(|text| (text, folder.join("tokenizer_config.json"))),
            };
            if let Some((source, path)) = found {
                return Self::new(&source, format!("the template of `{}`", path.display()), special(&config)).map(Some);
            }
        }
        Ok(None)
    }

    /// Returns its text, in Jinja.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Writes a conversation, a list of objects with `role` and `content`, and says what of it the assistant says.
    ///
    /// # Errors
    /// In words, what the template refuses, and why what the assistant says cannot be told.
    pub(crate) fn write(&self, messages: &[Json]) -> std::result::Result<Written, String> {
        match self.marks {
            true => self.by_marks(messages),
            false => self.by_prefixes(messages),
        }
    }

    fn by_marks(&self, messages: &[Json]) -> std::result::Result<Written, String> {
        if messages.iter().any(|message| message.to_string().contains([OPEN, CLOSE])) {
            return Err(format!("it has the character U+{:X} or U+{:X}, which no text has", OPEN as u32, CLOSE as u32));
        }
        let marked = self.render(messages, false)?;
        let (mut text, mut answers, mut begun) = (String::with_capacity(marked.len()), Vec::new(), 0);
        for character in marked.chars() {
            match character {
                OPEN => begun = text.len(),
                CLOSE => answers.push(begun..text.len()),
                other => text.push(other),
            }
        }
        answers.retain(|answer| !answer.is_empty());
        Ok(Written { text, answers })
    }

    fn by_prefixes(&self, messages: &[Json]) -> std::result::Result<Written, String> {
        let text = self.render(messages, false)?;
        let mut answers: Vec<Range<usize>> = Vec::new();
        for (at, _) in messages.iter().enumerate().filter(|(_, message)| message["role"] == ASSISTANT) {
            let before = self.render(&messages[..at], true).map_err(|refusal| match at {
                // Templates may well ask for a first message.
                0 => format!(
                    "the conversation begins with the assistant, and what comes before its words cannot be told: {refusal} \
                     without messages; put a message before it, or mark what the assistant says with `{{% generation %}}` \
                     in the template"
                ),
                _ => refusal,
            })?;
            let after = self.render(&messages[..=at], false)?;
            let follows = answers.last().is_none_or(|last| last.end <= before.len());
            if !(follows && after.starts_with(&before) && text.starts_with(&after)) {
                return Err(format!(
                    "{} writes what comes before message {} (assistant) otherwise when more follows, so that it cannot be \
                     told what the assistant says; mark that with `{{% generation %}}` in the template",
                    self.origin,
                    at + 1
                ));
            }
            answers.push(before.len()..after.len());
        }
        Ok(Written { text, answers })
    }

    /// Renders as transformers' `apply_chat_template` does.
    fn render(&self, messages: &[Json], add_generation_prompt: bool) -> std::result::Result<String, String> {
        let template = self.environment.get_template(NAME).expect("it was added");
        let own = context! { messages, add_generation_prompt, tools => (), documents => () };
        let rendered = template.render(context! { ..own, ..Value::from_serialize(&self.tokens) });
        rendered.map_err(|error| format!("{} refuses it: {}", self.origin, plain(&error)))
    }
}

/// What an error says, without where in the template.
fn plain(error: &minijinja::Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), String::from)
}

/// Makes `{% generation %}` blocks filters that put marks around what is in them, and says whether there are any.
fn with_marks(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut marks) = (String::with_capacity(source.len()), source, false);
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + length];
        let word = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let own = match word {
            "generation" => Some(format!("filter {MARK}")),
            "endgeneration" => Some("endfilter".to_string()),
            _ => None,
        };
        out += &rest[..start + 2];
        match own {
            Some(own) => {
                marks = true;
                out += &tag.replacen(word, &format!(" {own} "), 1);
            }
            None => out += tag,
        }
        out += "%}";
        rest = &rest[start + length + 2..];
    }
    (out + rest, marks)
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// Writes a value as Python's `json.dumps` does with `ensure_ascii=False`: no character is escaped for HTML.
fn to_json(value: &Value, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson knows no `ensure_ascii=True`"));
    }
    options.assert_all_used()?;
    let mut written = Vec::new();
    let done = match indent.map(|columns| " ".repeat(columns)) {
        Some(columns) => {
            let form = serde_json::ser::PrettyFormatter::with_indent(columns.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut written, form))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut written, Spaced)),
    };
    done.map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&written).into_owned()))
}

/// JSON on one line, with a blank behind each comma and colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Reads a file that there may be none of; then nothing.
fn config(path: &Path) -> Result<Json> {
    if !path.is_file() {
        return Ok(Json::Null);
    }
    let refused =
        |error| Error::Template { origin: format!("`{}`", path.display()), problem: format!("is no JSON: {error}") };
    serde_json::from_str(&read(path)?).map_err(refused)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| Error::Unreadable { path: path.into(), source })
}

/// Of several templates, the one that is called `default`.
fn default_of(template: &Json) -> Option<String> {
    let several = || template.as_array()?.iter().find(|one| one["name"] == "default")?["template"].as_str();
    template.as_str().or_else(several).map(String::from)
}

/// Lists the special tokens that a `tokenizer_config.json` names.
fn special(config: &Json) -> BTreeMap<String, String> {
    let keys = config.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
    let text = |token: &Json| token.as_str().or_else(|| token["content"].as_str()).map(String::from);
    keys.filter_map(|(key, token)| Some((key.clone(), text(token)?))).collect()
}
