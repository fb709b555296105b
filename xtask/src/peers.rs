//! Other people's software that opens what we write.

use anyhow::Result;

use crate::{python, shell};

const SCRIPT: &str = "tests/peers/open_pack.py";
const PACK: &str = "core/tests/fixtures/packs/v1-dense.pack";

/// Why this machine cannot run them, if it cannot.
pub(crate) fn missing() -> Option<String> {
    python::with_peer_packages().err().map(|error| format!("{error:#}"))
}

/// zstd and Python's safetensors open a dense pack without knowing the format.
pub(crate) fn open_pack() -> Result<()> {
    shell::run(&mut shell::command(python::with_peer_packages()?, &[SCRIPT, PACK]))
}
