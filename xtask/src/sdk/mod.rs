//! The SDK's commands: bindings, the scenario in each language, packages for Android and Apple.

pub(crate) mod aar;
pub(crate) mod android;
pub(crate) mod bindings;
pub(crate) mod elf;
pub(crate) mod ios;
pub(crate) mod kotlin;
pub(crate) mod python;
pub(crate) mod swift;
pub(crate) mod targets;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{models, shell};

/// File name of the library on this system.
pub(crate) const LIBRARY: &str = if cfg!(target_os = "macos") { "libedgeweld_ffi.dylib" } else { "libedgeweld_ffi.so" };

/// What the examples are given: names of facts that the scenario's program fills in.
pub(crate) const EXAMPLE_ARGS: [&str; 6] =
    ["{model}", "{url}/example/good.pack", "{trusted_key}", "{store}", "{prompt}", "{question}"];

/// Which packages are built with the library: features of dependencies are shared by what is built together, so building
/// another set compiles most crates anew.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All, as `cargo test --workspace` does: what CI has built already.
    Workspace,
    /// Only what the SDK needs.
    Sdk,
}

/// The library and the scenario's program, in the dev profile.
pub(crate) struct Built {
    folder: PathBuf,
}

impl Built {
    /// Builds both, unless they are up to date.
    pub(crate) fn new(scope: Scope) -> Result<Self> {
        let packages: &[&str] = match scope {
            Scope::Workspace => &["--workspace"],
            Scope::Sdk => &["--package", "edgeweld-ffi", "--package", "edgeweld-bindings-tests"],
        };
        shell::run(&mut shell::cargo(&[&["test", "--no-run"], packages].concat()))?;
        Ok(Self { folder: shell::build_folder().join("debug") })
    }

    pub(crate) fn library(&self) -> PathBuf {
        self.folder.join(LIBRARY)
    }

    /// `scenario`, which runs the rest of the command line against its server.
    pub(crate) fn scenario(&self) -> Command {
        let mut command = shell::command(self.folder.join("scenario"), &[""; 0]);
        command.env("EDGEWELD_MODELS", models::folder());
        command
    }
}

/// Where the SDK's build products go.
pub(crate) fn folder() -> PathBuf {
    shell::build_folder().join("sdk")
}

/// A copy of `library` without symbols that only debuggers and the generator read.
pub(crate) fn strip(library: &Path, copy: &Path) -> Result<()> {
    let strip: &[&str] = if cfg!(target_os = "macos") { &["-x"] } else { &["--strip-unneeded"] };
    shell::run(shell::command("strip", strip).arg("-o").arg(copy).arg(library))
}

/// An empty folder.
pub(crate) fn emptied(path: PathBuf) -> Result<PathBuf> {
    if path.exists() {
        std::fs::remove_dir_all(&path)?;
    }
    std::fs::create_dir_all(&path)?;
    Ok(path)
}
