//! Kotlin on the JVM: the compiler and libraries come from npm and Maven into the build folder; classes and library go into
//! an AAR, and the scenario runs on what is in it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::aar::{self, Native};
use super::{Built, EXAMPLE_ARGS, LIBRARY, Scope, emptied, folder, strip};
use crate::shell;

const COMPILER: &str = "kotlin-compiler@2.4.20";
/// 5.17 is the first with libraries for 16 KB pages; 5.18.1 mends a race.
const JNA: (&str, &str) = ("net.java.dev.jna:jna:5.19.1", "jna-5.19.1.jar");
/// All of the SDK in Kotlin; Android's project compiles the same folders.
const SOURCES: [&str; 2] = ["bindings/kotlin/src/generated/kotlin", "bindings/kotlin/src/main/kotlin"];

/// Why Kotlin cannot run here, if it cannot.
pub(crate) fn missing() -> Option<String> {
    let tools = [("java", "-version"), ("npm", "--version"), ("mvn", "--version")];
    let missing = tools.into_iter().find(|(tool, version)| !shell::succeeds(&mut shell::command(tool, &[version])));
    missing.map(|(tool, _)| format!("no {tool}"))
}

struct Kotlin {
    compiler: PathBuf,
    /// Kotlin's standard library, coroutines, assertions and JNA.
    class_path: String,
}

impl Kotlin {
    fn new() -> Result<Self> {
        let folder = folder().join("kotlin");
        fs::create_dir_all(&folder)?;
        let lib = folder.join("node_modules/kotlin-compiler/lib");
        let compiler = lib.join("kotlin-compiler.jar");
        if !compiler.is_file() {
            let mut npm = shell::command("npm", &["install", "--no-audit", "--no-fund", "--no-save", "--prefix"]);
            shell::run(npm.arg(&folder).arg(COMPILER))?;
        }
        let jna = folder.join(JNA.1);
        if !jna.is_file() {
            let mut mvn = shell::command("mvn", &["--quiet", "--batch-mode", "dependency:copy"]);
            mvn.arg(format!("-Dartifact={}", JNA.0)).arg(format!("-DoutputDirectory={}", folder.display()));
            shell::run(&mut mvn)?;
        }
        let jars = ["kotlin-stdlib.jar", "kotlinx-coroutines-core-jvm.jar", "kotlin-test.jar"];
        let jars = jars.map(|jar| lib.join(jar)).into_iter().chain([jna]);
        Ok(Self { compiler, class_path: joined(jars) })
    }

    fn compile(&self, sources: &[PathBuf], class_path: &str, jar: &Path) -> Result<()> {
        let mut java = shell::command("java", &["-Xmx2g", "-cp"]);
        java.arg(&self.compiler).arg("org.jetbrains.kotlin.cli.jvm.K2JVMCompiler");
        java.args(["-no-stdlib", "-no-reflect", "-nowarn", "-jvm-target", "1.8", "-module-name", "edgeweld"]);
        shell::run(java.arg("-cp").arg(class_path).args(sources).arg("-d").arg(jar))
    }

    /// Compiles the program in `source` and runs it as the rest of the command line `run`, with `sdk` on its class path.
    fn run(&self, mut run: Command, java: &[&str], sdk: &Path, source: &str, args: &[&str]) -> Result<()> {
        let class_path = format!("{}:{}", self.class_path, sdk.display());
        let jar = folder().join("kotlin/program.jar");
        self.compile(&[shell::workspace().join(source)], &class_path, &jar)?;
        let stem = Path::new(source).file_stem().context("a source has a name")?.to_string_lossy();
        run.arg("java").args(java).arg("-cp").arg(format!("{class_path}:{}", jar.display()));
        shell::run(run.arg(format!("{stem}Kt")).args(args))
    }
}

