use std::hash::{BuildHasher, RandomState};

use crate::{Error, Result};

/// Most tokens a vocabulary may have; the largest published ones have 262,144.
pub(super) const TOKENS_MAX: usize = 1 << 22;
/// Most bytes one token may have: longer ones would make every lookup slow. The longest published ones have 512.
pub(super) const TOKEN_BYTES_MAX: usize = 4096;

const VACANT: u32 = u32::MAX;

/// What a token is for; the numbers are those of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenKind {
    /// Ordinary text.
    Normal = 1,
    /// Stands for what the vocabulary cannot spell.
    Unknown = 2,
    /// Controls the model (`<|im_end|>`); never shown, never read from untrusted text.
    Control = 3,
    /// Text that is always kept in one piece (`</table>`).
    UserDefined = 4,
    /// Neither produced nor matched.
    Unused = 5,
    /// One byte (`<0x0A>`).
    Byte = 6,
}

impl TokenKind {
    pub(super) fn from_ggml(number: i32) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// Every token's bytes (what it adds to decoded text) in one allocation, and the way back from bytes to id.
///
/// Lookup is by a table of ids with linear probing: half a million small strings in a `HashMap` would cost
/// more time and memory than the rest of the tokenizer.
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    /// Token `i` is `bytes[bounds[i]..bounds[i + 1]]`.
    bounds: Vec<u32>,
    kinds: Vec<TokenKind>,
    slots: Vec<u32>,
    /// Seeded per process, so that a file cannot be built to make every lookup collide.
    hasher: RandomState,
    token_bytes_max: usize,
}

impl Vocabulary {
    pub(super) fn with_capacity(token_count: usize) -> Result<Self> {
        if token_count > TOKENS_MAX {
            return Err(limit("tokens in the vocabulary", token_count, TOKENS_MAX));
        }
        let mut bounds = Vec::with_capacity(token_count + 1);
        bounds.push(0);
        Ok(Self {
            bytes: Vec::with_capacity(token_count * 8),
            bounds,
            kinds: Vec::with_capacity(token_count),
            slots: Vec::new(),
            hasher: RandomState::new(),
            token_bytes_max: 0,
        })
    }

    /// Appends the next token, whose bytes `write` appends.
    pub(super) fn push(&mut self, kind: TokenKind, write: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let start = self.bytes.len();
        write(&mut self.bytes);
        let length = self.bytes.len() - start;
        if length > TOKEN_BYTES_MAX {
            return Err(limit("bytes in a token", length, TOKEN_BYTES_MAX));
        }
        if self.bytes.len() > u32::MAX as usize {
            return Err(limit("bytes in the vocabulary", self.bytes.len(), u32::MAX as usize));
        }
        self.token_bytes_max = self.token_bytes_max.max(length);
        self.bounds.push(self.bytes.len() as u32);
        self.kinds.push(kind);
        Ok(())
    }

    /// Builds the lookup table over normal tokens, then user-defined ones whose bytes are not taken. Control
    /// tokens are left out: no merge of plain text may end in one.
    pub(super) fn index(&mut self) -> Result<()> {
        self.slots = vec![VACANT; (self.len() * 2).next_power_of_two().max(8)];
        for wanted in [TokenKind::Normal, TokenKind::UserDefined] {
            for id in 0..self.len() as u32 {
                if self.kinds[id as usize] != wanted || self.bytes_of(id).is_empty() {
                    continue;
                }
                let slot = self.slot(self.bytes_of(id));
                if self.slots[slot] == VACANT {
                    self.slots[slot] = id;
                } else if wanted == TokenKind::Normal {
                    let reason = format!("tokens {} and {id} are the same text", self.slots[slot]);
                    return Err(Error::InvalidTokenizer { reason });
                }
            }
        }
        Ok(())
    }

    /// The slot that holds `bytes`, or the vacant one where it would go.
    fn slot(&self, bytes: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(bytes) as usize & mask;
        while self.slots[slot] != VACANT && self.bytes_of(self.slots[slot]) != bytes {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// The token that ordinary text `bytes` is.
    pub(super) fn id_of(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.token_bytes_max {
            return None;
        }
        Some(self.slots[self.slot(bytes)]).filter(|&id| id != VACANT)
    }

    pub(super) fn bytes_of(&self, id: u32) -> &[u8] {
        let id = id as usize;
        &self.bytes[self.bounds[id] as usize..self.bounds[id + 1] as usize]
    }

    pub(super) fn kind(&self, id: u32) -> TokenKind {
        self.kinds[id as usize]
    }

    pub(super) fn set_kind(&mut self, id: u32, kind: TokenKind) {
        self.kinds[id as usize] = kind;
    }

    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Ids of every token of `kind`, ascending.
    pub(super) fn ids_of_kind(&self, kind: TokenKind) -> impl Iterator<Item = u32> + '_ {
        (0..self.len() as u32).filter(move |&id| self.kind(id) == kind)
    }
}

pub(super) fn limit(what: &'static str, actual: usize, limit: usize) -> Error {
    Error::LimitExceeded { what, actual: actual as u64, limit: limit as u64 }
}
