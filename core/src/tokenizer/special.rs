use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::vocabulary::{TokenKind, Vocabulary};
use crate::{Error, Result};

/// Finds the tokens of one kind in text: leftmost, then longest, in time linear in the text.
pub(super) struct Matcher {
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

/// A token found in the text.
pub(super) struct Found {
    pub range: Range<usize>,
    pub id: u32,
}

impl Matcher {
    pub(super) fn new(vocabulary: &Vocabulary, kind: TokenKind) -> Result<Self> {
        let ids: Vec<u32> = vocabulary.ids_of_kind(kind).filter(|&id| !vocabulary.bytes_of(id).is_empty()).collect();
        if ids.is_empty() {
            return Ok(Self { automaton: None, ids });
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            // The kind that is built fastest: a vocabulary may have thousands, and texts are short.
            .kind(Some(AhoCorasickKind::NoncontiguousNFA))
            .build(ids.iter().map(|&id| vocabulary.bytes_of(id)))
            .map_err(|error| Error::InvalidTokenizer { reason: format!("special tokens: {error}") })?;
        Ok(Self { automaton: Some(automaton), ids })
    }

    /// Tokens that lie wholly in `text[range]`, left to right; their ranges count from the start of `text`.
    pub(super) fn find<'a>(&'a self, text: &'a str, range: Range<usize>) -> impl Iterator<Item = Found> + 'a {
        let start = range.start;
        self.automaton.iter().flat_map(move |automaton| {
            automaton.find_iter(&text.as_bytes()[range.clone()]).map(move |found| Found {
                range: start + found.start()..start + found.end(),
                id: self.ids[found.pattern().as_usize()],
            })
        })
    }

    /// The ids it finds, ascending.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }
}
