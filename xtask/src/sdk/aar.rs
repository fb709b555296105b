//! An Android library archive without the Android SDK: assembling one, and checking any.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::elf::{self, Library};
use crate::shell;

/// Where this machine's library stands in an AAR that is only checked, never shipped.
pub(crate) const HOST_ABI: &str = if cfg!(target_arch = "aarch64") { "arm64-v8a" } else { "x86_64" };
/// Android 15 devices have pages of 16 KB; the store demands it of 64-bit libraries.
const PAGE_BYTES: u64 = 16_384;
/// Class files of Java 8, which every Android toolchain reads.
const CLASS_VERSION_MAX: u16 = 52;
const MANIFEST: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="dev.edgeweld">
    <uses-sdk android:minSdkVersion="24" />
</manifest>
"#;
const METADATA: &str = "aarFormatVersion=1.0\naarMetadataVersion=1.0\nminCompileSdk=1\nminCompileSdkExtension=0\n\
                        minAndroidGradlePluginVersion=1.0.0\ncoreLibraryDesugaringEnabled=false\n";

/// A shared library for one ABI.
pub(crate) struct Native {
    pub(crate) abi: &'static str,
    pub(crate) library: PathBuf,
}

/// Whose libraries the archive's may need.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// The ones every Android device has.
    Android,
    /// This machine's: the archive is for checking.
    Host,
}

/// Writes an AAR; the same inputs give the same bytes.
pub(crate) fn assemble(path: &Path, classes: &Path, natives: &[Native]) -> Result<()> {
    let rules = shell::workspace().join("android/edgeweld/consumer-rules.pro");
    let mut entries = vec![
        ("AndroidManifest.xml".to_owned(), MANIFEST.as_bytes().to_vec()),
        ("META-INF/com/android/build/gradle/aar-metadata.properties".to_owned(), METADATA.as_bytes().to_vec()),
        // Empty without resources, but it must exist.
        ("R.txt".to_owned(), Vec::new()),
        ("classes.jar".to_owned(), fs::read(classes).with_context(|| classes.display().to_string())?),
        ("proguard.txt".to_owned(), fs::read(&rules).with_context(|| rules.display().to_string())?),
    ];
    for Native { abi, library } in natives {
        let bytes = fs::read(library).with_context(|| library.display().to_string())?;
        entries.push((format!("jni/{abi}/libedgeweld_ffi.so"), bytes));
    }
    entries.sort();
    // `default` has the format's earliest time.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    let mut zip = ZipWriter::new(File::create(path)?);
    for (name, bytes) in &entries {
        zip.start_file(name, options)?;
        zip.write_all(bytes)?;
    }
    zip.finish()?;
    Ok(())
}

/// Checks an AAR's structure, classes and libraries; returns a line that says what it holds.
pub(crate) fn check(path: &Path, system: System) -> Result<String> {
    let mut archive = ZipArchive::new(File::open(path)?).with_context(|| path.display().to_string())?;
    let names: Vec<String> = archive.file_names().map(|name| Ok(name?.into_owned())).collect::<Result<_>>()?;
    for name in ["AndroidManifest.xml", "R.txt", "classes.jar", "proguard.txt"] {
        ensure!(names.iter().any(|other| other == name), "{}: no {name}", path.display());
    }
    let classes = check_classes(&read(&mut archive, "classes.jar")?)?;
    let called = called_functions()?;
    let mut abis = Vec::new();
    for name in names.iter().filter(|name| name.starts_with("jni/")) {
        let [_, abi, file] = name.split('/').collect::<Vec<_>>()[..] else { bail!("{name}: not jni/<abi>/<file>") };
        let bytes = read(&mut archive, name)?;
        check_library(&Library::read(&bytes, Path::new(name))?, abi, file, system, &called)
            .with_context(|| name.to_owned())?;
        abis.push(format!("{abi} ({:.1} MB)", bytes.len() as f64 / 1e6));
    }
    ensure!(!abis.is_empty(), "{}: no library", path.display());
    Ok(format!("{}: {classes} classes, {}, {} functions exported", path.display(), abis.join(", "), called.len()))
}

