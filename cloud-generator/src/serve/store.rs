use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use edgeweld::Digest;

use crate::files::write_atomically;
use crate::{Error, Result};

/// Files named by their digest: `sha256/<hex>.pack`, `sha256/<hex>.pool`, and `requests/<hex>`, which holds the digest of
/// the pack that a request gave. A pool lies beside the packs that need it, so the folder also serves `file://` sources.
///
/// Files appear whole and are never changed, so any number of servers may share a folder.
#[derive(Clone, Debug)]
pub struct Store {
    files: PathBuf,
    requests: PathBuf,
}

/// What a stored file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A dense or gates pack.
    Pack,
    /// An expert pool.
    Pool,
}

impl Kind {
    /// Its part of URLs.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Pack => "packs",
            Self::Pool => "pools",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Pool => "pool",
        }
    }
}

impl Store {
    /// Opens a folder, which is made if there is none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(folder: &Path) -> Result<Self> {
        let store = Self { files: folder.join("sha256"), requests: folder.join("requests") };
        for folder in [&store.files, &store.requests] {
            fs::create_dir_all(folder).map_err(Error::io(folder))?;
            // A folder that cannot be written shows at the start, not at the first request.
            tempfile::tempfile_in(folder).map_err(Error::io(folder))?;
        }
        Ok(store)
    }

    /// Where the file with this digest is, if it is there.
    pub fn path(&self, kind: Kind, digest: Digest) -> PathBuf {
        self.files.join(format!("{}.{}", digest.hex(), kind.extension()))
    }

    /// Stores a file; one that is there already stays.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn put(&self, kind: Kind, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let path = self.path(kind, digest);
        if !fs::metadata(&path).is_ok_and(|metadata| metadata.len() == bytes.len() as u64) {
            write_atomically(&path, bytes)?;
        }
        Ok(digest)
    }

    /// The file with this digest and its size; `None` if it is not there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open_file(&self, kind: Kind, digest: Digest) -> Result<Option<(File, u64)>> {
        let path = self.path(kind, digest);
        let opened = File::open(&path).and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
        present(opened, &path)
    }

    /// The bytes of the file with this digest; `None` if it is not there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read(&self, kind: Kind, digest: Digest) -> Result<Option<Vec<u8>>> {
        let path = self.path(kind, digest);
        present(fs::read(&path), &path)
    }

    /// The pack that this request gave before.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn recall(&self, request: Digest) -> Result<Option<Digest>> {
        let path = self.requests.join(request.hex());
        Ok(present(fs::read_to_string(&path), &path)?.and_then(|text| text.trim().parse().ok()))
    }

    /// Notes which pack a request gave; the pack must be stored before.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remember(&self, request: Digest, pack: Digest) -> Result<()> {
        write_atomically(&self.requests.join(request.hex()), format!("{pack}\n").as_bytes())
    }
}

fn present<T>(result: std::io::Result<T>, path: &Path) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_digest_and_kind_and_stored_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let digest = store.put(Kind::Pack, b"pack").unwrap();
        let written = fs::metadata(store.path(Kind::Pack, digest)).unwrap().modified().unwrap();
        assert_eq!(store.put(Kind::Pack, b"pack").unwrap(), digest);
        assert_eq!(fs::metadata(store.path(Kind::Pack, digest)).unwrap().modified().unwrap(), written);
        assert_eq!(store.read(Kind::Pack, digest).unwrap().unwrap(), b"pack");
        assert!(store.read(Kind::Pool, digest).unwrap().is_none(), "a pack is no pool");
        assert_eq!(fs::read_dir(folder.path().join("sha256")).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_request_is_remembered_and_a_damaged_note_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (request, pack) = (Digest::of(b"request"), Digest::of(b"pack"));
        assert_eq!(store.recall(request).unwrap(), None);
        store.remember(request, pack).unwrap();
        assert_eq!(store.recall(request).unwrap(), Some(pack));
        fs::write(folder.path().join("requests").join(request.hex()), "sha256:").unwrap();
        assert_eq!(store.recall(request).unwrap(), None);
    }
}
