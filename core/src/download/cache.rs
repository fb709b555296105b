//! The cache folder. Files are named by their digest, so they never change and never conflict.
//!
//! ```text
//! sha256/<hex>            finished files
//! partial/<key>.part      bytes so far; key = digest's hex, or hash of the URL where no digest is known
//! partial/<key>.json      which version of the file they belong to
//! urls/<key>.json         entity tag and digest of a URL without a known digest
//! locks/<two digits>      one writer per key; 256 files at most, never deleted (deleting a lock file is a race)
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::partial::{Partial, remove_if_there, remove_partial, replace_locked};
use super::transfer::{Outcome, Transfer};
use super::{DownloadListener, DownloadOptions};
use crate::{CancelToken, Digest, Error, Result};

const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// A content-addressed folder of downloaded files, safe to share between threads and processes.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    size_bytes_max: u64,
}

/// A finished file. While this value lives, no process evicts the file.
#[derive(Debug)]
pub struct CachedFile {
    path: PathBuf,
    digest: Digest,
    file: File,
}

impl CachedFile {
    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The digest of its bytes, computed when it was opened.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// All its bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read(&self) -> Result<Vec<u8>> {
        // From the open file, not by name: these are the bytes that were hashed.
        let mut bytes = Vec::new();
        (&self.file).rewind().and_then(|()| (&self.file).read_to_end(&mut bytes)).map_err(Error::io(&self.path))?;
        Ok(bytes)
    }
}

#[derive(Serialize, Deserialize)]
struct UrlEntry {
    etag: String,
    digest: Digest,
}

