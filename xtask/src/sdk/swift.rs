//! The scenario in Swift, on Linux or macOS.

use anyhow::Result;

use super::{Built, EXAMPLE_ARGS, Scope};
use crate::shell;

/// Why Swift cannot run here, if it cannot.
pub(crate) fn missing() -> Option<String> {
    let found = shell::succeeds(&mut shell::command("swift", &["--version"]));
    (!found).then(|| "no swift".to_owned())
}

/// Runs the Swift package's tests, which play the scenario, and the example.
pub(crate) fn test(scope: Scope) -> Result<()> {
    let built = Built::new(scope)?;
    let library = built.library();
    let folder = library.parent().expect("a library is in a folder");
    let programs: [(&str, &str, &[&str]); 2] = [("test", "ios", &[]), ("run", "examples/swift-linux", &EXAMPLE_ARGS)];
    for (verb, package, args) in programs {
        let mut run = built.scenario();
        run.args(["swift", verb, "--package-path", package, "-Xlinker"]).arg(format!("-L{}", folder.display()));
        if !args.is_empty() {
            run.arg("Chat").args(args);
        }
        // Tells the manifest to link the host's library instead of the XCFramework.
        shell::run(run.env("EDGEWELD_HOST_LIBRARY", folder).env("LD_LIBRARY_PATH", folder))?;
    }
    Ok(())
}
