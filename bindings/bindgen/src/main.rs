//! `edgeweld-bindgen LIBRARY [--check]`: writes the committed bindings of a built, unstripped library, or fails if one is not
//! what it would write. Why not the `uniffi` crate's own command line? Its features would be unified into the library's
//! `uniffi` in workspace builds.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use uniffi_bindgen::bindings::{GenerateOptions, TargetLanguage, generate};

/// `(generated file, where it is committed)`
const FILES: &[(&str, &str)] = &[
    ("dev/edgeweld/edgeweld_ffi.kt", "bindings/kotlin/src/generated/kotlin/dev/edgeweld/edgeweld_ffi.kt"),
    ("edgeweld_ffi.py", "bindings/python/edgeweld/edgeweld_ffi.py"),
    ("Edgeweld.swift", "ios/Sources/Edgeweld/Generated/Edgeweld.swift"),
    ("EdgeweldFFI.h", "ios/Sources/EdgeweldFFI/EdgeweldFFI.h"),
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (library, check) = match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [library] => (*library, false),
        [library, "--check"] => (*library, true),
        _ => bail!("usage: edgeweld-bindgen LIBRARY [--check]"),
    };
    let folder = tempfile::tempdir()?;
    let out = folder.path().to_str().context("the temporary folder's name is not UTF-8")?;
    generate(GenerateOptions {
        languages: vec![TargetLanguage::Kotlin, TargetLanguage::Python, TargetLanguage::Swift],
        source: library.into(),
        out_dir: out.into(),
        config_override: None,
        format: false,
        crate_filter: Some("edgeweld_ffi".to_owned()),
        metadata_no_deps: true,
    })
    .with_context(|| format!("{library}: a stripped library has no metadata to generate from"))?;

    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (generated, committed) in FILES {
        let text = tidied(&folder.path().join(generated))?;
        let path = workspace.join(committed);
        if !check {
            fs::create_dir_all(path.parent().context("a file has a folder")?)?;
            fs::write(&path, text).with_context(|| (*committed).to_owned())?;
        } else if fs::read_to_string(&path).unwrap_or_default() != text {
            bail!("{committed} is not what the library's surface gives: run `cargo xtask bindings`");
        }
    }
    Ok(())
}

/// A generated text without the spaces that some templates leave at line ends, which reviews would show as noise.
fn tidied(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines: Vec<_> = text.trim_end().lines().map(str::trim_end).collect();
    Ok(lines.join("\n") + "\n")
}
