//! Finding models by the names that references and command lines use.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

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

/// The one model in `folders` that `name` means: a file name, or the beginning of one in any spelling
/// (`gemma3-270m` is `gemma-3-270m-q4_k_m.gguf`). The first folder that has one counts.
///
/// # Errors
/// If no file fits, or several in one folder.
pub fn find(name: &str, folders: &[&Path]) -> Result<PathBuf> {
    let wanted = letters(name.strip_suffix(".gguf").unwrap_or(name));
    for folder in folders {
        let files = files(folder)?;
        let stem = |path: &PathBuf| letters(&path.file_stem().unwrap_or_default().to_string_lossy());
        if let Some(exact) = files.iter().find(|path| stem(path) == wanted) {
            return Ok(exact.clone());
        }
        let fitting: Vec<&PathBuf> = files.iter().filter(|path| stem(path).starts_with(&wanted)).collect();
        match fitting[..] {
            [] => {}
            [only] => return Ok(only.clone()),
            _ => bail!("{name:?} could be any of {fitting:?}"),
        }
    }
    bail!("no model file fits {name:?} in {folders:?}; `cargo xtask models` obtains the test models")
}

/// Letters and digits, in lower case.
fn letters(name: &str) -> String {
    name.chars().filter(|char| char.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_file_names_in_any_spelling_and_only_one() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["gemma-3-270m-q4_k_m.gguf", "Smol.Q4_0.gguf", "Smol.Q4_0-long.gguf", "notes-gemma-3.txt"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        let found = |name| find(name, &[Path::new("no such folder"), folder.path()]);
        assert_eq!(found("gemma3-270m").unwrap(), folder.path().join("gemma-3-270m-q4_k_m.gguf"));
        assert_eq!(found("smol-q40.gguf").unwrap(), folder.path().join("Smol.Q4_0.gguf"));
        assert!(found("smol").unwrap_err().to_string().contains("could be any of"));
        assert!(found("notes").unwrap_err().to_string().contains("no model file fits \"notes\""));
    }
}
