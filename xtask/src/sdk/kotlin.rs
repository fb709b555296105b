//! Kotlin on the JVM: the compiler and libraries come from npm and Maven into the build folder; classes and library go into
//! an AAR, and the scenario runs on what is in it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use zip::write::SimpleFileOptions;
use zip::{ZipArchive, ZipWriter};

use super::aar::{self, Native};
use super::{Built, EXAMPLE_ARGS, LIBRARY, Scope, emptied, folder};
use crate::shell;

const COMPILER: &str = "kotlin-compiler@2.4.20";
/// 5.17 is the first with libraries for 16 KB pages; 5.18.1 mends a race.
const JNA: (&str, &str) = ("net.java.dev.jna:jna:5.19.1", "jna-5.19.1.jar");
/// All of the SDK in Kotlin; Android's project compiles the same folders.
const SOURCES: [&str; 2] = ["bindings/kotlin/src/generated/kotlin", "bindings/kotlin/src/main/kotlin"];

/// What the programs below read the scenario's facts with.
const FACTS: &str = "bindings/tests/kotlin/Facts.kt";
const SCENARIO: [&str; 2] = [FACTS, "bindings/tests/kotlin/Scenario.kt"];
const FIGURES: [&str; 2] = [FACTS, "bindings/tests/kotlin/Figures.kt"];

/// The sample app without its activity, and the program that plays it.
const SAMPLE: [&str; 4] = [
    "android/sample/src/main/kotlin/dev/edgeweld/sample/ChatModel.kt",
    "android/sample/src/main/kotlin/dev/edgeweld/sample/Screens.kt",
    FACTS,
    "bindings/tests/kotlin/Sample.kt",
];
/// Names Compose's libraries for a desktop.
const COMPOSE: &str = "android/sample/host-check.xml";

/// Why Kotlin cannot run here, if it cannot.
pub(crate) fn missing() -> Option<String> {
    let tools = [("java", "-version"), ("npm", "--version"), ("mvn", "--version")];
    let missing = tools.into_iter().find(|(tool, version)| !shell::succeeds(&mut shell::command(tool, &[version])));
    missing.map(|(tool, _)| format!("no {tool}"))
}

struct Kotlin {
    /// The compiler and its plugins.
    lib: PathBuf,
    flags: Vec<String>,
    /// Kotlin's standard library, coroutines, assertions and JNA.
    class_path: String,
}

impl Kotlin {
    fn new() -> Result<Self> {
        let folder = folder().join("kotlin");
        fs::create_dir_all(&folder)?;
        let lib = folder.join("node_modules/kotlin-compiler/lib");
        if !lib.is_dir() {
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
        let class_path = joined(jars);
        // Class files that every Android toolchain reads.
        Ok(Self { lib, flags: vec!["-jvm-target".into(), "1.8".into()], class_path })
    }

    /// With Compose for desktops, whose surface is Android's.
    fn with_compose(mut self) -> Result<Self> {
        let folder = folder().join("kotlin/compose");
        if !folder.is_dir() {
            let mut mvn = shell::command("mvn", &["--quiet", "--batch-mode", "dependency:copy-dependencies", "--file"]);
            mvn.arg(COMPOSE).arg(format!("-DoutputDirectory={}", folder.display()));
            shell::run(&mut mvn)?;
        }
        let jars = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        // Ours come first: Compose names older ones of the standard library.
        self.class_path = format!("{}:{}", self.class_path, joined(jars));
        let plugin = self.lib.join("compose-compiler-plugin.jar");
        self.flags = vec!["-jvm-target".into(), "17".into(), format!("-Xplugin={}", plugin.display())];
        Ok(self)
    }

    fn compile(&self, sources: &[PathBuf], class_path: &str, jar: &Path) -> Result<()> {
        let mut java = shell::command("java", &["-Xmx2g", "-cp"]);
        java.arg(self.lib.join("kotlin-compiler.jar")).arg("org.jetbrains.kotlin.cli.jvm.K2JVMCompiler");
        java.args(["-no-stdlib", "-no-reflect", "-nowarn", "-module-name", "edgeweld"]).args(&self.flags);
        shell::run(java.arg("-cp").arg(class_path).args(sources).arg("-d").arg(jar))
    }

    /// Compiles the program in `sources`, the last of which starts it, and runs it as the rest of the command line `run`, with
    /// `sdk` on its class path.
    fn run(&self, mut run: Command, java: &[&str], sdk: &Path, sources: &[&str], args: &[&str]) -> Result<()> {
        let class_path = format!("{}:{}", self.class_path, sdk.display());
        let jar = folder().join("kotlin/program.jar");
        let sources: Vec<_> = sources.iter().map(|source| shell::workspace().join(source)).collect();
        self.compile(&sources, &class_path, &jar)?;
        let stem =
            sources.last().and_then(|source| source.file_stem()).context("a source has a name")?.to_string_lossy();
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

/// Plays the scenario on an AAR with this machine's library, and runs the example on the desktop's jar.
pub(crate) fn test(scope: Scope) -> Result<()> {
    let built = Built::new(scope)?;
    let (library, classes) = (built.stripped()?, classes()?);
    let path = folder().join("edgeweld-host.aar");
    aar::assemble(&path, &classes, &[Native { abi: aar::HOST_ABI, library: library.clone() }])?;
    println!("{}", aar::check(&path, aar::System::Host)?);
    play(&built, &path)?;
    let jar = desktop_jar(&library, &classes)?;
    Kotlin::new()?.run(built.scenario(), &["-Xmx256m"], &jar, &["examples/kotlin-jvm/Main.kt"], &EXAMPLE_ARGS)
}

/// Plays the scenario on what is in an AAR: its classes and its library for this machine.
pub(crate) fn play(built: &Built, aar: &Path) -> Result<()> {
    let unpacked = unpacked(aar)?;
    let path = format!("-Djna.library.path={}", unpacked.join("jni").join(aar::HOST_ABI).display());
    let (java, classes) = (["-Xmx256m", &path], unpacked.join("classes.jar"));
    Kotlin::new()?.run(built.scenario(), &java, &classes, &SCENARIO, &[])
}

/// Runs Android's sample without its activity, and draws its screens as pictures.
pub(crate) fn sample(built: &Built, aar: &Path) -> Result<()> {
    let (unpacked, pictures) = (unpacked(aar)?, emptied(folder().join("sample"))?);
    let path = format!("-Djna.library.path={}", unpacked.join("jni").join(aar::HOST_ABI).display());
    let java = ["-Xmx512m", "-Djava.awt.headless=true", &path];
    let args = [&*pictures.to_string_lossy()];
    let kotlin = Kotlin::new()?.with_compose()?;
    kotlin.run(built.scenario(), &java, &unpacked.join("classes.jar"), &SAMPLE, &args)
}

/// Measures the library that apps ship.
pub(crate) fn figures(args: &[&str]) -> Result<()> {
    let built = Built::shipped()?;
    let jar = desktop_jar(&built.stripped()?, &classes()?)?;
    Kotlin::new()?.run(built.scenario(), &["-Xmx256m"], &jar, &FIGURES, args)
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

/// The folder that an archive is unpacked to.
fn unpacked(aar: &Path) -> Result<PathBuf> {
    let unpacked = emptied(folder().join("aar"))?;
    let mut archive = ZipArchive::new(File::open(aar)?)?;
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
