use super::bpe::ByteLevelBpe;
use super::pre_tokenize::PreTokenizer;
use super::sentence_piece::{SPACE_MARK, SentencePiece};
use super::vocabulary::Vocabulary;
use super::{Model, SpecialIds, TokenKind, Tokenizer, byte_level, invalid};
use crate::Result;
use crate::gguf::Metadata;

impl Tokenizer {
    /// The tokenizer in a GGUF file's metadata (`tokenizer.ggml.*`).
    ///
    /// `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE) are read. A `gpt2` file without
    /// `tokenizer.ggml.pre` is split like GPT-2, with a warning in the log.
    ///
    /// # Errors
    /// [`Error::InvalidTokenizer`](crate::Error::InvalidTokenizer) for a model or pre-tokenizer that is not known,
    /// lists of different lengths, doubled tokens, ids outside the vocabulary and merges that do not fit it;
    /// [`Error::InvalidMetadata`](crate::Error::InvalidMetadata) for a missing key;
    /// [`Error::LimitExceeded`](crate::Error::LimitExceeded) for absurd sizes.
    pub fn from_gguf(metadata: Metadata<'_>) -> Result<Self> {
        let model = metadata.str("tokenizer.ggml.model")?;
        let pre_tokenizer = match model {
            "gpt2" => Some(pre_tokenizer(metadata)?),
            "llama" => None,
            other => return Err(invalid(format!("tokenizer model {other:?} is not supported (gpt2 and llama are)"))),
        };
        let mut vocabulary = vocabulary(metadata, pre_tokenizer.is_some())?;
        let token_count = vocabulary.len() as u32;

        let id = |key: &str| match metadata.opt_u32(key)? {
            Some(id) if id >= token_count => Err(invalid(format!("{key} is {id}, the vocabulary has {token_count}"))),
            id => Ok(id),
        };
        let special_ids = SpecialIds {
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos: id("tokenizer.ggml.eos_token_id")?,
            unknown: id("tokenizer.ggml.unknown_token_id")?,
            padding: id("tokenizer.ggml.padding_token_id")?,
        };
        let turn_ends = [id("tokenizer.ggml.eot_token_id")?, id("tokenizer.ggml.eom_token_id")?];
        // Converters have marked these as ordinary text; they must never be read from, or shown as, text.
        for id in turn_ends.into_iter().chain([special_ids.bos, special_ids.eos]).flatten() {
            vocabulary.set_kind(id, TokenKind::Control);
        }
        vocabulary.index()?;

        let space_prefix =
            pre_tokenizer.is_none() && metadata.opt_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let bos_wanted = pre_tokenizer.as_ref().is_none_or(|pre_tokenizer| pre_tokenizer.add_bos);
        let add_bos = metadata.opt_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(bos_wanted);
        let add_eos = metadata.opt_bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);

        let model = match pre_tokenizer {
            Some(pre_tokenizer) => {
                let merges = metadata.strings("tokenizer.ggml.merges")?;
                Model::ByteLevel(ByteLevelBpe::new(&vocabulary, merges, pre_tokenizer)?)
            }
            None => {
                let scores = metadata.f32s("tokenizer.ggml.scores")?;
                Model::SentencePiece(SentencePiece::new(&vocabulary, &scores, special_ids.unknown)?)
            }
        };
        let end_ids = turn_ends.into_iter().flatten().collect();
        Self::assemble(model, vocabulary, special_ids, end_ids, (add_bos, add_eos, space_prefix))
    }
}

fn pre_tokenizer(metadata: Metadata<'_>) -> Result<PreTokenizer> {
    let name = metadata.opt_str("tokenizer.ggml.pre")?.unwrap_or_else(|| {
        log::warn!("the model file does not name its pre-tokenizer; text is split like GPT-2's");
        "default"
    });
    PreTokenizer::named(name).ok_or_else(|| {
        let name: String = name.chars().take(100).collect();
        invalid(format!("pre-tokenizer {name:?} is not supported"))
    })
}

/// Every token's bytes and kind; not yet indexed.
fn vocabulary(metadata: Metadata<'_>, byte_level: bool) -> Result<Vocabulary> {
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    let kinds = metadata.opt_i32s("tokenizer.ggml.token_type")?;
    if tokens.len() == 0 {
        return Err(invalid("the vocabulary is empty"));
    }
    if let Some(kinds) = &kinds
        && kinds.len() != tokens.len()
    {
        return Err(invalid(format!("{} token types for {} tokens", kinds.len(), tokens.len())));
    }
    let mut vocabulary = Vocabulary::with_capacity(tokens.len())?;
    for (id, text) in tokens.enumerate() {
        let kind = match &kinds {
            Some(kinds) => TokenKind::from_ggml(kinds[id]),
            None if !byte_level && byte_of(text).is_some() => TokenKind::Byte,
            None => TokenKind::Normal,
        };
        let kind = if kind == TokenKind::UserDefined && is_turn_mark(text) { TokenKind::Control } else { kind };
        let byte = if kind == TokenKind::Byte { byte_of(text) } else { None };
        if kind == TokenKind::Byte && byte.is_none() {
            return Err(invalid(format!("token {id} is a byte but not spelt <0x00> to <0xFF>")));
        }
        vocabulary.push(kind, |bytes| match (kind, byte) {
            (_, Some(byte)) => bytes.push(byte),
            (TokenKind::Normal | TokenKind::Unused, None) if byte_level => {
                if !byte_level::decode(text, bytes) {
                    bytes.extend_from_slice(text.as_bytes());
                }
            }
            (TokenKind::Normal | TokenKind::Unused, None) => {
                for (index, part) in text.split(SPACE_MARK).enumerate() {
                    if index > 0 {
                        bytes.push(b' ');
                    }
                    bytes.extend_from_slice(part.as_bytes());
                }
            }
            _ => bytes.extend_from_slice(text.as_bytes()),
        })?;
    }
    Ok(vocabulary)
}

/// The byte of a token spelt `<0x0A>`.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Whether a token marks turns although its file calls it user-defined: early converters did so.
pub(super) fn is_turn_mark(text: &str) -> bool {
    matches!(text, "<start_of_turn>" | "<end_of_turn>") || text.starts_with("<|") && text.ends_with("|>")
}
