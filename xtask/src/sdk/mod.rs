//! The SDK's commands: bindings, the scenario in each language, packages for Android and Apple.

pub(crate) mod aar;
pub(crate) mod android;
pub(crate) mod bindings;
pub(crate) mod elf;
pub(crate) mod ios;
pub(crate) mod kotlin;
pub(crate) mod python;
mod size;
pub(crate) mod swift;
pub(crate) mod targets;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::artifacts::Artifacts;
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

/// The library and the scenario's program.
pub(crate) struct Built {
    profile: &'static str,
    pub(crate) library: PathBuf,
    scenario: PathBuf,
}

impl Built {
    /// Builds both in the dev profile, unless they are up to date.
    pub(crate) fn new(scope: Scope) -> Result<Self> {
        match scope {
            // The very command line of the lane before: a selection of tests would build dependencies anew.
            Scope::Workspace => Self::by("dev", &["test", "--workspace", "--no-run"]),
            Scope::Sdk => {
                Self::by("dev", &["build", "--package", "edgeweld-ffi", "--package", "edgeweld-bindings-tests"])
            }
        }
    }

    /// Builds both in the profile that apps ship.
    pub(crate) fn shipped() -> Result<Self> {
        let packages = ["--package", "edgeweld-ffi", "--package", "edgeweld-bindings-tests"];
        Self::by("mobile", &[&["build", "--profile", "mobile"][..], &packages].concat())
    }

    fn by(profile: &'static str, cargo: &[&str]) -> Result<Self> {
        // Where they are depends on why cargo built them, so its messages say.
        let artifacts = Artifacts::build(&mut shell::cargo(cargo))?;
        let library = artifacts.file("edgeweld_ffi", LIBRARY)?;
        Ok(Self { profile, library, scenario: artifacts.program("scenario")? })
    }

    /// A copy of the library without symbols that only debuggers and the generator read, as it is packaged.
    pub(crate) fn stripped(&self) -> Result<PathBuf> {
        let folder = folder().join(self.profile);
        fs::create_dir_all(&folder)?;
        let copy = folder.join(LIBRARY);
        let strip: &[&str] = if cfg!(target_os = "macos") { &["-x"] } else { &["--strip-unneeded"] };
        shell::run(shell::command("strip", strip).arg("-o").arg(&copy).arg(&self.library))?;
        Ok(copy)
    }

    /// `scenario`, which runs the rest of the command line against its server.
    pub(crate) fn scenario(&self) -> Command {
        let mut command = shell::command(&self.scenario, &[""; 0]);
        // Where cargo lets programs look for libraries, an older one of ours may lie, which JNA would take before the packaged one.
        command.env_remove("LD_LIBRARY_PATH").env_remove("DYLD_FALLBACK_LIBRARY_PATH");
        command.env("EDGEWELD_MODELS", models::folder());
        command
    }
}

/// Where the SDK's build products go.
pub(crate) fn folder() -> PathBuf {
    shell::build_folder().join("sdk")
}

/// An empty folder.
pub(crate) fn emptied(path: PathBuf) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    fs::create_dir_all(&path)?;
    Ok(path)
}