fn read(archive: &mut ZipArchive<File>, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    archive.by_name(name)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Counts the classes; refuses newer class files, and classes of others, which would be twice in an app.
fn check_classes(jar: &[u8]) -> Result<usize> {
    let mut jar = ZipArchive::new(std::io::Cursor::new(jar)).context("classes.jar")?;
    let mut count = 0;
    for index in 0..jar.len() {
        let mut entry = jar.by_index(index)?;
        let name = entry.name()?.into_owned();
        if !name.ends_with(".class") {
            continue;
        }
        ensure!(name.starts_with("dev/edgeweld/"), "classes.jar bundles {name}, which is not ours");
        let mut head = [0; 8];
        entry.read_exact(&mut head)?;
        let version = u16::from_be_bytes([head[6], head[7]]);
        ensure!(version <= CLASS_VERSION_MAX, "{name} has class version {version}, more than {CLASS_VERSION_MAX}");
        count += 1;
    }
    ensure!(count > 0, "classes.jar has no class");
    Ok(count)
}

fn check_library(library: &Library, abi: &str, file: &str, system: System, called: &BTreeSet<String>) -> Result<()> {
    let machine = elf::machine(abi).with_context(|| format!("{abi} is not an ABI we ship"))?;
    ensure!(library.machine == machine, "machine {} is not that of {abi}", library.machine);
    ensure!(
        !library.is_64 || library.page_align >= PAGE_BYTES,
        "aligned to {} bytes, 64-bit libraries need {PAGE_BYTES}",
        library.page_align
    );
    ensure!(library.soname.as_deref() == Some(file), "its name inside is {:?}", library.soname);
    ensure!(!library.has_text_relocations, "has text relocations");
    let allowed: &[&str] = match system {
        System::Android => &["libc.so", "libm.so", "libdl.so", "liblog.so"],
        System::Host => &["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"],
    };
    for needed in &library.needed {
        ensure!(allowed.contains(&needed.as_str()), "needs {needed}, which devices do not have");
    }
    let exports: BTreeSet<_> = library.exports.iter().collect();
    for function in called {
        ensure!(exports.contains(function), "does not export {function}, which the classes call");
    }
    Ok(())
}

/// Where Kotlin declares functions of the library: the generated source, and the one that goes beside it.
const DECLARING: [&str; 2] =
    ["generated/kotlin/dev/edgeweld/edgeweld_ffi.kt", "main/kotlin/dev/edgeweld/DirectListener.kt"];

/// The functions that Kotlin declares.
fn called_functions() -> Result<BTreeSet<String>> {
    let mut declared = BTreeSet::new();
    for source in DECLARING {
        let path = shell::workspace().join("bindings/kotlin/src").join(source);
        let source = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let before = declared.len();
        declared.extend(source.lines().filter_map(|line| {
            let name = line.trim().strip_prefix("external fun ")?.split('(').next()?;
            name.contains("edgeweld_ffi").then(|| name.to_owned())
        }));
        ensure!(declared.len() > before, "{}: found no declarations", path.display());
    }
    Ok(declared)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library() -> Library {
        Library {
            machine: elf::machine("arm64-v8a").unwrap(),
            is_64: true,
            page_align: PAGE_BYTES,
            soname: Some("libedgeweld_ffi.so".to_owned()),
            needed: vec!["libc.so".to_owned()],
            has_text_relocations: false,
            exports: vec!["f".to_owned()],
        }
    }

    fn refusal(library: &Library) -> String {
        let called = BTreeSet::from(["f".to_owned()]);
        match check_library(library, "arm64-v8a", "libedgeweld_ffi.so", System::Android, &called) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn accepts_a_library_that_android_loads() {
        assert_eq!(refusal(&library()), "");
    }

    #[test]
    fn rejects_what_android_would_not_load() {
        for (library, reason) in [
            (Library { machine: 62, ..library() }, "machine 62"),
            (Library { page_align: 4096, ..library() }, "aligned to 4096"),
            (Library { soname: None, ..library() }, "name inside is None"),
            (Library { has_text_relocations: true, ..library() }, "text relocations"),
            (Library { needed: vec!["libgcc_s.so.1".to_owned()], ..library() }, "needs libgcc_s"),
            (Library { exports: Vec::new(), ..library() }, "does not export f"),
        ] {
            assert!(refusal(&library).contains(reason), "{reason}: {}", refusal(&library));
        }
    }

    #[test]
    fn rejects_an_archive_without_its_parts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty.aar");
        ZipWriter::new(File::create(&path).unwrap()).finish().unwrap();
        assert!(check(&path, System::Host).unwrap_err().to_string().contains("no AndroidManifest.xml"));
    }
}
