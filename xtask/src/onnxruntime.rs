//! ONNX Runtime's shared library, as the Python package `onnxruntime` carries it. Only that file of it is used.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{python, shell, wheel};

const PACKAGE: &str = "onnxruntime==1.32.0";

/// The library: `EDGEWELD_ONNXRUNTIME`, else fetched once into the build folder.
pub(crate) fn library() -> Result<PathBuf> {
    if let Some(library) = shell::folder_from("EDGEWELD_ONNXRUNTIME") {
        return Ok(library);
    }
    let (member, name) = if cfg!(target_os = "linux") {
        ("onnxruntime/capi/libonnxruntime.so.1.32.0", "libonnxruntime.so")
    } else if cfg!(target_os = "macos") {
        ("onnxruntime/capi/libonnxruntime.1.32.0.dylib", "libonnxruntime.dylib")
    } else if cfg!(windows) {
        ("onnxruntime/capi/onnxruntime.dll", "onnxruntime.dll")
    } else {
        bail!("{PACKAGE} is not built for this system; name a library in EDGEWELD_ONNXRUNTIME");
    };
    let folder = shell::build_folder().join("xtask").join(PACKAGE.replace("==", "-"));
    let library = folder.join(name);
    if library.is_file() {
        return Ok(library);
    }
    fs::create_dir_all(&folder)?;
    python::download(PACKAGE, &folder, &["--only-binary=:all:"])?;
    let package = wheel::find(&folder, PACKAGE).with_context(|| format!("pip left no wheel of {PACKAGE}"))?;
    // Beside its final path, then renamed: a kill leaves no half library.
    let partial = library.with_extension("part");
    wheel::append_member(&package, member, &mut File::create(&partial)?)?;
    fs::rename(&partial, &library)?;
    fs::remove_file(package)?;
    Ok(library)
}
