//! Finding models by the names that references and command lines use.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use edgeweld::model::find_file;

/// Where `cargo xtask models` puts models: `EDGEWELD_MODELS`, else `models/` in the workspace.
pub fn folder() -> PathBuf {
    std::env::var_os("EDGEWELD_MODELS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("models"), PathBuf::from)
}

/// The GGUF files directly in `folder`, by name. A folder that does not exist has none.
///
/// # Errors
/// If an existing folder cannot be read.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    files.sort();
    Ok(files)
}

/// The one model in `folders` that `name` means, as [`find_file`] reads it. The first folder that has one counts.
///
/// # Errors
/// If no file fits, or several in one folder.
pub fn find(name: &str, folders: &[&Path]) -> Result<PathBuf> {
    for folder in folders {
        match find_file(name, folder) {
            Err(edgeweld::Error::ModelNotFound { .. }) => {}
            found => return Ok(found?),
        }
    }
    bail!("no model file fits {name:?} in {folders:?}; `cargo xtask models` obtains the test models")
}