impl Cache {
    /// Opens or creates a cache of at most `size_bytes_max`, partial files included.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(root: impl Into<PathBuf>, size_bytes_max: u64) -> Result<Self> {
        let root = root.into();
        for folder in ["sha256", "partial", "urls", "locks"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).map_err(Error::io(folder))?;
        }
        Ok(Self { root, size_bytes_max })
    }

    /// The file with this digest, if it is here. Its bytes are hashed; a damaged file is deleted and counts as absent.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn find(&self, digest: Digest) -> Result<Option<CachedFile>> {
        let path = self.file_path(digest);
        let Ok(mut file) = File::open(&path) else { return Ok(None) };
        file.lock_shared().map_err(Error::io(&path))?;
        // Eviction may have come between opening and locking; then the name is gone.
        if !path.exists() {
            return Ok(None);
        }
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = file.read(&mut buffer).map_err(Error::io(&path))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
        }
        if Digest::from_hasher(hasher) != digest {
            log::warn!("{}: damaged, deleted", path.display());
            remove_if_there(&path)?;
            return Ok(None);
        }
        // The time of last use, for eviction; a read-only cache merely forgets it.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(CachedFile { path, digest, file }))
    }

    /// Downloads `url`, unless the cache has it. With a digest the file is content: the cache answers without the network, and any
    /// other bytes are refused. Without one the server is asked whether its file changed.
    ///
    /// # Errors
    /// [`Error::Network`], [`Error::HttpStatus`], [`Error::TooLarge`], [`Error::DiskFull`], [`Error::DigestMismatch`],
    /// [`Error::Cancelled`], [`Error::InvalidOption`] (proxy), [`Error::Io`]. Bytes that arrived stay for the next call, except after
    /// `DigestMismatch` and `TooLarge`.
    pub fn fetch(
        &self,
        url: &str,
        digest: Option<Digest>,
        options: &DownloadOptions,
        cancel: &CancelToken,
        listener: &mut dyn DownloadListener,
    ) -> Result<CachedFile> {
        super::source::checked_url(url, options.danger_allow_http)?;
        let url_key = Digest::of(url.as_bytes()).hex();
        let key = digest.map_or_else(|| format!("url-{url_key}"), |digest| digest.hex());
        // Held to the end: whoever waits for the same file finds it finished.
        let _lock = self.lock(digest.map_or(&url_key[..2], |_| &key[..2]), cancel)?;
        let entry_path = self.root.join("urls").join(format!("{url_key}.json"));
        let part_path = self.root.join("partial").join(format!("{key}.part"));
        let mut cached = None;
        if let Some(digest) = digest {
            if let Some(file) = self.find(digest)? {
                // A kill just after the rename leaves the sidecar.
                remove_partial(&part_path)?;
                return Ok(file);
            }
        } else if let Ok(entry) = serde_json::from_slice::<UrlEntry>(&fs::read(&entry_path).unwrap_or_default()) {
            cached = self.find(entry.digest)?.map(|file| (entry.etag, file));
        }
        let mut partial = Partial::open(part_path, cancel)?;
        partial.validators.cached_etag = cached.as_ref().map(|(etag, _)| etag.clone());
        let folder = self.root.join("partial");
        let mut transfer = Transfer { url, expected: digest, options, cancel, listener, folder: &folder };
        let outcome = match transfer.run(&mut partial) {
            Ok(outcome) => outcome,
            Err(error @ (Error::DigestMismatch { .. } | Error::TooLarge { .. })) => {
                partial.discard()?;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        if let (Outcome::NotModified, Some((_, file))) = (outcome, cached) {
            partial.discard()?;
            return Ok(file);
        }
        let arrived = partial.digest();
        let etag = partial.validators.etag.clone();
        partial.commit(&self.file_path(arrived))?;
        if let (None, Some(etag)) = (digest, etag) {
            let entry = UrlEntry { etag, digest: arrived };
            replace_locked(&entry_path, &serde_json::to_vec(&entry).expect("two plain fields are JSON"))?;
        }
        let path = self.file_path(arrived);
        let missing = || Error::io(&path)(std::io::ErrorKind::NotFound.into());
        let file = self.find(arrived)?.ok_or_else(missing)?;
        self.evict()?;
        Ok(file)
    }

    /// Deletes the file with this digest, if it is here.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, digest: Digest) -> Result<()> {
        remove_if_there(&self.file_path(digest))
    }

    /// Deletes the files that were used least recently until the cache keeps its size; never one that is in use. Each
    /// [`fetch`](Self::fetch) does this. Returns the bytes deleted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn evict(&self) -> Result<u64> {
        let mut files = Vec::new();
        for folder in ["sha256", "partial"] {
            let folder = self.root.join(folder);
            for entry in fs::read_dir(&folder).map_err(Error::io(&folder))? {
                let entry = entry.map_err(Error::io(&folder))?;
                // Another process may have deleted it meanwhile.
                if let Ok(metadata) = entry.metadata() {
                    files.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len(), entry.path()));
                }
            }
        }
        let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
        let mut deleted = 0;
        files.sort();
        for (_, len, path) in files {
            if total <= self.size_bytes_max {
                break;
            }
            if self.delete_unused(&path)? {
                total -= len;
                deleted += len;
            }
        }
        Ok(deleted)
    }

    fn delete_unused(&self, path: &Path) -> Result<bool> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        let is_finished = path.parent().is_some_and(|folder| folder.ends_with("sha256"));
        let lock_path = if is_finished {
            path.to_path_buf()
        } else {
            // `url-<hex>.part` and `<hex>.part` alike.
            let hex = name.strip_prefix("url-").unwrap_or(name);
            self.root.join("locks").join(hex.get(..2).unwrap_or("00"))
        };
        let lock = if is_finished { File::open(&lock_path) } else { open_lock(&lock_path) };
        let Ok(lock) = lock else { return Ok(false) };
        if lock.try_lock().is_err() {
            return Ok(false);
        }
        remove_if_there(path)?;
        Ok(true)
    }

    fn file_path(&self, digest: Digest) -> PathBuf {
        self.root.join("sha256").join(digest.hex())
    }

    fn lock(&self, name: &str, cancel: &CancelToken) -> Result<File> {
        let path = self.root.join("locks").join(name);
        let file = open_lock(&path).map_err(Error::io(&path))?;
        loop {
            cancel.check()?;
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_INTERVAL),
                Err(TryLockError::Error(error)) => return Err(Error::io(&path)(error)),
            }
        }
    }
}

fn open_lock(path: &Path) -> std::io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}
