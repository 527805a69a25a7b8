//! The text of a continuation as it grows: what of it can be shown, and where it stops.

use mp_data::Tokenizer;

use crate::Result;

/// A character of which a token has brought a part only decodes to this.
const INCOMPLETE: char = '\u{fffd}';

/// One continuation under way.
#[derive(Debug)]
pub struct Continuation<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    /// The prompt's last tokens, then the continuation's: some decoders look at what comes before a token.
    ids: Vec<u32>,
    /// Tokens whose text is settled; what comes before the second number counts for the first one's decoding alone.
    settled: usize,
    context: usize,
    text: String,
    /// Bytes of the text that have been handed out.
    shown: usize,
    stopped: bool,
}

impl<'a> Continuation<'a> {
    /// Begins after a prompt; the text will end before the first of `stops` that comes up in it.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], stops: &'a [String]) -> Self {
        let ids = tail(tokenizer, prompt).to_vec();
        let settled = ids.len();
        Self { tokenizer, stops, ids, settled, context: 0, text: String::new(), shown: 0, stopped: false }
    }

    /// Takes a token; returns what can be shown after it, which is less than there is while a character is incomplete or a
    /// stop string may have begun.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) if the tokenizer gives up.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if id as usize >= self.tokenizer.vocab_size() {
            // A model may have more rows than its tokenizer has tokens, and such an id no text.
            return Ok(String::new());
        }
        self.ids.push(id);
        let new = self.undecided()?;
        if !new.is_empty() && !new.ends_with(INCOMPLETE) {
            self.settle(&new);
        }
        Ok(self.show(false))
    }

    /// Ends the continuation; returns what had been held back.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self) -> Result<String> {
        if !self.stopped {
            let new = self.undecided()?;
            self.settle(&new);
        }
        Ok(self.show(true))
    }

    /// Says whether a stop string has come up.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Returns the text as far as it is settled.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Decodes the tokens whose text is not settled yet.
    fn undecided(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[self.context..self.settled])?;
        let with = self.tokenizer.decode(&self.ids[self.context..])?;
        Ok(match with.strip_prefix(&before) {
            Some(new) => new.to_string(),
            // Where more tokens change how earlier ones read, these stand for themselves.
            None => self.tokenizer.decode(&self.ids[self.settled..])?,
        })
    }

    fn settle(&mut self, new: &str) {
        (self.context, self.settled) = (self.settled, self.ids.len());
        self.text += new;
        let unseen = &self.text[self.shown..];
        let found = self.stops.iter().filter_map(|stop| unseen.find(stop.as_str())).min();
        if let Some(at) = found {
            self.text.truncate(self.shown + at);
            self.stopped = true;
        }
    }

    fn show(&mut self, last: bool) -> String {
        let unseen = &self.text[self.shown..];
        let held = if last || self.stopped { 0 } else { self.begun(unseen) };
        let ready = unseen[..unseen.len() - held].to_string();
        self.shown += ready.len();
        ready
    }

    /// Returns the length of the longest end of a text that a stop string begins with.
    fn begun(&self, text: &str) -> usize {
        let begins = |stop: &String| {
            let longest = text.len().min(stop.len() - 1);
            (1..=longest).rev().find(|&length| stop.is_char_boundary(length) && text.ends_with(&stop[..length]))
        };
        self.stops.iter().filter_map(begins).max().unwrap_or(0)
    }
}

