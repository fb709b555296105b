//! `cargo xtask check-cuda`: whether the code for NVIDIA GPUs compiles, on a machine without CUDA.

use std::fs;

use anyhow::{Context, Result};

use crate::shell;

/// Stands in for nvcc: answers what build scripts ask and makes empty outputs, so that only Rust code is checked.
/// Compiling the tensor library's kernels takes over an hour on two cores.
const NVCC: &str = r#"#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.48"; exit ;;
  --list-gpu-code) echo sm_80; exit ;;
esac
for last in "$@"; do :; done
while [ $# -gt 1 ]; do
  case "$1" in
    -o) : > "$2" ;;
    --output-directory) : > "$2/$(basename "$last" .cu).ptx" ;;
  esac
  shift
done
"#;

/// Type-checks the generator with the feature `cuda`, in a target folder of its own.
pub(crate) fn check() -> Result<()> {
    let home = shell::build_folder().join("xtask/cuda");
    let nvcc = home.join("bin/nvcc");
    for folder in ["bin", "include", "lib64"] {
        fs::create_dir_all(home.join(folder))?;
    }
    fs::write(&nvcc, NVCC).with_context(|| nvcc.display().to_string())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&nvcc, fs::Permissions::from_mode(0o755))?;
    }
    let mut check = shell::cargo(&["check", "--package", "edgeweld-cloud", "--features", "cuda"]);
    check.env("NVCC", &nvcc).env("CUDA_HOME", &home).env("CUDA_COMPUTE_CAP", "80");
    shell::run(check.env("CUDARC_CUDA_VERSION", "13000").env("CARGO_TARGET_DIR", home.join("target")))
}
