//! `cargo xtask bindings`: the committed bindings are what the generator makes of the library. The generator's own test
//! compares them, so this only writes.

use anyhow::Result;

use super::{Built, Scope};
use crate::shell;

/// Writes the bindings.
pub(crate) fn write() -> Result<()> {
    let library = Built::new(Scope::Sdk)?.library;
    shell::run(shell::cargo(&["run", "--quiet", "--package", "edgeweld-bindgen", "--"]).arg(library))
}
