use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use edgeweld::tokenizer::{EncodeOptions, Tokenizer};

/// This repository's own pages and prompts, one after the other: text for measurements that everybody has.
///
/// # Errors
/// If a file cannot be read.
pub fn repository_text() -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let mut paths: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .into_iter()
        .map(|name| root.join(name))
        .collect();
    for folder in ["docs", "docs/adr", "examples/prompts"] {
        let entries = fs::read_dir(root.join(folder)).with_context(|| folder.to_owned())?;
        let mut files: Vec<PathBuf> =
            entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>().context(folder)?;
        files.retain(|path| {
            path.extension().is_some_and(|extension| ["md", "txt", "jsonl"].iter().any(|e| extension == *e))
        });
        files.sort();
        paths.extend(files);
    }
    let texts = paths.iter().map(|path| fs::read_to_string(path).with_context(|| path.display().to_string()));
    Ok(texts.collect::<Result<Vec<_>>>()?.join("\n\n"))
}

/// The beginning of `text` that has `count` tokens.
///
/// # Errors
/// If the text has fewer.
pub fn text_of_tokens(tokenizer: &Tokenizer, text: &str, count: usize) -> Result<String> {
    let ids = tokenizer.encode(text, EncodeOptions { add_special: false, parse_special: false })?;
    let ids = ids.get(..count).with_context(|| format!("the text has {} tokens, not {count}", ids.len()))?;
    Ok(tokenizer.decode(ids))
}
