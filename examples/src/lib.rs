//! What the example programs share: where models lie.

use std::path::{Path, PathBuf};

/// Models that `cargo xtask models` obtains: `(name, file)`.
const MODELS: [(&str, &str); 2] =
    [("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf"), ("gemma3-270m", "gemma-3-270m-q4_k_m.gguf")];

/// The file of a model given by name or path. Names are looked up in `$EDGEWELD_MODELS`, else in `models/`.
///
/// # Errors
/// A sentence that says what to do.
pub fn model_path(model: &str) -> Result<PathBuf, String> {
    let Some((_, file)) = MODELS.iter().find(|(name, _)| *name == model) else {
        let path = Path::new(model);
        return match path.is_file() {
            true => Ok(path.to_owned()),
            false => {
                Err(format!("{model} is neither a GGUF file nor a known model ({})", MODELS.map(|m| m.0).join(", ")))
            }
        };
    };
    let folder = std::env::var_os("EDGEWELD_MODELS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).join("models"),
        PathBuf::from,
    );
    let path = folder.join(file);
    match path.is_file() {
        true => Ok(path),
        false => Err(format!("{} does not exist: run `cargo xtask models`", path.display())),
    }
}
