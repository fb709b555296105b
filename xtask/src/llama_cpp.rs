//! llama.cpp, built from the source that the Python package `llama-cpp-python` carries. Only `bench --vs llama-cpp`
//! needs it; the build takes about 15 CPU-minutes, once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{python, shell};

const PACKAGE: &str = "llama-cpp-python==0.3.36";
const PROGRAMS: [&str; 3] = ["llama-bench", "llama-quantize", "llama-completion"];
/// A native optimised build without what needs other libraries.
const OPTIONS: [&str; 8] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
];

/// The folder with llama.cpp's programs: `EDGEWELD_LLAMA_BIN`, else built here if it was not before.
pub(crate) fn programs() -> Result<PathBuf> {
    if let Some(folder) = shell::folder_from("EDGEWELD_LLAMA_BIN") {
        return Ok(folder);
    }
    let peer = shell::build_folder().join("peers/llama.cpp");
    let programs = peer.join("build/bin");
    if PROGRAMS.iter().all(|program| programs.join(program).is_file()) {
        return Ok(programs);
    }
    if !shell::succeeds(&mut shell::command("cmake", &["--version"])) {
        bail!(
            "building llama.cpp needs cmake and a C++ compiler; or name a folder with its programs in EDGEWELD_LLAMA_BIN"
        );
    }
    let source = source(&peer)?;
    let build = peer.join("build");
    let mut configure = shell::command("cmake", &OPTIONS);
    shell::run(configure.arg("-S").arg(source).arg("-B").arg(&build))?;
    let mut make = shell::command("cmake", &["--build"]);
    let jobs = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    shell::run(make.arg(build).args(["-j", &jobs, "--target"]).args(PROGRAMS))?;
    Ok(programs)
}

/// Downloads and unpacks the source package; the folder with llama.cpp's CMakeLists.txt.
fn source(peer: &Path) -> Result<PathBuf> {
    fs::create_dir_all(peer)?;
    if unpacked(peer).is_none() {
        python::download(PACKAGE, peer, &["--no-binary=:all:"])?;
        let archive = entry(peer, |name| name.ends_with(".tar.gz")).context("pip left no source archive")?;
        let python = python::with_pip()?;
        shell::run(shell::command(python, &["-m", "tarfile", "-e"]).args([&archive, peer]))?;
    }
    unpacked(peer).with_context(|| format!("{PACKAGE} carries no llama.cpp"))
}

fn unpacked(peer: &Path) -> Option<PathBuf> {
    let folder = entry(peer, |name| name.starts_with("llama_cpp_python-") && !name.ends_with(".tar.gz"))?;
    let source = folder.join("vendor/llama.cpp");
    source.join("CMakeLists.txt").is_file().then_some(source)
}

fn entry(folder: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| wanted(&name.to_string_lossy())))
}
