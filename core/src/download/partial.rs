//! A file that is being downloaded: bytes, their running hash, and a sidecar that says what they are a part of.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::atomic_file::sync_folder;
use crate::{CancelToken, Digest, Error, Result};

/// What identifies a version of a file on the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Validators {
    /// A strong entity tag.
    pub(super) etag: Option<String>,
    /// Size of the whole file.
    pub(super) size_bytes: Option<u64>,
    /// Entity tag of the finished file in the cache, for `If-None-Match`.
    #[serde(skip)]
    pub(super) cached_etag: Option<String>,
}

pub(super) struct Partial {
    path: PathBuf,
    sidecar: PathBuf,
    file: File,
    hasher: Sha256,
    len: u64,
    pub(super) validators: Validators,
    /// Bytes that an earlier run or connection left, which this one did not see arrive.
    pub(super) is_resumed: bool,
}

impl Partial {
    /// Opens `path` and hashes what an earlier run left. The sidecar is written before the first byte of a body, so
    /// bytes without one are from nowhere and are dropped.
    pub(super) fn open(path: PathBuf, cancel: &CancelToken) -> Result<Self> {
        let sidecar = path.with_extension("json");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io(&path))?;
        let validators = fs::read(&sidecar).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut partial = Self {
            path,
            sidecar,
            file,
            hasher: Sha256::new(),
            len: 0,
            validators: Validators::default(),
            is_resumed: false,
        };
        match validators {
            Some(validators) => {
                partial.validators = validators;
                partial.rehash(cancel)?;
            }
            None => partial.clear()?,
        }
        Ok(partial)
    }

    fn rehash(&mut self, cancel: &CancelToken) -> Result<()> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            cancel.check()?;
            let count = self.file.read(&mut buffer).map_err(Error::io(&self.path))?;
            if count == 0 {
                break;
            }
            self.hasher.update(&buffer[..count]);
            self.len += count as u64;
        }
        if self.validators.size_bytes.is_some_and(|size| self.len > size) {
            return self.clear();
        }
        self.is_resumed = self.len > 0;
        Ok(())
    }

    /// Drops all bytes.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map_err(Error::io(&self.path))?;
        self.hasher = Sha256::new();
        self.len = 0;
        self.is_resumed = false;
        let cached_etag = self.validators.cached_etag.take();
        self.validators = Validators { cached_etag, ..Validators::default() };
        Ok(())
    }

    /// Drops all bytes and records which version of the file the next ones belong to.
    ///
    /// First the bytes go, then the sidecar changes: a kill in between leaves an empty file.
    pub(super) fn restart(&mut self, etag: Option<String>, size_bytes: Option<u64>) -> Result<()> {
        self.clear()?;
        // A weak tag names equal meaning, not equal bytes.
        self.validators.etag = etag.filter(|etag| !etag.starts_with("W/"));
        self.validators.size_bytes = size_bytes;
        self.save_validators()
    }

    /// Records the size when a server said it late.
    pub(super) fn learn_size(&mut self, size_bytes: Option<u64>) -> Result<()> {
        if self.validators.size_bytes.is_none() && size_bytes.is_some() {
            self.validators.size_bytes = size_bytes;
            self.save_validators()?;
        }
        Ok(())
    }

    fn save_validators(&self) -> Result<()> {
        let bytes = serde_json::to_vec(&self.validators).expect("two plain fields are JSON");
        replace_locked(&self.sidecar, &bytes)
    }

    /// Appends bytes of the body.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| disk_error(&self.path, bytes.len() as u64, error))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Whether all bytes are there, as far as the server said how many there are.
    pub(super) fn is_complete(&self) -> bool {
        self.len > 0 && self.validators.size_bytes == Some(self.len)
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::from_hasher(self.hasher.clone())
    }

    /// Makes the bytes durable and gives them their final name in one step.
    pub(super) fn commit(self, target: &Path) -> Result<()> {
        self.file.sync_all().map_err(|error| disk_error(&self.path, 0, error))?;
        fs::rename(&self.path, target).map_err(Error::io(target))?;
        sync_folder(target).map_err(Error::io(target))?;
        remove_partial(&self.path)
    }

    /// Deletes bytes and sidecar.
    pub(super) fn discard(self) -> Result<()> {
        remove_partial(&self.path)
    }
}

/// Deletes a partial file and whatever lies beside it.
pub(super) fn remove_partial(path: &Path) -> Result<()> {
    remove_if_there(path)?;
    remove_if_there(&path.with_extension("json"))?;
    remove_if_there(&path.with_extension("tmp"))
}

/// Writes a small file so that a kill leaves the old or the new one. The key's lock is held, so the temporary file has
/// a fixed name, which the next run writes over: kills leave no litter.
pub(super) fn replace_locked(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| disk_error(path, bytes.len() as u64, error))
}

pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

/// Bytes that this user may still write to the file system of `path`; `None` where the system does not say.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
        // SAFETY: `path` is a NUL-terminated string, and all-zero bytes are a valid `statvfs` for the call to fill.
        let status = unsafe {
            let mut status: libc::statvfs = std::mem::zeroed();
            (libc::statvfs(path.as_ptr(), &mut status) == 0).then_some(status)?
        };
        #[allow(clippy::unnecessary_cast, reason = "the fields have other widths on other systems")]
        Some((status.f_bavail as u64).saturating_mul(status.f_frsize as u64))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

fn disk_error(path: &Path, required_bytes: u64, error: io::Error) -> Error {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        let available_bytes = path.parent().and_then(free_bytes).unwrap_or(0);
        return Error::DiskFull { required_bytes, available_bytes };
    }
    Error::io(path)(error)
}
