//! `cargo xtask android`: the libraries and the AAR that Android apps use.

use anyhow::{Context, Result, bail};

use super::aar::{self, Native, System};
use super::{Built, emptied, folder, kotlin, size};
use crate::shell;

const ABIS: [&str; 3] = ["arm64-v8a", "armeabi-v7a", "x86_64"];
const API_LEVEL: &str = "24";
const BUILD: [&str; 5] = ["build", "--profile", "mobile", "--package", "edgeweld-ffi"];

/// Builds the libraries with the NDK and `cargo ndk` into `target/sdk/jniLibs`, where Gradle's project looks for them, and an AAR.
pub(crate) fn package() -> Result<()> {
    if std::env::var_os("ANDROID_NDK_HOME").is_none() {
        bail!(
            "ANDROID_NDK_HOME is not set: install the NDK (r28 or newer), or check what this machine can with --host-check"
        );
    }
    let out = emptied(folder().join("jniLibs"))?;
    let mut cargo = shell::cargo(&["ndk", "--platform", API_LEVEL]);
    cargo.args(ABIS.iter().flat_map(|abi| ["--target", abi])).arg("--output-dir").arg(&out);
    shell::run(cargo.args(BUILD)).context("needs `cargo install cargo-ndk` and the targets of rustup")?;
    let natives = ABIS.map(|abi| Native { abi, library: out.join(abi).join("libedgeweld_ffi.so") });
    let path = folder().join("edgeweld.aar");
    aar::assemble(&path, &kotlin::classes()?, &natives)?;
    println!("{}", aar::check(&path, System::Android)?);
    Ok(())
}

/// Assembles an AAR with this machine's library in the shipped profile, checks it, says how large it is and why, and plays the
/// scenario and the sample app on what is in it. No device can load it.
pub(crate) fn host_check() -> Result<()> {
    let built = Built::shipped()?;
    let stripped = built.stripped()?;
    println!("{}", size::report(&built.library, &stripped)?);
    let path = folder().join("edgeweld-host.aar");
    aar::assemble(&path, &kotlin::classes()?, &[Native { abi: aar::HOST_ABI, library: stripped }])?;
    println!("{}", aar::check(&path, System::Host)?);
    kotlin::play(&built, &path)?;
    // The pictures are drawn by a library for this system.
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        kotlin::sample(&built, &path)?;
    }
    Ok(())
}
