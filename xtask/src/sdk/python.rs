//! The scenario in Python.

use std::fs;

use anyhow::Result;

use super::{Built, EXAMPLE_ARGS, LIBRARY, Scope, emptied, folder};
use crate::{python, shell};

/// Runs the Python scenario and example against the library.
pub(crate) fn test(scope: Scope) -> Result<()> {
    let built = Built::new(scope)?;
    let package = emptied(folder().join("python/edgeweld"))?;
    for file in ["__init__.py", "edgeweld_ffi.py"] {
        fs::copy(shell::workspace().join("bindings/python/edgeweld").join(file), package.join(file))?;
    }
    // The generated module looks for the library beside itself.
    fs::copy(built.library(), package.join(LIBRARY))?;
    let path = folder().join("python");
    let python = python::interpreter()?;
    let programs: [(&str, &[&str]); 2] =
        [("bindings/tests/python/test_scenario.py", &[]), ("examples/python/main.py", &EXAMPLE_ARGS)];
    for (program, args) in programs {
        shell::run(built.scenario().arg(&python).arg(program).args(args).env("PYTHONPATH", &path))?;
    }
    Ok(())
}
