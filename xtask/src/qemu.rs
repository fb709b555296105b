//! `cargo xtask qemu`: the kernels for 64-bit ARM, built with Debian's toolchain and run by an emulator.
//!
//! rustup's toolchain would need a standard library for the target; Debian ships the library's source, and one build
//! of it serves every run.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::shell;

const TARGET: &str = "aarch64-unknown-linux-gnu";
/// A core with plain NEON, one with `dotprod`, and everything that the emulator has (`i8mm` too).
const CPUS: [&str; 3] = ["cortex-a53", "neoverse-n1", "max"];
/// Unit tests that run: what has kernels, and what reads bytes.
const UNIT_TESTS: [&str; 5] = ["kernels::", "model::cpu::", "merge::", "quant::", "threads::"];

/// A program or folder, and the Debian package that has it.
const NEEDED: [(&str, &str); 6] = [
    ("/usr/bin/rustc", "rustc-web"),
    ("/usr/bin/cargo", "cargo-web"),
    ("/usr/lib/rustlib/src/rust/library", "rust-web-src"),
    ("/usr/bin/aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    ("/usr/aarch64-linux-gnu/include/stdlib.h", "libc6-dev-arm64-cross"),
    ("/usr/bin/qemu-aarch64-static", "qemu-user-static"),
];

/// Why this machine cannot run it; installs what is missing if it may.
pub(crate) fn skip_reason() -> Option<String> {
    if missing().is_empty() {
        return None;
    }
    if is_root() && shell::succeeds(&mut shell::command("apt-get", &["--version"])) {
        eprintln!("installing {}", missing().join(" "));
        // Whatever goes wrong here shows in what is still missing.
        let _ = shell::run(&mut shell::command("apt-get", &["update", "-qq"]));
        let mut install = shell::command("apt-get", &["install", "-y", "-qq", "--no-install-recommends"]);
        let _ = shell::run(install.args(missing()).env("DEBIAN_FRONTEND", "noninteractive"));
    }
    let missing = missing();
    (!missing.is_empty()).then(|| format!("needs the Debian packages {}", missing.join(" ")))
}

/// Builds the tests once and runs them on every emulated CPU.
pub(crate) fn run() -> Result<()> {
    for cpu in CPUS {
        shell::run(test(cpu, "--lib").arg("--").args(UNIT_TESTS))?;
    }
    shell::run(&mut test("max", "--test=pack"))
}

fn test(cpu: &str, tests: &str) -> Command {
    let mut test = shell::command("/usr/bin/cargo", &["test", "--locked", "--target", TARGET]);
    // What the standard library's source build needs from an unstable option; our code uses no unstable feature.
    test.args(["-Zbuild-std=std,panic_unwind,test", "--package", "edgeweld", "--no-default-features", tests])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", "/usr/bin/rustc")
        .env("CARGO_TARGET_DIR", shell::build_folder().join("qemu"))
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc")
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
            format!("qemu-aarch64-static -cpu {cpu} -L /usr/aarch64-linux-gnu"),
        );
    test
}

fn missing() -> Vec<&'static str> {
    NEEDED.into_iter().filter(|(path, _)| !Path::new(path).exists()).map(|(_, package)| package).collect()
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
