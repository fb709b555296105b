//! Saved prefixes: the KV cache of a session as a file.
//!
//! ```text
//! "EWPREFIX" · version u32 · header length u32 · header (JSON) · state
//! ```
//!
//! All integers are little-endian. The header names what the cache was computed by (base model, pack, mode, device and
//! type: each lays its cache out its own way), its token ids, and the digest of the state; a session of anything else refuses it.

use std::io::Write as _;
use std::path::Path;

use super::Session;
use crate::atomic_file::write_atomically;
use crate::merge::MergeMode;
use crate::{Digest, Error, Result};

const MAGIC: &[u8; 8] = b"EWPREFIX";
const VERSION: u32 = 2;
/// Header bytes: room for the ids of the longest contexts (at most 8 characters each), but no more.
const HEADER_BYTES_MAX: usize = 16 << 20;

#[derive(serde::Serialize, serde::Deserialize)]
struct Header {
    base: Digest,
    /// The pack whose weights computed it.
    pack: Option<Digest>,
    /// How that pack was in the model.
    mode: Option<MergeMode>,
    /// [`Device::name`](super::Device::name)
    device: String,
    /// [`KvType::name`](crate::model::KvType::name)
    kv_type: String,
    tokens: Vec<u32>,
    state: Digest,
}

impl Session {
    /// Writes the KV cache and its tokens to `path`, atomically. A later [`load_prefix`](Self::load_prefix) makes
    /// prompts that begin with these tokens start there.
    ///
    /// # Errors
    /// [`Error::Io`]; errors of the backend.
    pub fn save_prefix(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut state = Vec::new();
        self.runner.write_state(&mut state)?;
        let header = Header {
            base: self.engine.identity().base,
            pack: self.pack.as_ref().map(|pack| pack.digest),
            mode: self.pack.as_ref().map(|pack| pack.mode),
            device: self.engine.0.device.name().to_owned(),
            kv_type: self.engine.0.kv_type.name().to_owned(),
            tokens: self.cached.clone(),
            state: Digest::of(&state),
        };
        let header =
            serde_json::to_vec(&header).map_err(|error| Error::InvalidPrefix { reason: format!("header: {error}") })?;
        let path = path.as_ref();
        write_atomically(path, |file| {
            let parts = [MAGIC, &VERSION.to_le_bytes()[..], &(header.len() as u32).to_le_bytes(), &header, &state];
            parts.into_iter().try_for_each(|part| file.write_all(part)).map_err(Error::io(path))
        })
    }

    /// Replaces the KV cache by the one saved at `path`; returns its token count.
    ///
    /// # Errors
    /// [`Error::PrefixMismatch`] if it was saved for another model, device or type of KV cache, or with a pack or mode that is not in the
    /// model now; [`Error::InvalidPrefix`] if it is damaged; [`Error::ContextFull`] if it does not fit; [`Error::Io`].
    /// The session is then as before, or empty if the state itself was refused.
    pub fn load_prefix(&mut self, path: impl AsRef<Path>) -> Result<usize> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let (header, state) = read(&bytes)?;
        // The cache may be of the base or of the pack in the model: each serves the turns that its model answers.
        let pack = match (header.pack, self.engine.pack()) {
            (None, _) => None,
            (Some(_), pack) => pack,
        };
        let none = || "none".to_owned();
        let fields = [
            ("base model", self.engine.identity().base.to_string(), header.base.to_string()),
            (
                "pack",
                pack.as_ref().map_or_else(none, |pack| pack.digest.to_string()),
                header.pack.map_or_else(none, |pack| pack.to_string()),
            ),
            (
                "mode",
                pack.as_ref().map_or_else(none, |pack| pack.mode.to_string()),
                header.mode.map_or_else(none, |mode| mode.to_string()),
            ),
            ("device", self.engine.0.device.name().to_owned(), header.device.clone()),
            ("KV cache", self.engine.0.kv_type.name().to_owned(), header.kv_type.clone()),
        ];
        for (field, expected, actual) in fields {
            if expected != actual {
                return Err(Error::PrefixMismatch { field, expected, actual });
            }
        }
        let vocab_size = self.engine.tokenizer().vocab_size();
        if header.tokens.iter().any(|&id| id as usize >= vocab_size) {
            return Err(Error::InvalidPrefix { reason: "a token id is outside the vocabulary".to_owned() });
        }
        if header.tokens.len() > self.runner.capacity() {
            return Err(Error::ContextFull { required: header.tokens.len(), available: self.runner.capacity() });
        }
        self.switch(pack)?;
        self.clear();
        self.runner.read_state(header.tokens.len(), state)?;
        self.cached = header.tokens;
        Ok(self.cached.len())
    }
}

fn read(bytes: &[u8]) -> Result<(Header, &[u8])> {
    let invalid = |reason: &str| Error::InvalidPrefix { reason: reason.to_owned() };
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| invalid("not a prefix file"))?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(|| invalid("is cut off"))?;
    let (header_len, rest) = rest.split_first_chunk::<4>().ok_or_else(|| invalid("is cut off"))?;
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(invalid(&format!("version {version} is not supported (this build reads {VERSION})")));
    }
    let header_len = u32::from_le_bytes(*header_len) as usize;
    if header_len > HEADER_BYTES_MAX || header_len > rest.len() {
        return Err(invalid("the header is cut off"));
    }
    let (header, state) = rest.split_at(header_len);
    let header: Header = serde_json::from_slice(header).map_err(|error| invalid(&format!("header: {error}")))?;
    if Digest::of(state) != header.state {
        return Err(invalid("the state's digest does not match"));
    }
    Ok((header, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Vec<u8> {
        let header = Header {
            base: Digest::of(b"base"),
            pack: None,
            mode: None,
            device: "cpu".to_owned(),
            kv_type: "f16".to_owned(),
            tokens: vec![1, 2],
            state: Digest::of(b"state"),
        };
        let header = serde_json::to_vec(&header).unwrap();
        [MAGIC, &VERSION.to_le_bytes()[..], &(header.len() as u32).to_le_bytes(), &header, b"state"].concat()
    }

    #[test]
    fn reads_what_was_written() {
        let bytes = file();
        let (header, state) = read(&bytes).unwrap();
        assert_eq!((header.tokens, state), (vec![1, 2], &b"state"[..]));
    }

    #[test]
    fn rejects_every_truncation_and_bit_flip() {
        let bytes = file();
        for len in 0..bytes.len() {
            assert!(matches!(read(&bytes[..len]), Err(Error::InvalidPrefix { .. })), "{len} bytes");
        }
        for bit in 0..(bytes.len() * 8) {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // A flip in the header's tokens or base is caught by the model's own checks, not here.
            if let Ok((header, _)) = read(&flipped) {
                assert!(header.state == Digest::of(b"state"));
            }
        }
    }
}
