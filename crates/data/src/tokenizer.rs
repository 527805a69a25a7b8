//! Text to token ids and back: bytes, or a Hugging Face `tokenizer.json`.

#[cfg(feature = "huggingface")]
mod continued;

use std::ops::Range;

use crate::{Error, Result};

/// Number of byte tokens.
const BYTES: usize = 256;

/// Turns text into token ids and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    spec: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// A token is a byte of the UTF-8 text.
    Bytes,
    #[cfg(feature = "huggingface")]
    HuggingFace(Box<huggingface::Model>),
}

impl Tokenizer {
    /// Returns the tokenizer whose tokens are the bytes of the text.
    pub fn bytes() -> Self {
        Self { spec: "bytes".into(), kind: Kind::Bytes }
    }

    /// Loads the tokenizer that `spec` names: `"bytes"`, or the path of a Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::UnknownTokenizer`] if nothing lies at the path, [`Error::TokenizerFile`] if the file does not parse or
    /// holds no tokens, [`Error::FeatureOff`] if this build has no Hugging Face support, and the errors of reading a file.
    /// The `tokenizers` crate panics on some malformed files; that too becomes an error. For its sake the first use of a
    /// file wraps the process's panic hook: panics of that crate, on the thread that called it, are not printed.
    pub fn load(spec: &str) -> Result<Self> {
        match spec {
            "bytes" => Ok(Self::bytes()),
            path => Self::open(path),
        }
    }

    #[cfg(feature = "huggingface")]
    fn open(path: &str) -> Result<Self> {
        let bytes = crate::file::read(path.as_ref()).map_err(|error| match error {
            Error::Missing { .. } => Error::UnknownTokenizer { spec: path.into() },
            other => other,
        })?;
        let model =
            huggingface::Model::parse(&bytes).map_err(|cause| Error::TokenizerFile { spec: path.into(), cause })?;
        Ok(Self { spec: path.into(), kind: Kind::HuggingFace(Box::new(model)) })
    }

    #[cfg(not(feature = "huggingface"))]
    fn open(path: &str) -> Result<Self> {
        Err(Error::FeatureOff { spec: path.into() })
    }

    /// Returns what [`Tokenizer::load`] takes to load this tokenizer again.
    pub fn spec(&self) -> &str {
        &self.spec
    }