/// The SDK's classes, compiled.
pub(crate) fn classes() -> Result<PathBuf> {
    let kotlin = Kotlin::new()?;
    let jar = folder().join("kotlin/edgeweld.jar");
    let sources: Vec<_> = SOURCES.iter().map(|source| shell::workspace().join(source)).collect();
    kotlin.compile(&sources, &kotlin.class_path, &jar)?;
    Ok(jar)
}

/// Assembles an AAR with this machine's library, checks it, and runs the scenario on its contents; then the example.
pub(crate) fn test(scope: Scope) -> Result<()> {
    let built = Built::new(scope)?;
    let library = stripped(&built.library())?;
    let classes = classes()?;
    let kotlin = Kotlin::new()?;
    // The scenario runs on what an AAR holds, the example on the desktop's jar, which has its library inside.
    let unpacked = unpacked_aar(&library, &classes)?;
    let path = format!("-Djna.library.path={}", unpacked.join("jni").join(aar::HOST_ABI).display());
    let java: &[&str] = &["-Xmx256m", &path];
    kotlin.run(built.scenario(), java, &unpacked.join("classes.jar"), "bindings/tests/kotlin/Scenario.kt", &[])?;
    let jar = desktop_jar(&library, &classes)?;
    kotlin.run(built.scenario(), &["-Xmx256m"], &jar, "examples/kotlin-jvm/Main.kt", &EXAMPLE_ARGS)
}

/// Measures the library in the shipped profile; with `leaks`, also what is left after thousands of turns, which takes minutes.
pub(crate) fn figures(leaks: bool) -> Result<()> {
    let built = Built::new(Scope::Sdk)?;
    let jar = desktop_jar(&stripped(&super::android::shipped_library()?)?, &classes()?)?;
    // A heap of constant size, so that what grows is ours.
    let java = ["-Xms64m", "-Xmx64m", "-XX:+AlwaysPreTouch"];
    let args: &[&str] = if leaks { &["leaks"] } else { &[] };
    Kotlin::new()?.run(built.scenario(), &java, &jar, "bindings/tests/kotlin/Figures.kt", args)
}

fn stripped(library: &Path) -> Result<PathBuf> {
    let copy = folder().join(LIBRARY);
    strip(library, &copy)?;
    Ok(copy)
}

/// The jar for desktop JVMs: the classes, and the library where JNA looks for this system's.
fn desktop_jar(library: &Path, classes: &Path) -> Result<PathBuf> {
    let system = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("macos", "aarch64") => "darwin-aarch64",
        ("macos", _) => "darwin-x86-64",
        (_, "aarch64") => "linux-aarch64",
        _ => "linux-x86-64",
    };
    let jar = folder().join("kotlin/edgeweld-desktop.jar");
    fs::copy(classes, &jar)?;
    let mut zip = ZipWriter::new_append(File::options().read(true).write(true).open(&jar)?)?;
    zip.start_file(format!("{system}/{LIBRARY}"), SimpleFileOptions::default())?;
    zip.write_all(&fs::read(library)?)?;
    zip.finish()?;
    Ok(jar)
}

/// An AAR with this machine's library, checked and unpacked.
fn unpacked_aar(library: &Path, classes: &Path) -> Result<PathBuf> {
    let path = folder().join("edgeweld-host.aar");
    aar::assemble(&path, classes, &[Native { abi: aar::HOST_ABI, library: library.to_owned() }])?;
    println!("{}", aar::check(&path, aar::System::Host)?);
    let unpacked = emptied(folder().join("aar"))?;
    let mut archive = zip::ZipArchive::new(File::open(&path)?)?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let target = unpacked.join(entry.enclosed_name().context("a name inside the archive")?);
        fs::create_dir_all(target.parent().context("an entry has a folder")?)?;
        io::copy(&mut entry, &mut File::create(target)?)?;
    }
    Ok(unpacked)
}

fn joined(paths: impl IntoIterator<Item = PathBuf>) -> String {
    paths.into_iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
}
