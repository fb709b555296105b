//! `cargo xtask check-targets`: type-checks the SDK for phones on a machine that has none of their toolchains. rustup has the
//! targets on a developer's machine; elsewhere Debian's Rust builds `std` from its sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::folder;
use crate::shell;

/// `(target, features)`
const TARGETS: &[(&str, &[&str])] =
    &[("aarch64-linux-android", &[]), ("aarch64-apple-ios", &[]), ("aarch64-apple-darwin", &["metal"])];
const PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Stands in for a C compiler and linker: neither `cargo check` nor a static library links, so build scripts only have to
/// succeed. It says it is clang, and makes the files it is asked for, empty.
const STUB_COMPILER: &str = r#"#!/bin/sh
out=; preprocess=0; previous=
for argument in "$@"; do
  [ "$previous" = "-o" ] && out="$argument"
  case "$argument" in
    -E) preprocess=1;;
    --version|-v) echo "clang version 19.0.0 (stub)"; exit 0;;
    -o?*) out="${argument#-o}";;
  esac
  previous="$argument"
done
if [ $preprocess = 1 ]; then echo '"clang"'; echo clang; exit 0; fi
if [ -n "$out" ]; then mkdir -p "$(dirname "$out")"; : > "$out"; fi
"#;
/// Stands in for `ar`: makes the first archive it is asked for, empty.
const STUB_ARCHIVER: &str = r#"#!/bin/sh
for argument in "$@"; do
  case "$argument" in *.a) printf '!<arch>\n' > "$argument"; exit 0;; esac
done
"#;

/// Checks every target of the table.
pub(crate) fn check() -> Result<()> {
    for (target, features) in TARGETS {
        let mut cargo = cross_cargo("check", target)?;
        shell::run(cargo.args(["--package", "edgeweld-ffi", "--lib", "--features"]).arg(features.join(",")))
            .with_context(|| format!("{target} does not compile"))?;
        println!("{target} {}: compiles (not linked, not run)", features.join(","));
    }
    Ok(())
}

/// Debian's cargo for a target whose `std` it builds itself, with stand-ins for the C toolchain.
pub(crate) fn cross_cargo(verb: &str, target: &str) -> Result<Command> {
    install()?;
    let stubs = stubs()?;
    let mut cargo = shell::command("/usr/bin/cargo", &[verb, "--target", target, "-Zbuild-std=std,panic_unwind"]);
    // The variables that rustup and an outer cargo set would mix two versions of Rust.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO") || name.starts_with("RUST")) {
        if name != "CARGO_HOME" && name != "CARGO_TARGET_DIR" {
            cargo.env_remove(name);
        }
    }
    cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1").env("IPHONEOS_DEPLOYMENT_TARGET", "15.0");
    // Apple's build scripts ask for an SDK; nothing is read from it.
    cargo.env("SDKROOT", &stubs);
    let name = target.replace('-', "_");
    for (tool, stub) in [("CC", "cc"), ("CXX", "cc"), ("AR", "ar")] {
        cargo.env(format!("{tool}_{name}"), stubs.join(stub));
    }
    // Some dependency asks for a dynamic library too, which nobody uses.
    cargo.env(format!("CARGO_TARGET_{}_LINKER", name.to_uppercase()), stubs.join("cc"));
    cargo.arg("--target-dir").arg(shell::build_folder().join("cross"));
    Ok(cargo)
}

/// Installs Debian's Rust with the sources of `std`, unless it is there.
fn install() -> Result<()> {
    let has_sources = Path::new("/usr/src")
        .read_dir()
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.path().join("library/std").is_dir()));
    if has_sources && Path::new("/usr/bin/cargo").is_file() {
        return Ok(());
    }
    let is_root = shell::succeeds(&mut shell::command("sh", &["-c", "test $(id -u) = 0"]));
    if !is_root || !shell::succeeds(&mut shell::command("apt-get", &["--version"])) {
        bail!("needs Debian's packages {}: install them as root", PACKAGES.join(", "));
    }
    shell::run(&mut shell::command("apt-get", &["update", "--quiet"]))?;
    shell::run(shell::command("apt-get", &["install", "--yes", "--no-install-recommends"]).args(PACKAGES))
}

fn stubs() -> Result<PathBuf> {
    let folder = folder().join("stubs");
    fs::create_dir_all(&folder)?;
    for (name, text) in [("cc", STUB_COMPILER), ("ar", STUB_ARCHIVER)] {
        let path = folder.join(name);
        if fs::read_to_string(&path).unwrap_or_default() != text {
            fs::write(&path, text)?;
            shell::run(shell::command("chmod", &["+x"]).arg(&path))?;
        }
    }
    Ok(folder)
}
