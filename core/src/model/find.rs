use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The file of a model that a person named: a path of an existing file, or the name of a GGUF file in `folder`, as
/// [`name_fits`] reads it. A file with exactly that name wins over longer ones.
///
/// # Errors
/// [`Error::ModelNotFound`] if nothing fits, [`Error::ModelAmbiguous`] if several files do, [`Error::Io`] if the
/// folder exists and cannot be read.
pub fn find_file(model: &str, folder: &Path) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let mut fitting: Vec<PathBuf> = files(folder)?.into_iter().filter(|file| name_fits(model, file)).collect();
    if let Some(exact) = fitting.iter().position(|file| letters(&stem(file)) == letters(without_extension(model))) {
        return Ok(fitting.swap_remove(exact));
    }
    match fitting.len() {
        0 => Err(Error::ModelNotFound { model: model.to_owned(), folder: folder.to_owned() }),
        1 => Ok(fitting.remove(0)),
        _ => {
            let candidates = fitting.iter().map(|file| stem(file)).collect();
            Err(Error::ModelAmbiguous { model: model.to_owned(), candidates })
        }
    }
}

/// Whether `name` can mean `file`: it is the beginning of the file's name in any spelling of case and punctuation, so
/// `gemma3-270m` fits `gemma-3-270m-q4_k_m.gguf`.
pub fn name_fits(name: &str, file: &Path) -> bool {
    let wanted = letters(without_extension(name));
    !wanted.is_empty() && letters(&stem(file)).starts_with(&wanted)
}

/// The GGUF files directly in `folder`, by name; none if there is no such folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut files: Vec<PathBuf> = entries.map_err(Error::io(folder))?;
    files.retain(|path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")));
    files.sort();
    Ok(files)
}

fn without_extension(name: &str) -> &str {
    name.strip_suffix(".gguf").unwrap_or(name)
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Letters and digits, in lower case.
fn letters(name: &str) -> String {
    name.chars().filter(|char| char.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in ["gemma-3-270m-q4_k_m.gguf", "Smol.Q4_0.gguf", "Smol.Q4_0-long.gguf", "notes-gemma-3.txt"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        folder
    }

    #[test]
    fn names_fit_file_names_in_any_spelling_and_exact_ones_first() {
        let folder = folder();
        let found = |name| find_file(name, folder.path()).unwrap();
        assert_eq!(found("gemma3-270m"), folder.path().join("gemma-3-270m-q4_k_m.gguf"));
        assert_eq!(found("smol-q40.gguf"), folder.path().join("Smol.Q4_0.gguf"));
        let path = folder.path().join("notes-gemma-3.txt");
        assert_eq!(found(path.to_str().unwrap()), path, "a path needs no name");
    }

    #[test]
    fn rejects_names_that_fit_no_file_or_several() {
        let folder = folder();
        let missing = |name: &str, folder: &Path| matches!(find_file(name, folder), Err(Error::ModelNotFound { .. }));
        assert!(missing("notes", folder.path()));
        assert!(missing("", folder.path()));
        assert!(missing("gemma", Path::new("no such folder")));
        let error = find_file("smol", folder.path()).unwrap_err();
        assert!(
            matches!(error, Error::ModelAmbiguous { candidates, .. } if candidates == ["Smol.Q4_0-long", "Smol.Q4_0"])
        );
    }
}
