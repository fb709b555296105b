use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Writes `path` so that a kill at any moment leaves the old file or the new one, never a part: `write` fills a
/// temporary sibling, which is synced and then renamed over `path`. What killed writers of `path` left is removed.
///
/// # Errors
/// [`Error::Io`], or what `write` returns; the temporary file is then removed.
pub(crate) fn write_atomically(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    remove_abandoned(path);
    let (temporary, file) = create(path)?;
    let result = fill(&temporary, file, write).and_then(|file| {
        fs::rename(&temporary, path).map_err(Error::io(path))?;
        // Locked until here, so that nobody takes it for abandoned.
        drop(file);
        Ok(())
    });
    if result.is_err() {
        // The first error is the one worth reporting.
        let _ = fs::remove_file(&temporary);
        return result;
    }
    sync_folder(path).map_err(Error::io(path))
}

fn fill(temporary: &Path, file: File, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<File> {
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(|error| Error::io(temporary)(error.into_error()))?;
    file.sync_all().map_err(Error::io(temporary))?;
    Ok(file)
}

/// A new sibling that no other writer of this or another process uses, locked as long as it is written.
fn create(path: &Path) -> Result<(PathBuf, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut name = prefix(path);
        name.push(format!("{}.{}{SUFFIX}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(name);
        // The name may be left from a killed process that had the same id.
        let file = File::options().write(true).create(true).truncate(true).open(&temporary);
        let file = file.map_err(Error::io(&temporary))?;
        // A file system without locks only keeps what killed writers leave.
        let locked = file.lock().is_ok();
        // Another process may have removed it between creation and lock.
        if !locked || temporary.exists() {
            return Ok((temporary, file));
        }
    }
}

/// Removes temporary siblings whose writer is gone: nobody holds their lock.
fn remove_abandoned(path: &Path) {
    let prefix = prefix(path);
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let (name, prefix) = (name.as_encoded_bytes(), prefix.as_encoded_bytes());
        if !(name.starts_with(prefix) && name.ends_with(SUFFIX.as_bytes())) {
            continue;
        }
        let path = entry.path();
        let abandoned = File::options().write(true).open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if abandoned {
            // What stays costs only space, until the next write.
            let _ = fs::remove_file(path);
        }
    }
}

const SUFFIX: &str = ".tmp";

fn prefix(path: &Path) -> OsString {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".");
    name
}

/// Makes the rename itself durable; only Unix can open a folder for that.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn replaces_the_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for text in ["first and longer", "second"] {
            write_atomically(&path, |file| file.write_all(text.as_bytes()).map_err(Error::io(&path))).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_a_living_writers_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let write =
            |text: &'static [u8]| write_atomically(&path, |file| file.write_all(text).map_err(Error::io("file")));
        fs::write(folder.path().join(".file.1.0.tmp"), "left").unwrap();
        fs::write(folder.path().join(".file2.1.0.tmp"), "of another file").unwrap();
        let living = create(&path).unwrap();
        write(b"new").unwrap();
        assert!(living.0.exists());
        assert!(!folder.path().join(".file.1.0.tmp").exists());
        assert!(folder.path().join(".file2.1.0.tmp").exists());
    }

    #[test]
    fn failure_keeps_the_old_file_and_leaves_no_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        let failed = write_atomically(&path, |file| {
            file.write_all(b"half").map_err(Error::io(&path))?;
            Err(Error::Cancelled)
        });
        assert!(matches!(failed, Err(Error::Cancelled)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
