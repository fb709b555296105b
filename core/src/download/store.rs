use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{Cache, DownloadListener, DownloadOptions, Source};
use crate::pack::{ModelIdentity, RawPack};
use crate::verify::{TrustPolicy, VerifiedPack, verify, verify_pool};
use crate::{CancelToken, Digest, Error, Result};

/// Packs and the pools they need, from anywhere to verified.
#[derive(Clone, Debug)]
pub struct PackStore {
    /// Where downloads go.
    pub cache: Cache,
    /// How to download; `size_bytes_max` also holds for local files.
    pub options: DownloadOptions,
    /// Whose packs are accepted.
    pub trust: TrustPolicy,
    /// Where pools come from, with `{digest}` (`sha256:…`) or `{hex}` in the text; `None` asks beside the pack, see
    /// [`Source::pool`]. Headers are sent to it as to the pack's own server: name only servers that may see them.
    pub pool_source: Option<String>,
}

impl PackStore {
    /// Downloads or reads a pack, which stays hostile until it is verified.
    ///
    /// # Errors
    /// As [`Cache::fetch`], and [`Error::InvalidPack`] or [`Error::UnsupportedPackVersion`] for other files.
    pub fn download(
        &self,
        source: &Source,
        digest: Option<Digest>,
        cancel: &CancelToken,
        listener: &mut dyn DownloadListener,
    ) -> Result<RawPack> {
        let bytes = match source {
            Source::Url(url) => self.cache.fetch(url, digest, &self.options, cancel, listener)?.read()?,
            Source::File(path) => read_file(path, self.options.size_bytes_max)?,
        };
        let raw = RawPack::read(bytes)?;
        match digest {
            Some(expected) if expected != raw.digest() => Err(Error::DigestMismatch { expected, actual: raw.digest() }),
            _ => Ok(raw),
        }
    }

    /// Downloads a pack and, for a gates pack, its pool, and verifies both for `model`. A pool is downloaded once.
    ///
    /// # Errors
    /// As [`download`](Self::download) and [`verify`].
    pub fn load(
        &self,
        source: &Source,
        digest: Option<Digest>,
        model: &ModelIdentity,
        cancel: &CancelToken,
        listener: &mut dyn DownloadListener,
    ) -> Result<VerifiedPack> {
        let raw = self.download(source, digest, cancel, listener)?;
        let pool_digest = match verify(&raw, &self.trust, model, None) {
            // Everything but the pool was checked by now, so the digest is the signer's.
            Err(Error::PoolMissing { digest }) => digest,
            done => return done,
        };
        let pool_source = match &self.pool_source {
            Some(text) => {
                text.replace("{digest}", &pool_digest.to_string()).replace("{hex}", &pool_digest.hex()).parse()?
            }
            None => source.pool(pool_digest),
        };
        let pool = self.download(&pool_source, Some(pool_digest), cancel, listener)?;
        let pool = verify_pool(&pool, &self.trust, model)?;
        verify(&raw, &self.trust, model, Some(&pool))
    }
}

/// Reads a file of at most `limit_bytes`, also if it grows meanwhile.
fn read_file(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut bytes = Vec::new();
    file.take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io(path))?;
    match bytes.len() as u64 {
        actual_bytes if actual_bytes > limit_bytes => Err(Error::TooLarge { actual_bytes, limit_bytes }),
        _ => Ok(bytes),
    }
}
