//! The ONNX Runtime backend in comparisons.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use edgeweld::model::{Activations, ExportOptions, OnnxOptions, export_onnx};

/// The library that `cargo xtask` fetched, or any other that `EDGEWELD_ONNXRUNTIME` names.
///
/// # Errors
/// If the variable is not set.
pub fn options() -> Result<OnnxOptions> {
    let library = std::env::var_os("EDGEWELD_ONNXRUNTIME");
    let library = library.context("EDGEWELD_ONNXRUNTIME names no library; `cargo xtask` sets it")?;
    Ok(OnnxOptions { library: Some(library.into()), ..OnnxOptions::default() })
}

/// Where the exported folder of a model file lies: `onnx/` beside it.
pub fn folder(model: &Path) -> PathBuf {
    model.with_file_name("onnx").join(model.file_stem().unwrap_or_default())
}

/// Exports a model file into its [`folder`].
///
/// # Errors
/// Those of [`export_onnx`].
pub fn export(model: &Path, activations: Activations) -> Result<PathBuf> {
    let folder = folder(model);
    let options = ExportOptions { activations, ..ExportOptions::default() };
    export_onnx(model, &folder, &options).with_context(|| folder.display().to_string())?;
    Ok(folder)
}
