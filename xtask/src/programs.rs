//! Commands whose work is a program of another package, built with optimisation.

use anyhow::Result;

use crate::{llama_cpp, models, shell};

/// `cargo xtask parity`.
pub(crate) fn parity(args: &[String]) -> Result<()> {
    release("edgeweld-tests", "parity", args)
}

/// `cargo xtask bench`.
pub(crate) fn bench(args: &[String]) -> Result<()> {
    let mut args = args.to_vec();
    if args.iter().any(|arg| arg.contains("llama-cpp")) && !args.iter().any(|arg| arg.starts_with("--llama-bin")) {
        args.extend(["--llama-bin".to_owned(), llama_cpp::programs()?.display().to_string()]);
    }
    release("edgeweld-tests", "bench", &args)
}

/// `cargo xtask demo`.
pub(crate) fn demo(args: &[String]) -> Result<()> {
    release("edgeweld-examples", "demo", args)
}

fn release(package: &str, bin: &str, args: &[String]) -> Result<()> {
    models::obtain()?;
    let mut run = shell::cargo(&["run", "--release", "--quiet", "--package", package, "--bin", bin, "--"]);
    shell::run(run.args(args).env("EDGEWELD_MODELS", models::folder()))
}
