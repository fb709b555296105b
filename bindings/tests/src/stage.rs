use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use edgeweld::Digest;
use edgeweld::generate::{Engine, LoadOptions};

use crate::{packs, server};

/// Names and values that the other languages read; each line of the file is `name=value`, with `\n` and `\\` escaped.
pub type Facts = BTreeMap<&'static str, String>;

/// What the scenario plays on.
pub struct Stage {
    /// The model, the server's address, the trusted key, the prompt.
    pub facts: Facts,
}

impl Stage {
    /// Makes packs for the real SmolLM2 and starts the server.
    ///
    /// # Errors
    /// If the model is missing (`cargo xtask models`) or cannot be loaded.
    pub fn new() -> Result<Self> {
        let model = model()?;
        let engine = Engine::load(&model, &LoadOptions { threads: Some(1), ..Default::default() })?;
        let packs = packs::Packs::new(&engine)?;
        let good = Digest::of(&packs.good);
        let facts = [
            ("model", model.display().to_string()),
            ("base_digest", engine.identity().base.to_string()),
            ("trusted_key", packs::trusted().public_key().to_string()),
            ("prompt", packs::PROMPT.to_owned()),
            ("pack_digest", good.to_string()),
            ("huge_size_bytes", server::HUGE_SIZE_BYTES.to_string()),
            ("url", server::start(packs)?),
        ];
        Ok(Self { facts: facts.into() })
    }

    /// Writes the facts for the other languages.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(facts: &Facts, path: &Path) -> Result<()> {
        let mut text = String::new();
        for (name, value) in facts {
            writeln!(text, "{name}={}", value.replace('\\', "\\\\").replace('\n', "\\n"))?;
        }
        Ok(std::fs::write(path, text)?)
    }
}

fn model() -> Result<PathBuf> {
    let folder = std::env::var_os("EDGEWELD_MODELS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models")), PathBuf::from);
    let path = std::path::absolute(folder.join("SmolLM2-135M-Instruct.Q4_1.gguf"))?;
    ensure!(path.is_file(), "{} does not exist: run `cargo xtask models`", path.display());
    Ok(path)
}
