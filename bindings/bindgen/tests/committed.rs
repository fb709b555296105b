//! Whether the committed bindings are up to date.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::process::Command;

#[test]
fn the_committed_bindings_are_what_the_surface_gives() {
    // Cargo puts the shared library of a dependency beside the tests.
    let library = format!("{DLL_PREFIX}edgeweld_ffi{DLL_SUFFIX}");
    let library = std::env::current_exe().unwrap().with_file_name(library);
    let mut check = Command::new(env!("CARGO_BIN_EXE_edgeweld-bindgen"));
    let check = check.arg(library).arg("--check").output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}
