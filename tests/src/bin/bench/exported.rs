//! Models as folders for ONNX Runtime.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

/// Writes a model file as a folder for ONNX Runtime, in a process of its own: a process's peak memory counts from what its
/// parent had.
pub(crate) fn export(model: &Path, int8_activations: bool) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("export").arg(model).args(int8_activations.then_some("--int8-activations"));
    ensure!(command.status()?.success(), "cannot export {}", model.display());
    Ok(())
}

/// What [`export`] starts.
#[cfg(feature = "onnx")]
pub(crate) fn export_here(model: &Path, int8_activations: bool) -> Result<()> {
    use edgeweld::model::Activations;
    let activations = if int8_activations { Activations::Int8 } else { Activations::Exact };
    edgeweld_tests::onnx::export(model, activations).map(drop)
}

/// The folder of a model file that was exported.
#[cfg(feature = "onnx")]
pub(crate) fn exported(model: &Path) -> PathBuf {
    edgeweld_tests::onnx::folder(model)
}

#[cfg(not(feature = "onnx"))]
pub(crate) fn export_here(_: &Path, _: bool) -> Result<()> {
    anyhow::bail!("built without feature `onnx`")
}

#[cfg(not(feature = "onnx"))]
pub(crate) fn exported(model: &Path) -> PathBuf {
    model.to_owned()
}
