//! `cargo xtask test` and `ci`: tables of lanes. A lane passes, fails, or says why this machine skips it.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::sdk::{self, Scope};
use crate::{models, onnxruntime, peers, qemu, shell};

/// One row of the table.
#[derive(Clone, Copy)]
pub(crate) struct Lane {
    name: &'static str,
    /// Why this machine cannot run it, if it cannot.
    skip: fn() -> Option<String>,
    run: fn() -> Result<()>,
}

const fn lane(name: &'static str, run: fn() -> Result<()>) -> Lane {
    Lane { name, skip: || None, run }
}

/// Needs no model and no network beyond crates.
pub(crate) const CHECK: &[Lane] = &[
    lane("format", || cargo(&["fmt", "--all", "--check"])),
    lane("lints", || cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
    lane("core without features", || clippy_core(&["--no-default-features"])),
    lane("core, only download", || clippy_core(&["--no-default-features", "--features", "download"])),
    lane("core, only constrain", || clippy_core(&["--no-default-features", "--features", "constrain"])),
    lane("core, only onnx", || clippy_core(&["--no-default-features", "--features", "onnx"])),
    lane("everything with onnx", || {
        const PACKAGES: [&str; 4] = ["edgeweld", "edgeweld-ffi", "edgeweld-tests", "edgeweld-examples"];
        let mut clippy = shell::cargo(&["clippy", "--all-targets"]);
        clippy.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
        clippy.args(PACKAGES.iter().flat_map(|package| ["--features".to_owned(), format!("{package}/onnx")]));
        shell::run(clippy.args(["--", "-D", "warnings"]))
    }),
    lane("docs", || shell::run(shell::cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))),
];

/// Runs the project on real models.
pub(crate) const TEST: &[Lane] = &[
    lane("models", models::obtain),
    lane("rust", || shell::run(shell::cargo(&["test", "--workspace"]).env("EDGEWELD_MODELS", models::folder()))),
    lane("onnx", || {
        let packages = ["test", "--package", "edgeweld", "--package", "edgeweld-ffi", "--no-default-features"];
        let args = ["--features", "edgeweld/onnx,edgeweld-ffi/onnx", "--lib", "--test", "onnx*"];
        let mut test = shell::cargo(&[&packages[..], &args].concat());
        test.env("EDGEWELD_MODELS", models::folder()).env("EDGEWELD_ONNXRUNTIME", onnxruntime::library()?);
        shell::run(&mut test)
    }),
    Lane { name: "peers", skip: peers::missing, run: peers::open_pack },
];

/// The SDK in other languages, on what `TEST` has built. That the bindings are current is a test in Rust.
pub(crate) const SDK: &[Lane] = &[
    lane("python", || sdk::python::test(Scope::Workspace)),
    Lane { name: "kotlin", skip: sdk::kotlin::missing, run: || sdk::kotlin::test(Scope::Workspace) },
    Lane { name: "swift", skip: sdk::swift::missing, run: || sdk::swift::test(Scope::Workspace) },
];

/// What the SDK costs in each language; each program fails if a figure misses its bar.
pub(crate) const FIGURES: &[Lane] = &[
    Lane { name: "kotlin", skip: sdk::kotlin::missing, run: || sdk::kotlin::figures(&[]) },
    lane("python", || sdk::python::figures(&[])),
    Lane { name: "swift", skip: sdk::swift::missing, run: sdk::swift::figures },
];
/// What is left after thousands of streams and hundreds of engines; takes minutes.
pub(crate) const LEAKS: &[Lane] = &[
    Lane { name: "streams in kotlin", skip: sdk::kotlin::missing, run: || sdk::kotlin::figures(&["leaks"]) },
    lane("cycles in python", || sdk::python::figures(&["leaks"])),
];

/// Runs the kernels of another architecture; minutes of emulation, so not part of `test`.
pub(crate) const QEMU: &[Lane] = &[Lane { name: "64-bit ARM", skip: qemu::skip_reason, run: qemu::run }];

/// Runs every lane, goes on after a failure, and ends with one summary line.
pub(crate) fn run(name: &str, lanes: &[Lane]) -> Result<()> {
    let mut lines = Vec::new();
    let (mut failed, mut skipped) = (0, 0);
    for lane in lanes {
        eprintln!("\n== {} ==", lane.name);
        let start = Instant::now();
        let outcome = match (lane.skip)() {
            Some(reason) => {
                skipped += 1;
                format!("skipped: {reason}")
            }
            None => match (lane.run)() {
                Ok(()) => format!("passed in {:.0} s", start.elapsed().as_secs_f64()),
                Err(error) => {
                    failed += 1;
                    format!("FAILED: {error:#}")
                }
            },
        };
        eprintln!("{}: {outcome}", lane.name);
        lines.push(format!("  {:<24} {outcome}", lane.name));
    }
    let passed = lanes.len() - failed - skipped;
    println!("\n{}\n{name}: {passed} passed, {failed} failed, {skipped} skipped", lines.join("\n"));
    if failed > 0 {
        bail!("{failed} of {} lanes failed", lanes.len());
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Result<()> {
    shell::run(&mut shell::cargo(args))
}

fn clippy_core(features: &[&str]) -> Result<()> {
    let args = ["clippy", "--package", "edgeweld", "--all-targets"];
    cargo(&[&args, features, &["--", "-D", "warnings"]].concat())
}