    /// Returns the least vocabulary size that holds every id: the largest id plus one, special tokens included.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::Bytes => BYTES,
            #[cfg(feature = "huggingface")]
            Kind::HuggingFace(model) => model.vocab_size(),
        }
    }

    /// Returns the token that ends a document, if the tokenizer has one: what the `tokenizer_config.json` beside the file
    /// calls `eos_token`, or else the first of the customary names that its vocabulary holds.
    pub fn end_of_document(&self) -> Option<u32> {
        match &self.kind {
            Kind::Bytes => None,
            #[cfg(feature = "huggingface")]
            Kind::HuggingFace(model) => {
                let named = huggingface::named_end(self.spec.as_ref());
                named
                    .and_then(|name| model.id(&name))
                    .or_else(|| huggingface::ENDS.iter().find_map(|name| model.id(name)))
            }
        }
    }

    /// Returns the token that ends a document: by a name or an id where one is given, else the tokenizer's own.
    ///
    /// # Errors
    /// [`Error::NoEnd`] if there is none.
    pub fn end_named(&self, token: Option<&str>) -> Result<u32> {
        let by_id = |token: &str| token.parse().ok().filter(|&id: &u32| (id as usize) < self.vocab_size());
        match token {
            None => self.end_of_document().ok_or_else(|| Error::NoEnd {
                spec: self.spec.clone(),
                token: "token that ends a document".into(),
                mend: "name one with `--eod TOKEN`, or leave it out with `--no-eod`",
            }),
            Some(token) => self.id(token).or_else(|| by_id(token)).ok_or_else(|| Error::NoEnd {
                spec: self.spec.clone(),
                token: format!("token `{token}`"),
                mend: "give the name or the id of one that its vocabulary holds",
            }),
        }
    }

    /// Returns how many bytes of text each token stands for, by id; 0 where an id is nobody's, and for the token that
    /// [ends documents](Self::end_of_document), which stands between texts. Other special tokens count their names, for
    /// that is how they come to be in a text.
    ///
    /// # Errors
    /// [`Error::Decode`] if the tokenizer's decoder gives up.
    pub fn byte_lengths(&self) -> Result<Vec<usize>> {
        match &self.kind {
            Kind::Bytes => Ok(vec![1; BYTES]),
            #[cfg(feature = "huggingface")]
            Kind::HuggingFace(model) => {
                let failed = |cause| Error::Decode { spec: self.spec.clone(), tokens: 1, cause };
                let mut lengths = model.byte_lengths().map_err(failed)?;
                if let Some(length) = self.end_of_document().and_then(|end| lengths.get_mut(end as usize)) {
                    *length = 0;
                }
                Ok(lengths)
            }
        }
    }

    /// Returns the id of a token that the vocabulary holds by this name; bytes have no names.
    pub fn id(&self, #[cfg_attr(not(feature = "huggingface"), expect(unused))] token: &str) -> Option<u32> {
        match &self.kind {
            Kind::Bytes => None,
            #[cfg(feature = "huggingface")]
            Kind::HuggingFace(model) => model.id(token),
        }
    }

    /// Turns text into token ids. No special tokens are added, nothing is cut off and nothing is padded, whatever a
    /// `tokenizer.json` asks for.
    ///
    /// # Errors
    /// [`Error::Encode`] if the tokenizer does not cover the text, for pairs with the first character that it lacks;
    /// bytes cover any.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Bytes => Ok(text.bytes().map(u32::from).collect()),
            #[cfg(feature = "huggingface")]
            Kind::HuggingFace(model) => {
                model.encode(text).map_err(|cause| Error::Encode { spec: self.spec.clone(), bytes: text.len(), cause })
            }
        }
    }

    /// Turns text into token ids, each with the bytes that it stands for, of which none reaches over one of `borders`: where a
    /// token would, the text is cut there, and its parts are encoded each on its own. What a tokenizer puts before a text, a
    /// blank say, comes before the first part alone.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_between(&self, text: &str, borders: &[usize]) -> Result<Vec<(u32, Range<usize>)>> {
        self.encode_part(text, borders, false)
    }

    /// Encodes a text, or what goes on after another.
    fn encode_part(&self, text: &str, borders: &[usize], goes_on: bool) -> Result<Vec<(u32, Range<usize>)>> {
        let ids = self.encode_placed(text, goes_on)?;
        let crosses = |border: usize| ids.iter().any(|(_, bytes)| bytes.start < border && border < bytes.end);
        let crossed: Vec<usize> = borders.iter().copied().filter(|&border| crosses(border)).collect();
        if crossed.is_empty() {
            return Ok(ids);
        }
        let ends = crossed.iter().copied().chain([text.len()]);
        let (mut all, mut start) = (Vec::new(), 0);
        for end in ends {
            let inner: Vec<usize> =
                borders.iter().filter(|&&border| start < border && border < end).map(|border| border - start).collect();
            let part = self.encode_part(&text[start..end], &inner, goes_on || start > 0)?;
            all.extend(part.into_iter().map(|(id, bytes)| (id, bytes.start + start..bytes.end + start)));
            start = end;
        }
        Ok(all)
    }

    fn encode_placed(
        &self,
        text: &str,
        #[cfg_attr(not(feature = "huggingface"), expect(unused))] goes_on: bool,
    ) -> Result<Vec<(u32, Range<usize>)>> {
        match &self.kind {
            Kind::Bytes => Ok(text.bytes().enumerate().map(|(at, byte)| (u32::from(byte), at..at + 1)).collect()),
            #[cfg(feature = "huggingface")]
            Kind::HuggingFace(model) => model.encode_placed(text, goes_on).map_err(|cause| Error::Encode {
                spec: self.spec.clone(),
                bytes: text.len(),
                cause,
            }),
        }
    }

    /// Turns token ids into text, special tokens included. Byte tokens that form no UTF-8 become `U+FFFD`.
    ///
    /// # Errors
    /// [`Error::TokenId`] for an id beyond the vocabulary, [`Error::Decode`] if the tokenizer's decoder gives up.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Some(position) = ids.iter().position(|&id| id as usize >= self.vocab_size()) {
            let origin = "the tokens to decode".to_string();
            return Err(Error::TokenId { origin, id: ids[position], position, vocab: self.vocab_size() });
        }
        match &self.kind {
            // Checked above: every id is below 256.
            Kind::Bytes => {
                Ok(String::from_utf8_lossy(&ids.iter().map(|&id| id as u8).collect::<Vec<_>>()).into_owned())
            }
            #[cfg(feature = "huggingface")]
            Kind::HuggingFace(model) => {
                model.decode(ids).map_err(|cause| Error::Decode { spec: self.spec.clone(), tokens: ids.len(), cause })
            }
        }
    }
}

#[cfg(feature = "huggingface")]
mod huggingface {
    //! The `tokenizers` crate, held to plain text.

    use std::cell::Cell;
    use std::ops::Range;
    use std::panic::{self, AssertUnwindSafe};
    use std::sync::{Once, OnceLock};

    use tokenizers::{Model as _, ModelWrapper};

    use super::continued;
    use crate::error::Cause;

