//! Text to tokens and back.
//!
//! [`Tokenizer::from_gguf`] builds the tokenizer that a model file carries: byte-level BPE (`gpt2`) or
//! SentencePiece BPE (`llama`, Gemma's included). [`Tokenizer::from_json`] reads a Hugging Face
//! `tokenizer.json`.
//!
//! ```text
//! text ─▶ control tokens ─▶ user-defined tokens ─▶ words (byte-level only) ─▶ merges ─▶ ids
//! ids ─▶ bytes of each token ─▶ UTF-8 that is complete ─▶ text
//! ```
//!
//! # Why are control tokens not parsed by default?
//!
//! Whoever can write `<|im_end|>` into a prompt can end the user's turn and speak as the system.
//! [`EncodeOptions::parse_special`] is therefore off; [`Tokenizer::encode_guarded`] parses control tokens in a
//! template's text and not in the messages inside it.

mod bpe;
mod byte_level;
mod classes;
mod digest;
mod gguf;
mod huggingface;
mod merge;
mod pre_tokenize;
mod sentence_piece;
mod special;
mod stream;
mod vocabulary;

use std::ops::Range;
use std::sync::OnceLock;

use bpe::ByteLevelBpe;
use merge::Merger;
use sentence_piece::SentencePiece;
use special::Matcher;
use vocabulary::Vocabulary;

use crate::{Digest, Error, Result};
pub use stream::DecodeStream;
pub use vocabulary::TokenKind;

/// How [`Tokenizer::encode`] reads text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put BOS before and EOS after the text where the model wants them. Default: yes.
    pub add_special: bool,
    /// Read control tokens that are written out in the text (`<|im_end|>`) as such. Default: no; see the
    /// [module](self) for why.
    pub parse_special: bool,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { add_special: true, parse_special: false }
    }
}

/// A model's tokenizer. Immutable; share it between threads.
pub struct Tokenizer {
    model: Model,
    vocabulary: Vocabulary,
    control: Matcher,
    user_defined: Matcher,
    special_ids: SpecialIds,
    /// Every token that ends a turn or the text, ascending.
    end_ids: Vec<u32>,
    add_bos: bool,
    add_eos: bool,
    /// A space is put before text that starts the input or follows a special token.
    space_prefix: bool,
    digest: OnceLock<Digest>,
}

enum Model {
    ByteLevel(ByteLevelBpe),
    SentencePiece(SentencePiece),
    HuggingFace(Box<huggingface::Encoder>),
}

/// Ids of the tokens with a role of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
}

/// Control tokens that end a turn or the text, as published models call them.
const END_TOKENS: [&str; 13] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "</s>",
    "<eos>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

impl Tokenizer {
    /// Puts the parts together once the vocabulary is filled and its kinds are final.
    fn assemble(
        model: Model,
        vocabulary: Vocabulary,
        special_ids: SpecialIds,
        mut end_ids: Vec<u32>,
        (add_bos, add_eos, space_prefix): (bool, bool, bool),
    ) -> Result<Self> {
        let control = Matcher::new(&vocabulary, TokenKind::Control)?;
        let user_defined = Matcher::new(&vocabulary, TokenKind::UserDefined)?;
        let ends = |id: &&u32| END_TOKENS.iter().any(|end| end.as_bytes() == vocabulary.bytes_of(**id));
        end_ids.extend(control.ids().iter().filter(ends));
        end_ids.extend(special_ids.eos);
        end_ids.sort_unstable();
        end_ids.dedup();
        Ok(Self {
            model,
            vocabulary,
            control,
            user_defined,
            special_ids,
            end_ids,
            add_bos: add_bos && special_ids.bos.is_some(),
            add_eos: add_eos && special_ids.eos.is_some(),
            space_prefix,
            digest: OnceLock::new(),
        })
    }

