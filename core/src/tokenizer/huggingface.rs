use std::collections::HashMap;
use std::path::Path;

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

use super::gguf::{byte_of, is_turn_mark};
use super::sentence_piece::SPACE_MARK;
use super::vocabulary::{TOKENS_MAX, Vocabulary, limit};
use super::{Model, SpecialIds, TokenKind, Tokenizer, byte_level, invalid};
use crate::{Digest, Error, Result};

/// Largest tokenizer.json that is read; Gemma's has 33 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Control tokens that begin a text, as published models call them.
const BEGIN_TOKENS: [&str; 4] = ["<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>"];
/// Control tokens that end a text, likewise; the file itself does not say which is meant.
const EOS_TOKENS: [&str; 5] = ["</s>", "<eos>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>"];

/// The `tokenizers` crate, made to read control tokens as plain text.
pub(super) struct Encoder {
    first: tokenizers::Tokenizer,
    /// For text after a special token, where it differs: without the space that only the input's start gets.
    rest: Option<tokenizers::Tokenizer>,
    file_digest: Digest,
}

impl Encoder {
    pub(super) fn encode(&self, text: &str, at_start: bool, ids: &mut Vec<u32>) -> Result<()> {
        let tokenizer = self.rest.as_ref().filter(|_| !at_start).unwrap_or(&self.first);
        let encoding = tokenizer.encode_fast(text, false).map_err(|error| invalid(error.to_string()))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    pub(super) fn file_digest(&self) -> Digest {
        self.file_digest
    }
}

impl Tokenizer {
    /// The tokenizer in a Hugging Face `tokenizer.json`, of any model whose decoder is byte-level or
    /// SentencePiece-like.
    ///
    /// Such a file does not name its special tokens: BOS and EOS are those that its post-processor adds, else
    /// the tokens that published models use. Building takes longer than from GGUF metadata.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::TooLarge`] for a file of more than 256 MiB, [`Error::InvalidTokenizer`] for one that
    /// is not a tokenizer of those kinds.
    pub fn from_json(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let actual_bytes = std::fs::metadata(path).map_err(Error::io(path))?.len();
        if actual_bytes > FILE_BYTES_MAX {
            return Err(Error::TooLarge { actual_bytes, limit_bytes: FILE_BYTES_MAX });
        }
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| invalid(error.to_string()))?;
        tokenizer.set_encode_special_tokens(true);
        // Limits for training must neither cut nor fill a prompt.
        tokenizer.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        tokenizer.with_padding(None);

        let decoder = serde_json::to_string(&tokenizer.get_decoder()).map_err(|error| invalid(error.to_string()))?;
        let has = |text: &str| decoder.contains(text);
        let byte_level = has("\"ByteLevel\"");
        if !byte_level && !has("\"Metaspace\"") && !has(&SPACE_MARK.to_string()) {
            return Err(invalid("the decoder is neither byte-level nor SentencePiece-like"));
        }
        let space_prefix = has("\"Strip\"") || has("\"Metaspace\"") && !has("\"prepend_scheme\":\"never\"");
        let vocabulary = vocabulary(&tokenizer, byte_level)?;

        let named = |names: &[&str]| {
            let control = |id: &u32| vocabulary.kind(*id) == TokenKind::Control;
            names.iter().find_map(|name| tokenizer.token_to_id(name).filter(control))
        };
        let added = added_around(&tokenizer)?;
        let special_ids = SpecialIds {
            bos: added.0.or_else(|| named(&BEGIN_TOKENS)),
            eos: added.1.or_else(|| named(&EOS_TOKENS)),
            unknown: tokenizer.token_to_id("<unk>"),
            padding: named(&["<pad>", "<|pad|>"]),
        };
        let flags = (added.0.is_some(), added.1.is_some(), space_prefix);
        let model = Encoder { rest: without_prefix(&tokenizer), first: tokenizer, file_digest: Digest::of(&bytes) };
        Self::assemble(Model::HuggingFace(Box::new(model)), vocabulary, special_ids, Vec::new(), flags)
    }
}

/// The single tokens that the post-processor puts before and after a text.
fn added_around(tokenizer: &tokenizers::Tokenizer) -> Result<(Option<u32>, Option<u32>)> {
    let ids = |add_special| match tokenizer.encode_fast("a", add_special) {
        Ok(encoding) => Ok(encoding.get_ids().to_vec()),
        Err(error) => Err(invalid(error.to_string())),
    };
    let (plain, with) = (ids(false)?, ids(true)?);
    let start = with.windows(plain.len().max(1)).position(|window| window == plain).unwrap_or(0);
    let end = (start + plain.len()).min(with.len());
    match (&with[..start], &with[end..]) {
        (before @ ([] | [_]), after @ ([] | [_])) => Ok((before.first().copied(), after.first().copied())),
        _ => Err(invalid("the post-processor adds more than one token on a side")),
    }
}

/// A copy that puts no space before text, for files that do so at the input's start only.
fn without_prefix(tokenizer: &tokenizers::Tokenizer) -> Option<tokenizers::Tokenizer> {
    let Some(PreTokenizerWrapper::Metaspace(metaspace)) = tokenizer.get_pre_tokenizer() else { return None };
    (metaspace.get_prepend_scheme() == PrependScheme::First).then(|| {
        let mut metaspace = metaspace.clone();
        metaspace.set_prepend_scheme(PrependScheme::Never);
        let mut rest = tokenizer.clone();
        rest.with_pre_tokenizer(Some(metaspace));
        rest
    })
}

/// Every token's bytes and kind. Ids without a token are unused.
fn vocabulary(tokenizer: &tokenizers::Tokenizer, byte_level: bool) -> Result<Vocabulary> {
    let texts: HashMap<u32, String> = tokenizer.get_vocab(true).into_iter().map(|(text, id)| (id, text)).collect();
    let token_count = texts.keys().max().map_or(0, |&id| id as usize + 1);
    if token_count == 0 {
        return Err(invalid("the vocabulary is empty"));
    }
    if token_count > TOKENS_MAX {
        return Err(limit("tokens in the vocabulary", token_count, TOKENS_MAX));
    }
    let added = tokenizer.get_added_tokens_decoder();
    let mut vocabulary = Vocabulary::with_capacity(token_count)?;
    for id in 0..token_count as u32 {
        let Some(text) = texts.get(&id) else {
            vocabulary.push(TokenKind::Unused, |_| ())?;
            continue;
        };
        let (kind, byte) = match (added.get(&id), byte_of(text)) {
            (Some(token), _) if token.special || is_turn_mark(text) => (TokenKind::Control, None),
            (Some(_), _) => (TokenKind::UserDefined, None),
            (None, byte @ Some(_)) if !byte_level => (TokenKind::Byte, byte),
            _ => (TokenKind::Normal, None),
        };
        vocabulary.push(kind, |bytes| match (kind, byte) {
            (_, Some(byte)) => bytes.push(byte),
            (TokenKind::Normal, None) if byte_level && byte_level::decode(text, bytes) => (),
            (TokenKind::Normal, None) if !byte_level => {
                bytes.extend_from_slice(text.replace(SPACE_MARK, " ").as_bytes());
            }
            _ => bytes.extend_from_slice(text.as_bytes()),
        })?;
    }
    Ok(vocabulary)
}
