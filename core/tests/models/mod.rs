//! Where the real models lie.

use std::path::PathBuf;

/// SmolLM2-135M-Instruct, Q4_1.
pub(crate) const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// Gemma 3 270M, base, Q4_K_M.
#[allow(dead_code, reason = "not every test program uses both")]
pub(crate) const GEMMA3: &str = "gemma-3-270m-q4_k_m.gguf";

/// The path of one of them, in `EDGEWELD_MODELS` or `models/`.
pub(crate) fn path(file: &str) -> PathBuf {
    let folder = std::env::var_os("EDGEWELD_MODELS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../models")), PathBuf::from);
    let path = folder.join(file);
    assert!(path.is_file(), "{} does not exist: run `cargo xtask models`", path.display());
    path
}
