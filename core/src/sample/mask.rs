/// Which tokens may come next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask {
    /// Bit `id % 32` of word `id / 32` is set when the token is allowed.
    words: Vec<u32>,
}

impl TokenMask {
    /// A mask that allows only `ids`.
    pub fn only(ids: impl IntoIterator<Item = u32>) -> Self {
        let mut mask = Self::default();
        for id in ids {
            let word = id as usize / 32;
            if word >= mask.words.len() {
                mask.words.resize(word + 1, 0);
            }
            mask.words[word] |= 1 << (id % 32);
        }
        mask
    }

    #[cfg(feature = "constrain")]
    pub(super) fn from_words(words: &[u32]) -> Self {
        Self { words: words.to_vec() }
    }

    /// Whether `id` is allowed; ids beyond the mask are not.
    pub fn allows(&self, id: u32) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Sets the logits of tokens that are not allowed to -∞.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        for (index, chunk) in logits.chunks_mut(32).enumerate() {
            let word = self.words.get(index).copied().unwrap_or(0);
            if word == 0 {
                chunk.fill(f32::NEG_INFINITY);
            } else if word != u32::MAX {
                for (bit, logit) in chunk.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}
