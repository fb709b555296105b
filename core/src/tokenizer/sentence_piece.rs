use std::borrow::Cow;

use super::merge::{Merger, NO_TOKEN};
use super::vocabulary::{TokenKind, Vocabulary};
use crate::{Error, Result};

/// How SentencePiece spells a space inside a token.
pub(super) const SPACE_MARK: char = '\u{2581}';

/// SentencePiece BPE: merges the pair whose union is the best-scored token, over the whole text. Tokens are
/// kept with plain spaces in place of the space mark.
pub(super) struct SentencePiece {
    /// Per token: its score turned into a rank, best (highest score) first.
    ranks: Vec<u32>,
    byte_ids: [u32; 256],
    unknown: Option<u32>,
}

impl SentencePiece {
    /// # Errors
    /// [`Error::InvalidTokenizer`] when there is not one score per token, a score is NaN, or there is neither an
    /// unknown token nor all byte tokens.
    pub(super) fn new(vocabulary: &Vocabulary, scores: &[f32], unknown: Option<u32>) -> Result<Self> {
        if scores.len() != vocabulary.len() {
            let reason = format!("{} scores for {} tokens", scores.len(), vocabulary.len());
            return Err(Error::InvalidTokenizer { reason });
        }
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(Error::InvalidTokenizer { reason: format!("the score of token {id} is not a number") });
        }
        let mut byte_ids = [NO_TOKEN; 256];
        for id in vocabulary.ids_of_kind(TokenKind::Byte) {
            if let &[byte] = vocabulary.bytes_of(id) {
                byte_ids[byte as usize] = id;
            }
        }
        if unknown.is_none() && byte_ids.contains(&NO_TOKEN) {
            let reason = "there is neither an unknown token nor a token for every byte".to_owned();
            return Err(Error::InvalidTokenizer { reason });
        }
        Ok(Self { ranks: scores.iter().map(|&score| rank_of(score)).collect(), byte_ids, unknown })
    }

    /// Encodes `text`, with one space before it when `space_prefix`.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        space_prefix: bool,
        merger: &mut Merger,
        ids: &mut Vec<u32>,
    ) {
        let mut text = Cow::Borrowed(text);
        if text.contains(SPACE_MARK) {
            text = Cow::Owned(text.replace(SPACE_MARK, " "));
        }
        if space_prefix {
            text.to_mut().insert(0, ' ');
        }
        merger.clear();
        for (at, character) in text.char_indices() {
            let length = character.len_utf8();
            let id = vocabulary.id_of(&text.as_bytes()[at..at + length]).unwrap_or(NO_TOKEN);
            merger.push(at, length, id);
        }
        merger.run(|left, right| {
            let bytes = &text.as_bytes()[left.start as usize..(right.start + right.len) as usize];
            vocabulary.id_of(bytes).map(|id| (self.ranks[id as usize], id))
        });
        let mut after_unknown = false;
        for piece in merger.pieces() {
            let bytes = &text.as_bytes()[piece.start as usize..][..piece.len as usize];
            let spelt = piece.id == NO_TOKEN && bytes.iter().all(|&byte| self.byte_ids[byte as usize] != NO_TOKEN);
            if spelt {
                ids.extend(bytes.iter().map(|&byte| self.byte_ids[byte as usize]));
            } else if piece.id != NO_TOKEN {
                ids.push(piece.id);
            } else if let Some(unknown) = self.unknown
                && !after_unknown
            {
                ids.push(unknown);
            }
            after_unknown = piece.id == NO_TOKEN && !spelt;
        }
    }

    /// Every token's rank, for the digest.
    pub(super) fn ranks(&self) -> &[u32] {
        &self.ranks
    }
}

/// Maps scores to integers so that a higher score is a lower rank.
fn rank_of(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // -0 becomes 0
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_scores_rank_first() {
        let scores = [f32::INFINITY, 2.5, 0.0, -0.5, -1000.0, f32::NEG_INFINITY];
        assert!(scores.map(rank_of).is_sorted_by(|a, b| a < b));
        assert_eq!(rank_of(0.0), rank_of(-0.0));
    }
}
