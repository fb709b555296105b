use sha2::{Digest as _, Sha256};

use super::{Model, Tokenizer};
use crate::Digest;

impl Tokenizer {
    /// Identity of the tokenizer: equal digests encode and decode alike. Computed on first use.
    ///
    /// SHA-256 over, in this order, integers little-endian:
    ///
    /// | part | bytes |
    /// |---|---|
    /// | `edgeweld tokenizer 1\n` | the text |
    /// | model | `gpt2 ` and the splitting rule, `llama`, or `json`; then `\n` |
    /// | flags | add BOS, add EOS, space prefix: one byte each, 0 or 1 |
    /// | BOS, EOS, unknown token | `u32` each, `0xffffffff` for none |
    /// | token count | `u32` |
    /// | each token | length `u32`, kind (`u8`, the numbers of `tokenizer.ggml.token_type`), bytes it decodes to |
    /// | `gpt2`: merges | count `u32`, then left and right id (`u32` each), best first |
    /// | `llama`: scores | one `u32` per token that falls as the score rises (the sortable form of its `f32`, inverted) |
    /// | `json`: file | SHA-256 of the tokenizer.json, 32 bytes |
    pub fn digest(&self) -> Digest {
        *self.digest.get_or_init(|| {
            let mut hasher = Sha256::new();
            hasher.update(b"edgeweld tokenizer 1\n");
            match &self.model {
                Model::ByteLevel(model) => hasher.update(format!("gpt2 {}\n", model.name())),
                Model::SentencePiece(_) => hasher.update(b"llama\n"),
                Model::HuggingFace(_) => hasher.update(b"json\n"),
            }
            hasher.update([self.add_bos, self.add_eos, self.space_prefix].map(u8::from));
            let special = self.special_ids;
            for id in [special.bos, special.eos, special.unknown] {
                hasher.update(id.unwrap_or(u32::MAX).to_le_bytes());
            }
            // One update per token would cost more than the hashing.
            let mut buffer = Vec::with_capacity(1 << 16);
            buffer.extend((self.vocab_size() as u32).to_le_bytes());
            let flush = |buffer: &mut Vec<u8>, hasher: &mut Sha256, least: usize| {
                if buffer.len() >= least {
                    hasher.update(&*buffer);
                    buffer.clear();
                }
            };
            for id in 0..self.vocab_size() as u32 {
                let bytes = self.vocabulary.bytes_of(id);
                buffer.extend((bytes.len() as u32).to_le_bytes());
                buffer.push(self.vocabulary.kind(id) as u8);
                buffer.extend_from_slice(bytes);
                flush(&mut buffer, &mut hasher, 1 << 15);
            }
            match &self.model {
                Model::ByteLevel(model) => {
                    buffer.extend((model.merges().len() as u32).to_le_bytes());
                    for (left, right) in model.merges() {
                        buffer.extend(left.to_le_bytes());
                        buffer.extend(right.to_le_bytes());
                        flush(&mut buffer, &mut hasher, 1 << 15);
                    }
                }
                Model::SentencePiece(model) => {
                    for rank in model.ranks() {
                        buffer.extend(rank.to_le_bytes());
                        flush(&mut buffer, &mut hasher, 1 << 15);
                    }
                }
                Model::HuggingFace(model) => buffer.extend_from_slice(model.file_digest().as_bytes()),
            }
            flush(&mut buffer, &mut hasher, 0);
            Digest::from_hasher(hasher)
        })
    }
}
