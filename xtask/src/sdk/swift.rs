//! The scenario in Swift, on Linux or macOS.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Built, EXAMPLE_ARGS, Scope, folder};
use crate::shell;

/// Why Swift cannot run here, if it cannot.
pub(crate) fn missing() -> Option<String> {
    let found = shell::succeeds(&mut shell::command("swift", &["--version"]));
    (!found).then(|| "no swift".to_owned())
}

/// Runs the Swift package's tests, which play the scenario, and the example.
pub(crate) fn test(scope: Scope) -> Result<()> {
    let built = Built::new(scope)?;
    run(&built, &built.library, "test", "ios", &[])?;
    run(&built, &built.library, "run", "examples/swift-linux", &[&["Chat"][..], &EXAMPLE_ARGS].concat())
}

/// Measures the library that apps ship.
pub(crate) fn figures() -> Result<()> {
    let built = Built::shipped()?;
    run(&built, &built.stripped()?, "run", "bindings/tests/swift", &["Figures"])
}

/// `swift test` or `swift run` of a package.
fn run(built: &Built, library: &Path, verb: &str, package: &str, args: &[&str]) -> Result<()> {
    let library = library.parent().context("a library is in a folder")?;
    let mut run = built.scenario();
    run.args(["swift", verb, "--package-path", package, "--scratch-path"]).arg(folder().join("swift").join(package));
    run.arg("-Xlinker").arg(format!("-L{}", library.display())).args(args);
    // Tells the manifest to link the host's library instead of the XCFramework.
    shell::run(run.env("EDGEWELD_HOST_LIBRARY", library).env("LD_LIBRARY_PATH", library))
}