    /// Text in which a missing character is looked for at a time; long texts are not encoded again as a whole.
    const PIECE_BYTES: usize = 1 << 16;

    /// A parsed `tokenizer.json`.
    #[derive(Debug, Clone)]
    pub struct Model {
        inner: tokenizers::Tokenizer,
        /// The same without what it puts before a text, made when it is first needed.
        plain: OnceLock<tokenizers::Tokenizer>,
        vocab_size: usize,
    }

    impl Model {
        pub fn parse(json: &[u8]) -> Result<Self, Cause> {
            // The crate panics on some files: malformed JSON in the decoder (told apart here, so that the message has its
            // line and column), and well-formed JSON of the wrong shape in the normalizer.
            serde_json::from_slice::<serde_json::Value>(json)?;
            let mut inner = quietly(|| tokenizers::Tokenizer::from_bytes(json))
                .map_err(|_| "a part of it does not have the shape that its type asks for")??;
            // Files exported for inference often truncate at the model's length: a corpus would silently shrink to it.
            inner.with_truncation(None)?;
            inner.with_padding(None);
            // Special tokens are not added, and all else that it does is to take blanks off the bytes that tokens stand for.
            inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
            refuse_unknown(&mut inner);
            // The count of entries would be too small where ids have gaps.
            let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
            if vocab_size == 0 {
                return Err("its vocabulary is empty".into());
            }
            Ok(Self { inner, plain: OnceLock::new(), vocab_size })
        }

        pub fn vocab_size(&self) -> usize {
            self.vocab_size
        }

        pub fn id(&self, token: &str) -> Option<u32> {
            self.inner.token_to_id(token)
        }

        /// Where tokens are of bytes, those count; elsewhere what a token adds to the text of one before it.
        pub fn byte_lengths(&self) -> Result<Vec<usize>, Cause> {
            let decoder = serde_json::to_string(&self.inner.get_decoder())?;
            let (of_bytes, falls_back) = (decoder.contains("\"ByteLevel\""), decoder.contains("\"ByteFallback\""));
            let added = self.inner.get_added_tokens_decoder();
            let anchor = self.inner.encode_fast("a", false).ok().and_then(|encoded| encoded.get_ids().last().copied());
            let before: Vec<u32> = anchor.into_iter().collect();
            let start = self.decode(&before)?.len();
            let length = |id: u32| -> Result<usize, Cause> {
                let Some(token) = self.inner.id_to_token(id) else { return Ok(0) };
                if let Some(added) = added.get(&id) {
                    return Ok(added.content.len());
                }
                if of_bytes {
                    // Each byte is written as one character.
                    return Ok(token.chars().count());
                }
                if falls_back && token.len() == 6 && token.starts_with("<0x") {
                    return Ok(1);
                }
                let both = [before.as_slice(), &[id]].concat();
                Ok(self.decode(&both)?.len().saturating_sub(start))
            };
            (0..self.vocab_size as u32).map(length).collect()
        }

        pub fn encode(&self, text: &str) -> Result<Vec<u32>, Cause> {
            self.try_encode(text).map_err(|cause| self.explain(text, cause))
        }

        /// Encodes, with the bytes that each token stands for. Before what goes on after another text nothing is put;
        /// behind an added token in it all is as ever.
        pub fn encode_placed(&self, text: &str, goes_on: bool) -> Result<Vec<(u32, Range<usize>)>, Cause> {
            let own = placed(&self.inner, text).map_err(|cause| self.explain(text, cause))?;
            if !goes_on {
                return Ok(own);
            }
            let plain = match self.plain.get() {
                Some(plain) => plain,
                None => {
                    let made = guarded(|| continued::without_prefix(&self.inner))?;
                    self.plain.get_or_init(|| made)
                }
            };
            let mut first = placed(plain, text).map_err(|cause| self.explain(text, cause))?;
            let added = self.inner.get_added_tokens_decoder();
            let to_added = |ids: &[(u32, Range<usize>)]| ids.iter().position(|(id, _)| added.contains_key(id));
            if let (Some(plain), Some(with)) = (to_added(&first), to_added(&own)) {
                first.truncate(plain);
                first.extend_from_slice(&own[with..]);
            }
            Ok(first)
        }

        fn explain(&self, text: &str, cause: Cause) -> Cause {
            match self.missing(text) {
                Some((offset, missing)) => {
                    format!("it has no token for the character {missing:?} at byte {offset} of the text").into()
                }
                None => cause,
            }
        }

        pub fn decode(&self, ids: &[u32]) -> Result<String, Cause> {
            guarded(|| self.inner.decode(ids, false))
        }

        fn try_encode(&self, text: &str) -> Result<Vec<u32>, Cause> {
            guarded(|| Ok(self.inner.encode_fast(text, false)?.get_ids().to_vec()))
        }