/// Returns the fewest of a prompt's last tokens that begin with a whole character: a decoder makes nothing of the end of one.
fn tail<'a>(tokenizer: &Tokenizer, prompt: &'a [u32]) -> &'a [u32] {
    let whole = |start: &usize| {
        let text = tokenizer.decode(&prompt[*start..]);
        text.is_ok_and(|text| !text.starts_with(INCOMPLETE))
    };
    let start = (0..prompt.len()).rev().find(whole);
    &prompt[start.unwrap_or(0)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words after a blank, and bytes for what they lack, as in the tokenizers of Llama 2 and Mistral.
    fn falls_back() -> (tempfile::TempDir, Tokenizer) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let blank =
            serde_json::json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false });
        let steps = serde_json::json!([
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ]);
        let tokens = ["<unk>", "▁", "▁a", "▁the", "<0xC3>", "<0xA9>"];
        let vocab: serde_json::Map<_, _> = (0u32..).zip(tokens).map(|(id, token)| (token.into(), id.into())).collect();
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": blank,
            "decoder": { "type": "Sequence", "decoders": steps },
            "model": { "type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>", "byte_fallback": true },
        });
        std::fs::write(&path, json.to_string()).unwrap();
        let tokenizer = Tokenizer::load(path.to_str().unwrap()).unwrap();
        (folder, tokenizer)
    }

    #[test]
    fn a_prompt_that_ends_with_bytes_of_a_character_is_gone_on_with() {
        let (_folder, tokenizer) = falls_back();
        // "a é", and then "é the".
        let prompt = [2, 1, 4, 5];
        assert_eq!(tokenizer.decode(&prompt).unwrap(), "a é");
        let mut continuation = Continuation::new(&tokenizer, &prompt, &[]);
        let shown: Vec<String> = [4, 5, 3].map(|id| continuation.push(id).unwrap()).into();
        assert_eq!(shown, ["", "é", " the"]);
        assert_eq!((continuation.finish().unwrap().as_str(), continuation.text()), ("", "é the"));
    }

    #[test]
    fn ids_that_the_tokenizer_lacks_stand_for_no_text() {
        let tokenizer = Tokenizer::bytes();
        let mut continuation = Continuation::new(&tokenizer, &[65], &[]);
        // Also in the middle of a character.
        let shown = [97, 256, 0xc3, 300, 0xa9].map(|id| continuation.push(id).unwrap());
        assert_eq!(shown, ["a", "", "", "", "é"]);
    }

    /// Feeds bytes one by one; returns what was shown after each, what at the end, and the whole text.
    fn fed(text: &[u8], stops: &[&str]) -> (Vec<String>, String, String, bool) {
        let (tokenizer, stops) = (Tokenizer::bytes(), stops.iter().map(|stop| stop.to_string()).collect::<Vec<_>>());
        let mut continuation = Continuation::new(&tokenizer, &[b'x'.into()], &stops);
        let mut shown = Vec::new();
        for &byte in text {
            shown.push(continuation.push(byte.into()).unwrap());
            if continuation.is_stopped() {
                break;
            }
        }
        let rest = continuation.finish().unwrap();
        (shown, rest, continuation.text().to_string(), continuation.is_stopped())
    }

    #[test]
    fn characters_are_shown_whole() {
        let (shown, rest, text, _) = fed("a€é".as_bytes(), &[]);
        assert_eq!(shown, ["a", "", "", "€", "", "é"]);
        assert_eq!((rest.as_str(), text.as_str()), ("", "a€é"));
    }

    #[test]
    fn what_never_becomes_a_character_is_shown_as_such() {
        let (shown, rest, text, _) = fed(b"a\xe2\x82b\xe2", &[]);
        assert_eq!(shown.concat() + &rest, text);
        assert_eq!(text, "a\u{fffd}b\u{fffd}");
    }

    #[test]
    fn a_stop_string_ends_the_text_before_it_and_is_never_shown() {
        let (shown, rest, text, stopped) = fed(b"one END two", &["END"]);
        assert_eq!(shown, ["o", "n", "e", " ", "", "", ""]);
        assert_eq!((rest.as_str(), text.as_str(), stopped), ("", "one ", true));
    }

    #[test]
    fn what_only_looked_like_a_stop_string_is_shown_later() {
        let (shown, rest, text, stopped) = fed(b"aENaEN", &["END"]);
        assert_eq!(shown, ["a", "", "", "ENa", "", ""]);
        assert_eq!((rest.as_str(), text.as_str(), stopped), ("EN", "aENaEN", false));
    }

    #[test]
    fn the_earliest_of_several_stop_strings_counts() {
        let (shown, _, text, _) = fed(b"abcab", &["cab", "ca"]);
        assert_eq!((shown.concat().as_str(), text.as_str()), ("ab", "ab"));
        let (_, _, text, _) = fed(b"aab", &["aab", "ab"]);
        assert_eq!(text, "");
    }

    #[test]
    fn stop_strings_of_several_bytes_a_character_are_found() {
        let (shown, _, text, stopped) = fed("x€€y".as_bytes(), &["€y"]);
        assert_eq!((shown.concat().as_str(), text.as_str(), stopped), ("x€", "x€", true));
    }
}
