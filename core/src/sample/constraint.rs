use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use super::TokenMask;
use crate::tokenizer::{TokenKind, Tokenizer};
use crate::{Error, Result};

/// Longest schema, expression or grammar.
const SOURCE_BYTES_MAX: usize = 1 << 20;

/// What a model's output must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Constraint {
    /// JSON that this JSON schema (a JSON text) describes, on one line, with a space after commas and colons:
    /// small models that may put spaces anywhere get lost in them. A schema's own `x-guidance` object overrides
    /// that.
    JsonSchema(String),
    /// Text that this regular expression matches from start to end.
    Regex(String),
    /// Text of this grammar, in llguidance's variant of Lark.
    Lark(String),
}

impl Constraint {
    /// JSON that `schema` describes.
    pub fn json_schema(schema: &str) -> Self {
        Self::JsonSchema(schema.to_owned())
    }

    /// Text that `pattern` matches.
    pub fn regex(pattern: &str) -> Self {
        Self::Regex(pattern.to_owned())
    }

    fn grammar(&self) -> Result<TopLevelGrammar> {
        let (Self::JsonSchema(source) | Self::Regex(source) | Self::Lark(source)) = self;
        if source.len() > SOURCE_BYTES_MAX {
            return Err(failed(format!("{} bytes, the limit is {SOURCE_BYTES_MAX}", source.len())));
        }
        match self {
            Self::JsonSchema(schema) => {
                let schema = serde_json::from_str(schema).map_err(|error| failed(format!("schema: {error}")))?;
                Ok(TopLevelGrammar::from_json_schema(with_fixed_spaces(schema)))
            }
            Self::Regex(pattern) => Ok(TopLevelGrammar::from_regex(pattern)),
            Self::Lark(grammar) => Ok(TopLevelGrammar::from_lark(grammar.clone())),
        }
    }
}

/// Adds the writing style to a schema that does not choose its own.
fn with_fixed_spaces(mut schema: serde_json::Value) -> serde_json::Value {
    if let Some(object) = schema.as_object_mut()
        && !object.contains_key("x-guidance")
    {
        let style = serde_json::json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
        object.insert("x-guidance".to_owned(), style);
    }
    schema
}

/// Turns constraints into masks for one tokenizer. Making it sorts the vocabulary (some 0.1 s for 262,144
/// tokens): make one per engine, when the first constraint is used.
pub struct ConstraintCompiler {
    factory: ParserFactory,
}

impl ConstraintCompiler {
    /// # Errors
    /// [`Error::Constraint`] when the tokenizer has no token that ends generation.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let end = tokenizer.eos().or(tokenizer.end_tokens().first().copied());
        let end = end.ok_or_else(|| failed("the tokenizer has no token that ends generation"))?;
        let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32).map(|id| word(tokenizer, id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
        let trie = trie.with_eos_tokens(tokenizer.end_tokens());
        let environment: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(failed)?;
        factory.quiet();
        Ok(Self { factory })
    }

    /// Compiles `constraint` for one generation.
    ///
    /// # Errors
    /// [`Error::Constraint`] when it cannot be read or needs more than the limits on grammars.
    pub fn compile(&self, constraint: &Constraint) -> Result<ConstraintState> {
        let parser = self.factory.create_parser(constraint.grammar()?).map_err(failed)?;
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(reason) => Err(failed(reason)),
            None => Ok(ConstraintState { matcher }),
        }
    }
}

impl std::fmt::Debug for ConstraintCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConstraintCompiler").finish_non_exhaustive()
    }
}

/// A token as the trie wants it: its bytes, special ones marked so that no text matches them, and nothing for
/// tokens that text never has.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    match tokenizer.token_kind(id) {
        Some(TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte) => bytes.to_vec(),
        Some(TokenKind::Control) => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
        _ => Vec::new(),
    }
}

/// Where one generation is in its constraint.
pub struct ConstraintState {
    matcher: Matcher,
}

impl ConstraintState {
    /// The tokens that may come next: an end token among them when the text so far is complete, only end tokens
    /// when nothing may follow.
    ///
    /// # Errors
    /// [`Error::Constraint`] when the constraint needs more than its limits.
    pub fn mask(&mut self) -> Result<TokenMask> {
        let mask = self.matcher.compute_mask_or_eos().map_err(failed)?;
        Ok(TokenMask::from_words(mask.as_slice()))
    }

    /// Takes note of the token that was chosen.
    ///
    /// # Errors
    /// [`Error::Constraint`] for a token that the mask does not allow.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        self.matcher.consume_token(id).map_err(failed)
    }

    /// Whether the text so far is complete; more may follow.
    pub fn is_accepting(&mut self) -> bool {
        self.matcher.is_accepting().unwrap_or(false)
    }

    /// Whether the text is complete and nothing may follow.
    pub fn is_finished(&self) -> bool {
        self.matcher.is_stopped()
    }
}

impl std::fmt::Debug for ConstraintState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConstraintState").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    let mut reason = format!("{error:#}");
    reason.truncate(reason.floor_char_boundary(1000));
    Error::Constraint { reason }
}
