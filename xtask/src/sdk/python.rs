//! The scenario in Python.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::{Built, EXAMPLE_ARGS, LIBRARY, Scope, emptied, folder};
use crate::{python, shell};

/// Runs the Python scenario and example against the library.
pub(crate) fn test(scope: Scope) -> Result<()> {
    let built = Built::new(scope)?;
    run(&built, &built.library, "bindings/tests/python/test_scenario.py", &[])?;
    run(&built, &built.library, "examples/python/main.py", &EXAMPLE_ARGS)
}

/// Measures the library that apps ship.
pub(crate) fn figures(args: &[&str]) -> Result<()> {
    let built = Built::shipped()?;
    run(&built, &built.stripped()?, "bindings/tests/python/figures.py", args)
}

fn run(built: &Built, library: &Path, program: &str, args: &[&str]) -> Result<()> {
    let package = emptied(folder().join("python/edgeweld"))?;
    for file in ["__init__.py", "edgeweld_ffi.py"] {
        fs::copy(shell::workspace().join("bindings/python/edgeweld").join(file), package.join(file))?;
    }
    // The generated module looks for the library beside itself.
    fs::copy(library, package.join(LIBRARY))?;
    let mut run = built.scenario();
    run.arg(python::interpreter()?).arg(program).args(args);
    shell::run(run.env("PYTHONPATH", folder().join("python")))
}
