//! `cargo xtask ios`: the XCFramework for the Swift package. On macOS it is the real one; elsewhere one slice is built with
//! Debian's Rust, to check that the library compiles for the device and the folder has the layout Xcode reads.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use goblin::archive::Archive;
use goblin::mach::{MachO, constants::cputype::CPU_TYPE_ARM64};

use super::{emptied, folder, targets};
use crate::shell;

/// `(target, folder in the framework, Info.plist's platform, variant)`
const SLICES: &[(&str, &str, &str, Option<&str>)] = &[
    ("aarch64-apple-ios", "ios-arm64", "ios", None),
    ("aarch64-apple-ios-sim", "ios-arm64-simulator", "ios", Some("simulator")),
    ("aarch64-apple-darwin", "macos-arm64", "macos", None),
];
const LIBRARY: &str = "libedgeweld_ffi.a";
/// The name must be `module.modulemap`, and a framework's `framework module` would be wrong for a static library.
const MODULE_MAP: &str = "module EdgeweldFFI {\n    header \"EdgeweldFFI.h\"\n    export *\n}\n";
const BUILD: [&str; 7] = ["--package", "edgeweld-ffi", "--lib", "--crate-type", "staticlib", "--profile", "mobile"];

/// Builds the slices that this machine can and assembles the framework.
pub(crate) fn package() -> Result<()> {
    let out = emptied(folder().join("EdgeweldFFI.xcframework"))?;
    let mut entries = String::new();
    for &(target, slice, platform, variant) in SLICES {
        let library = match (cfg!(target_os = "macos"), target) {
            (true, _) => apple(target)?,
            (false, "aarch64-apple-ios") => debian(target)?,
            (false, _) => continue,
        };
        let place = out.join(slice);
        fs::create_dir_all(place.join("Headers"))?;
        fs::copy(&library, place.join(LIBRARY))?;
        let header = shell::workspace().join("ios/Sources/EdgeweldFFI/EdgeweldFFI.h");
        fs::copy(header, place.join("Headers/EdgeweldFFI.h"))?;
        fs::write(place.join("Headers/module.modulemap"), MODULE_MAP)?;
        entries += &entry(slice, platform, variant);
        let (objects, bytes) = check(&library)?;
        println!("{slice}: {objects} arm64 objects, {:.1} MB", bytes as f64 / 1e6);
    }
    fs::write(out.join("Info.plist"), info_plist(&entries))?;
    println!("{}", out.display());
    if !cfg!(target_os = "macos") {
        println!("for checking only: without Apple's C compiler, the C parts (zstd, ring) are empty");
    }
    Ok(())
}

fn apple(target: &str) -> Result<PathBuf> {
    shell::run(shell::cargo(&["rustc", "--target", target, "--features", "metal"]).args(BUILD))?;
    Ok(shell::build_folder().join(target).join("mobile").join(LIBRARY))
}

fn debian(target: &str) -> Result<PathBuf> {
    // What is never linked is not stripped either, and Debian has no `rust-objcopy`.
    let mut cargo = targets::cross_cargo("rustc", target)?;
    shell::run(cargo.args(BUILD).env("CARGO_PROFILE_MOBILE_STRIP", "none"))?;
    Ok(shell::build_folder().join("cross").join(target).join("mobile").join(LIBRARY))
}

/// Counts the archive's objects, which must be arm64 Mach-O.
fn check(library: &Path) -> Result<(usize, usize)> {
    let bytes = fs::read(library).with_context(|| library.display().to_string())?;
    let archive = Archive::parse(&bytes).with_context(|| library.display().to_string())?;
    let mut count = 0;
    for name in archive.members() {
        let member = archive.extract(name, &bytes).with_context(|| name.to_owned())?;
        // Archives also hold metadata of rustc, and empty stand-ins.
        let Ok(object) = MachO::parse(member, 0) else { continue };
        ensure!(object.header.cputype() == CPU_TYPE_ARM64, "{name} is not for arm64");
        count += 1;
    }
    ensure!(count > 0, "{}: no object", library.display());
    Ok((count, bytes.len()))
}

fn entry(slice: &str, platform: &str, variant: Option<&str>) -> String {
    let variant = variant.map_or(String::new(), |variant| {
        format!("      <key>SupportedPlatformVariant</key><string>{variant}</string>\n")
    });
    format!(
        "    <dict>\n      <key>LibraryIdentifier</key><string>{slice}</string>\n      \
         <key>LibraryPath</key><string>{LIBRARY}</string>\n      <key>HeadersPath</key><string>Headers</string>\n      \
         <key>SupportedArchitectures</key><array><string>arm64</string></array>\n      \
         <key>SupportedPlatform</key><string>{platform}</string>\n{variant}    </dict>\n"
    )
}

fn info_plist(entries: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
         \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n<plist version=\"1.0\">\n<dict>\n  \
         <key>AvailableLibraries</key>\n  <array>\n{entries}  </array>\n  \
         <key>CFBundlePackageType</key><string>XFWK</string>\n  \
         <key>XCFrameworkFormatVersion</key><string>1.0</string>\n</dict>\n</plist>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_property_list_names_every_slice() {
        let entries: String =
            SLICES.iter().map(|&(_, slice, platform, variant)| entry(slice, platform, variant)).collect();
        let list = info_plist(&entries);
        for (_, slice, ..) in SLICES {
            assert!(list.contains(&format!("<string>{slice}</string>")));
        }
        assert_eq!(list.matches("<dict>").count(), list.matches("</dict>").count());
    }
}
