//! `cargo xtask bindings`: the committed bindings are what the generator makes of the library.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Built, Scope, emptied, folder};
use crate::shell;

/// `(language, generated file, where it is committed)`
const FILES: &[(&str, &str, &str)] = &[
    ("kotlin", "dev/edgeweld/edgeweld_ffi.kt", "bindings/kotlin/src/generated/kotlin/dev/edgeweld/edgeweld_ffi.kt"),
    ("python", "edgeweld_ffi.py", "bindings/python/edgeweld/edgeweld_ffi.py"),
    ("swift", "Edgeweld.swift", "ios/Sources/Edgeweld/Generated/Edgeweld.swift"),
    ("swift", "EdgeweldFFI.h", "ios/Sources/EdgeweldFFI/EdgeweldFFI.h"),
];

/// Generates every file of the table and calls `each(new text, committed path)`.
fn generate(scope: Scope, mut each: impl FnMut(&str, &Path) -> Result<()>) -> Result<()> {
    let library = Built::new(scope)?.library();
    let out = emptied(folder().join("bindings"))?;
    for language in ["kotlin", "python", "swift"] {
        let mut run = shell::cargo(&["run", "--quiet", "--package", "edgeweld-bindgen", "--"]);
        shell::run(run.arg(&library).arg(language).arg(out.join(language)))?;
    }
    for (language, generated, committed) in FILES {
        let path = out.join(language).join(generated);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        // Some templates leave spaces at line ends, which reviews would show as noise.
        let lines: Vec<_> = text.trim_end().lines().map(str::trim_end).collect();
        each(&(lines.join("\n") + "\n"), &shell::workspace().join(committed))?;
    }
    Ok(())
}

/// Writes the bindings.
pub(crate) fn write(scope: Scope) -> Result<()> {
    generate(scope, |text, path| {
        fs::create_dir_all(path.parent().context("a file has a folder")?)?;
        fs::write(path, text).with_context(|| path.display().to_string())
    })
}

/// Fails if a committed file is not what would be written.
pub(crate) fn check(scope: Scope) -> Result<()> {
    generate(scope, |text, path| {
        if fs::read_to_string(path).unwrap_or_default() != text {
            bail!("{} is not what the library's surface gives: run `cargo xtask bindings`", path.display());
        }
        Ok(())
    })
}