        /// The first character that pairs cannot be made of, and its offset. Other models work on whole words.
        fn missing(&self, text: &str) -> Option<(usize, char)> {
            if !matches!(self.inner.get_model(), ModelWrapper::BPE(_)) {
                return None;
            }
            let mut start = 0;
            let piece = loop {
                let end = text.floor_char_boundary(start + PIECE_BYTES);
                let piece = &text[start..end];
                if piece.is_empty() {
                    return None;
                }
                if self.try_encode(piece).is_err() {
                    break piece;
                }
                start = end;
            };
            // Whatever ends at `good` encodes, and whatever ends at `bad` does not.
            let (mut good, mut bad) = (0, piece.len());
            while let Some(middle) = between(piece, good, bad) {
                match self.try_encode(&piece[..middle]) {
                    Ok(_) => good = middle,
                    Err(_) => bad = middle,
                }
            }
            Some((start + good, piece[good..].chars().next()?))
        }
    }

    /// What tokens that end a document are customarily called.
    pub const ENDS: [&str; 7] = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]"];

    /// Reads the name of the token from the file that models are published with beside their tokenizer's.
    pub fn named_end(tokenizer: &std::path::Path) -> Option<String> {
        let text = std::fs::read(tokenizer.with_file_name("tokenizer_config.json")).ok()?;
        let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let token = &config["eos_token"];
        token.as_str().or_else(|| token["content"].as_str()).map(String::from)
    }

    fn placed(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<(u32, Range<usize>)>, Cause> {
        let encoded = guarded(|| tokenizer.encode(text, false))?;
        let places = encoded.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoded.get_ids().iter().copied().zip(places).collect())
    }

    /// A boundary between characters near the middle of two others, if there is one.
    fn between(text: &str, low: usize, high: usize) -> Option<usize> {
        let below = text.floor_char_boundary(low + (high - low) / 2);
        let middle = if below > low { below } else { text.ceil_char_boundary(low + 1) };
        (middle < high).then_some(middle)
    }

    /// Makes pairs without a token for the unknown refuse characters that they lack, and not drop them: the crate
    /// reports a token for the unknown that is itself unknown.
    fn refuse_unknown(tokenizer: &mut tokenizers::Tokenizer) {
        let ModelWrapper::BPE(pairs) = tokenizer.get_model() else { return };
        if pairs.unk_token.is_some() {
            return;
        }
        let mut pairs = pairs.clone();
        let mut absent = String::from("\0");
        while pairs.token_to_id(&absent).is_some() {
            absent.push('\0');
        }
        pairs.unk_token = Some(absent);
        tokenizer.with_model(pairs);
    }

    /// A panic of the crate is an error of the file's or the text's; nothing of ours is half changed by it.
    fn guarded<T>(work: impl FnOnce() -> Result<T, Cause>) -> Result<T, Cause> {
        quietly(work).unwrap_or_else(|_| Err("the tokenizers crate panicked on it".into()))
    }

    /// Catches a panic, and keeps the process's hook from printing it.
    ///
    /// The hook is replaced once and for good by one that passes everything on but the panics of a thread that asked for
    /// quiet: to swap it for each call would race with other threads' panics.
    fn quietly<T>(work: impl FnOnce() -> T) -> std::thread::Result<T> {
        thread_local! {
            static QUIET: Cell<bool> = const { Cell::new(false) };
        }
        static WRAP: Once = Once::new();
        WRAP.call_once(|| {
            let printing = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                if !QUIET.get() {
                    printing(info);
                }
            }));
        });
        let before = QUIET.replace(true);
        let outcome = panic::catch_unwind(AssertUnwindSafe(work));
        QUIET.set(before);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_and_cut_characters_are_replaced() {
        let tokenizer = Tokenizer::load("bytes").unwrap();
        let ids = tokenizer.encode("naïve €").unwrap();
        assert_eq!((tokenizer.vocab_size(), ids.len()), (256, 10));
        assert_eq!(tokenizer.decode(&ids).unwrap(), "naïve €");
        assert_eq!(tokenizer.decode(&ids[..9]).unwrap(), "naïve \u{fffd}");
    }

    #[test]
    fn an_id_beyond_the_bytes_is_refused() {
        let error = Tokenizer::bytes().decode(&[65, 256]).unwrap_err();
        assert!(matches!(error, Error::TokenId { id: 256, position: 1, vocab: 256, .. }));
    }

    #[cfg(not(feature = "huggingface"))]
    #[test]
    fn a_file_needs_the_feature() {
        let text = Tokenizer::load("tokenizer.json").unwrap_err().to_string();
        assert!(text.contains("needs the cargo feature `huggingface`"), "{text}");
    }
}
