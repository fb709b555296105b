//! What the example programs share: where models lie, a conversation in the terminal, packs with progress bars.

pub mod packs;
pub mod terminal;

use std::path::{Path, PathBuf};

use edgeweld::Error;

/// The file of a model given by name or path. Names are looked up in `$EDGEWELD_MODELS`, else in `models/`.
///
/// # Errors
/// A sentence that says what to do.
pub fn model_path(model: &str) -> Result<PathBuf, String> {
    let folder = std::env::var_os("EDGEWELD_MODELS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).join("models"),
        PathBuf::from,
    );
    edgeweld::model::find_file(model, &folder).map_err(|error| match error {
        Error::ModelNotFound { .. } => {
            format!("{error}: `cargo xtask models` obtains smollm2-135m-instruct and gemma3-270m")
        }
        other => other.to_string(),
    })
}