    /// With the special tokens that a file beside the tokenizer's own names: they go before what was guessed.
    ///
    /// # Errors
    /// [`Error::InvalidTokenizer`] if one is not in the vocabulary.
    #[cfg(feature = "onnx")]
    pub(crate) fn with_special_ids(mut self, bos: Option<u32>, ends: &[u32], padding: Option<u32>) -> Result<Self> {
        let named = bos.iter().chain(ends).chain(&padding);
        if let Some(id) = named.copied().find(|id| *id as usize >= self.vocabulary.len()) {
            return Err(invalid(format!("special token {id} is not in the vocabulary of {}", self.vocabulary.len())));
        }
        // What a text begins or ends with is the tokenizer's own matter.
        if !self.add_bos {
            self.special_ids.bos = bos.or(self.special_ids.bos);
        }
        if !self.add_eos {
            self.special_ids.eos = ends.first().copied().or(self.special_ids.eos);
        }
        self.special_ids.padding = padding.or(self.special_ids.padding);
        self.end_ids.extend(ends);
        self.end_ids.sort_unstable();
        self.end_ids.dedup();
        Ok(self)
    }

    /// Token ids of `text`. An empty text has no tokens but the BOS and EOS that the options add.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for a text of 2 GiB or more.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>> {
        self.encode_guarded(text, &[], options)
    }

    /// As [`encode`](Self::encode), but no control token is read from a span of `literal`, not even in part:
    /// what stands there is encoded as the text it is. Spans are byte ranges of `text`, ascending, disjoint, at
    /// character boundaries.
    ///
    /// Elsewhere merges run across the borders of spans, so text without control tokens encodes as if it had
    /// no spans.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for a text of 2 GiB or more.
    ///
    /// # Panics
    /// If spans are not as described.
    pub fn encode_guarded(&self, text: &str, literal: &[Range<usize>], options: EncodeOptions) -> Result<Vec<u32>> {
        const TEXT_BYTES_MAX: usize = i32::MAX as usize;
        if text.len() > TEXT_BYTES_MAX {
            return Err(vocabulary::limit("bytes of text", text.len(), TEXT_BYTES_MAX));
        }
        let mut output = Output {
            ids: Vec::with_capacity(text.len() / 3 + 2),
            after_special: true,
            at_start: true,
            merger: Merger::default(),
        };
        if options.add_special && self.add_bos {
            output.ids.extend(self.special_ids.bos);
        }
        let mut plain_start = 0;
        if options.parse_special {
            let mut trusted_start = 0;
            for span in literal.iter().cloned().chain([text.len()..text.len()]) {
                assert!(trusted_start <= span.start && span.start <= span.end, "literal spans must ascend");
                for found in self.control.find(text, trusted_start..span.start) {
                    self.encode_plain(&text[plain_start..found.range.start], &mut output)?;
                    output.special(found.id);
                    plain_start = found.range.end;
                }
                trusted_start = span.end;
            }
        }
        self.encode_plain(&text[plain_start..], &mut output)?;
        if options.add_special && self.add_eos {
            output.ids.extend(self.special_ids.eos);
        }
        Ok(output.ids)
    }

    /// Encodes text in which control tokens are plain text.
    fn encode_plain(&self, text: &str, output: &mut Output) -> Result<()> {
        if let Model::HuggingFace(_) = self.model {
            return self.encode_words(text, output); // the crate finds user-defined tokens, with their flags
        }
        let mut start = 0;
        for found in self.user_defined.find(text, 0..text.len()) {
            self.encode_words(&text[start..found.range.start], output)?;
            output.special(found.id);
            start = found.range.end;
        }
        self.encode_words(&text[start..], output)
    }

    fn encode_words(&self, text: &str, output: &mut Output) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let (merger, ids) = (&mut output.merger, &mut output.ids);
        match &self.model {
            Model::ByteLevel(model) => model.encode(&self.vocabulary, text, merger, ids),
            Model::SentencePiece(model) => {
                let prefix = self.space_prefix && output.after_special;
                model.encode(&self.vocabulary, text, prefix, merger, ids);
            }
            Model::HuggingFace(model) => model.encode(text, output.at_start, ids)?,
        }
        (output.after_special, output.at_start) = (false, false);
        Ok(())
    }

    /// The text of `ids`: control tokens are left out, bytes that are not UTF-8 become U+FFFD, ids outside the
    /// vocabulary are skipped. Where the tokenizer puts a space before the text, decoding removes it.
    ///
    /// `decode(encode(text)) == text` for text without control tokens, with two exceptions that the models' own
    /// tokenizers share: bytes that a byte-level vocabulary does not have are lost (SmolLM2 lacks U+0004, U+0006,
    /// U+0013, U+0014, U+0016, U+001D and the planes from U+40000), and SentencePiece reads U+2581 as a space.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 5);
        for &id in ids {
            bytes.extend_from_slice(self.text_bytes(id));
        }
        let text = if self.space_prefix { bytes.strip_prefix(b" ").unwrap_or(&bytes) } else { &bytes };
        String::from_utf8_lossy(text).into_owned()
    }

    /// Decodes tokens one at a time, as [`decode`](Self::decode) would decode them together.
    pub fn decode_stream(&self) -> DecodeStream {
        DecodeStream::new(self.space_prefix)
    }

    /// The bytes that token `id` stands for, possibly part of a character; a control token's are its name.
    /// `None` outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        ((id as usize) < self.vocabulary.len()).then(|| self.vocabulary.bytes_of(id))
    }

    /// What `id` adds to decoded text.
    fn text_bytes(&self, id: u32) -> &[u8] {
        match self.token_kind(id) {
            None | Some(TokenKind::Control | TokenKind::Unknown) => &[],
            Some(_) => self.vocabulary.bytes_of(id),
        }
    }

    /// What token `id` is for; `None` outside the vocabulary.
    pub fn token_kind(&self, id: u32) -> Option<TokenKind> {
        ((id as usize) < self.vocabulary.len()).then(|| self.vocabulary.kind(id))
    }

    /// The control or user-defined token spelt `text`, such as `<|im_start|>`.
    pub fn special_token(&self, text: &str) -> Option<u32> {
        let mut ids = self.control.ids().iter().chain(self.user_defined.ids()).copied();
        ids.find(|&id| self.vocabulary.bytes_of(id) == text.as_bytes())
    }

    /// Every control token with its text.
    pub(crate) fn control_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        let text = |&id: &u32| Some((id, std::str::from_utf8(self.vocabulary.bytes_of(id)).ok()?));
        self.control.ids().iter().filter_map(text)
    }

    /// Control tokens that are written out in `text`, as byte ranges, left to right.
    pub(crate) fn find_control(&self, text: &str) -> Vec<Range<usize>> {
        self.control.find(text, 0..text.len()).map(|found| found.range).collect()
    }

    /// Tokens in the vocabulary; ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.special_ids.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.special_ids.eos
    }

    /// The token that fills unused places in a batch.
    pub fn padding(&self) -> Option<u32> {
        self.special_ids.padding
    }

    /// Every token that ends generation (end of text, turn or message), ascending.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_ids
    }

    /// Whether `id` ends generation.
    pub fn is_end(&self, id: u32) -> bool {
        self.end_ids.binary_search(&id).is_ok()
    }

    /// Whether [`EncodeOptions::add_special`] puts BOS first.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether [`EncodeOptions::add_special`] puts EOS last.
    pub fn adds_eos(&self) -> bool {
        self.add_eos
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let model = match self.model {
            Model::ByteLevel(_) => "byte-level BPE",
            Model::SentencePiece(_) => "SentencePiece BPE",
            Model::HuggingFace(_) => "tokenizer.json",
        };
        f.debug_struct("Tokenizer")
            .field("model", &model)
            .field("vocab_size", &self.vocab_size())
            .field("special_ids", &self.special_ids)
            .finish_non_exhaustive()
    }
}

/// Ids so far, and what the next piece of text must know.
struct Output {
    ids: Vec<u32>,
    /// The text that comes starts the input or follows a special token.
    after_special: bool,
    /// Nothing of the text has been encoded yet.
    at_start: bool,
    merger: Merger,
}

impl Output {
    fn special(&mut self, id: u32) {
        self.ids.push(id);
        (self.after_special, self.at_start) = (true, false);
    }
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::InvalidTokenizer { reason: reason.into() }
}

#[cfg(test)]
pub(crate) mod tests;
