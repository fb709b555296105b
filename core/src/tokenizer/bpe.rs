use std::hash::{BuildHasher, RandomState};

use super::merge::{Merger, NO_TOKEN};
use super::pre_tokenize::PreTokenizer;
use super::vocabulary::{Vocabulary, limit};
use crate::{Error, Result};

/// Most merge rules; the largest published list has 514,906.
const MERGES_MAX: usize = 1 << 22;
const VACANT: u32 = u32::MAX;

/// Byte-level byte-pair encoding: split into words, then merge the bytes of each by the file's ranked rules.
pub(super) struct ByteLevelBpe {
    pre_tokenizer: PreTokenizer,
    merges: MergeTable,
    byte_ids: [u32; 256],
}

impl ByteLevelBpe {
    /// # Errors
    /// [`Error::InvalidTokenizer`] for a merge rule that is malformed, doubled, or whose two sides or result are
    /// not tokens. A result is always the longer of the three, so rules cannot form a cycle.
    pub(super) fn new<'a>(
        vocabulary: &Vocabulary,
        merges: impl ExactSizeIterator<Item = &'a str>,
        pre_tokenizer: PreTokenizer,
    ) -> Result<Self> {
        let mut table = MergeTable::with_capacity(merges.len())?;
        let mut bytes = Vec::new();
        for (rank, rule) in merges.enumerate() {
            let invalid = |reason: &str| Error::InvalidTokenizer {
                reason: format!("merge {rank} ({:?}): {reason}", rule.chars().take(100).collect::<String>()),
            };
            // The space that separates; a rule's own spaces are spelt `Ġ`.
            let (left, right) = rule.split_once(' ').ok_or_else(|| invalid("no space between its two sides"))?;
            bytes.clear();
            append(left, &mut bytes);
            let middle = bytes.len();
            append(right, &mut bytes);
            let token = |bytes: &[u8], side: &str| {
                vocabulary.id_of(bytes).ok_or_else(|| invalid(&format!("its {side} is not a token")))
            };
            let pair = (token(&bytes[..middle], "left side")?, token(&bytes[middle..], "right side")?);
            if !table.insert(pair, token(&bytes, "result")?) {
                return Err(invalid("the rule occurs twice"));
            }
        }
        let byte_ids = std::array::from_fn(|byte| vocabulary.id_of(&[byte as u8]).unwrap_or(NO_TOKEN));
        Ok(Self { pre_tokenizer, merges: table, byte_ids })
    }

    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, merger: &mut Merger, ids: &mut Vec<u32>) {
        self.pre_tokenizer.split(text, |word| {
            if self.pre_tokenizer.whole_words
                && let Some(id) = vocabulary.id_of(word.as_bytes())
            {
                ids.push(id);
                return;
            }
            merger.clear();
            for (at, &byte) in word.as_bytes().iter().enumerate() {
                let id = self.byte_ids[byte as usize];
                // A byte that the vocabulary lacks is dropped, as in the tokenizers the models were trained with.
                if id != NO_TOKEN {
                    merger.push(at, 1, id);
                }
            }
            merger.run(|left, right| self.merges.find(left.id, right.id));
            ids.extend(merger.pieces().map(|piece| piece.id));
        });
    }

    /// Every rule as `(left, right)`, best first.
    pub(super) fn merges(&self) -> impl ExactSizeIterator<Item = (u32, u32)> + '_ {
        self.merges.rules.iter().map(|rule| rule.pair)
    }

    pub(super) fn name(&self) -> &'static str {
        self.pre_tokenizer.name()
    }
}

/// Appends the bytes that one side of a rule spells.
fn append(side: &str, bytes: &mut Vec<u8>) {
    if !super::byte_level::decode(side, bytes) {
        bytes.extend_from_slice(side.as_bytes());
    }
}

struct Rule {
    pair: (u32, u32),
    result: u32,
}

/// Rules by rank, and a linear-probing table of ranks keyed by the pair.
struct MergeTable {
    rules: Vec<Rule>,
    slots: Vec<u32>,
    seed: u64,
}

impl MergeTable {
    fn with_capacity(count: usize) -> Result<Self> {
        if count > MERGES_MAX {
            return Err(limit("merges in the tokenizer", count, MERGES_MAX));
        }
        let slots = vec![VACANT; (count * 2).next_power_of_two().max(8)];
        // Odd, and unknown to whoever wrote the file.
        Ok(Self { rules: Vec::with_capacity(count), slots, seed: RandomState::new().hash_one(0u8) | 1 })
    }

    /// `false` when the pair is already there.
    fn insert(&mut self, pair: (u32, u32), result: u32) -> bool {
        let slot = self.slot(pair);
        if self.slots[slot] != VACANT {
            return false;
        }
        self.slots[slot] = self.rules.len() as u32;
        self.rules.push(Rule { pair, result });
        true
    }

    fn slot(&self, pair: (u32, u32)) -> usize {
        let key = u64::from(pair.0) << 32 | u64::from(pair.1);
        let product = u128::from(key ^ self.seed.rotate_left(32)) * u128::from(self.seed);
        let mask = self.slots.len() - 1;
        let mut slot = (product >> 64) as usize ^ product as usize;
        loop {
            slot &= mask;
            match self.slots[slot] {
                VACANT => return slot,
                rank if self.rules[rank as usize].pair == pair => return slot,
                _ => slot += 1,
            }
        }
    }

    /// Rank and result of merging `left` and `right`.
    fn find(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let rank = self.slots[self.slot((left, right))];
        (rank != VACANT).then(|| (rank, self.rules[rank as usize].result))
    }
}
