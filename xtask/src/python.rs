//! Python, used only to fetch model packages and to run peers and fixture scripts.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Folders of scripts that make committed fixtures.
const FIXTURES: [&str; 2] = ["tests/fixtures", "cloud-generator/tests/fixtures"];

/// A Python 3 that has pip: `EDGEWELD_PYTHON`, `python3` or `python`, else a private virtual environment of it.
pub(crate) fn with_pip() -> Result<OsString> {
    let python = interpreter()?;
    if shell::succeeds(&mut shell::command(&python, &["-m", "pip", "--version"])) {
        return Ok(python);
    }
    let folder = shell::build_folder().join("xtask/venv");
    let private = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if !shell::succeeds(&mut shell::command(&private, &["-m", "pip", "--version"])) {
        shell::run(shell::command(&python, &["-m", "venv"]).arg(&folder)).context(
            "this Python has neither pip nor venv: install pip (Debian: `apt install python3-pip python3-venv`), \
             or name another Python in EDGEWELD_PYTHON",
        )?;
    }
    Ok(private.into())
}

/// Downloads `package` (`name==version`) without its dependencies into `folder`.
pub(crate) fn download(package: &str, folder: &Path, extra: &[&str]) -> Result<()> {
    let python = with_pip()?;
    let mut pip = shell::command(&python, &["-m", "pip", "download", "--no-deps", "--quiet", "--dest"]);
    shell::run(pip.arg(folder).args(extra).arg(package))
        .with_context(|| format!("pip could not download {package}: is the Python package index reachable?"))
}

/// A Python with the small packages in tests/peers/requirements.txt: the one at hand if it has them, else a private virtual
/// environment, filled when first needed.
pub(crate) fn with_peer_packages() -> Result<OsString> {
    let imports = ["-c", "import numpy, safetensors, zstandard"];
    let python = interpreter()?;
    let folder = shell::build_folder().join("xtask/peers");
    let private = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" }).into_os_string();
    for python in [&python, &private] {
        if shell::succeeds(&mut shell::command(python, &imports)) {
            return Ok(python.clone());
        }
    }
    shell::run(shell::command(&python, &["-m", "venv"]).arg(&folder))?;
    let install = ["-m", "pip", "install", "--quiet", "-r", "tests/peers/requirements.txt"];
    shell::run(&mut shell::command(&private, &install))?;
    Ok(private)
}

/// A Python with onnxruntime-genai, the rival of the ONNX Runtime backend: a private virtual environment, filled when first
/// needed.
pub(crate) fn with_genai() -> Result<PathBuf> {
    const PACKAGES: [&str; 2] = ["onnxruntime-genai==0.18.0", "onnxruntime==1.32.0"];
    let folder = shell::build_folder().join("xtask/genai");
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if !shell::succeeds(&mut shell::command(&python, &["-c", "import onnxruntime_genai"])) {
        shell::run(shell::command(interpreter()?, &["-m", "venv"]).arg(&folder))?;
        shell::run(shell::command(&python, &["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
    }
    Ok(python)
}

/// Runs every script `make_*.py` of the fixture folders.
pub(crate) fn fixtures() -> Result<()> {
    let mut scripts = Vec::new();
    for folder in FIXTURES {
        let entries = std::fs::read_dir(shell::workspace().join(folder));
        let entries = entries.with_context(|| format!("{folder}: cannot list"))?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let before = scripts.len();
        scripts.extend(paths.filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("make_") && name.ends_with(".py")
        }));
        if scripts.len() == before {
            bail!("{folder} has no make_*.py");
        }
    }
    scripts.sort();
    let python = interpreter()?;
    for script in scripts {
        shell::run(shell::command(&python, &[&script]).env("EDGEWELD_MODELS", crate::models::folder())).context(
            "the fixture scripts need the packages in tests/fixtures/requirements.txt; \
             EDGEWELD_PYTHON names the Python that has them",
        )?;
    }
    Ok(())
}

/// A Python 3.9 or newer.
pub(crate) fn interpreter() -> Result<OsString> {
    let named = std::env::var_os("EDGEWELD_PYTHON");
    let candidates = named.into_iter().chain(["python3".into(), "python".into()]);
    for python in candidates {
        if shell::succeeds(&mut shell::command(&python, &["-c", "import sys; sys.exit(sys.version_info < (3, 9))"])) {
            return Ok(python);
        }
    }
    bail!("no Python 3.9 or newer: install it, or name one in EDGEWELD_PYTHON")
}
