//! Commands whose work is a program of another package, built with optimisation.

use anyhow::Result;

use crate::{llama_cpp, models, shell};

/// `cargo xtask parity`.
pub(crate) fn parity(args: &[String]) -> Result<()> {
    release("parity", &[], args)
}

/// `cargo xtask bench`.
pub(crate) fn bench(args: &[String]) -> Result<()> {
    let mut args = args.to_vec();
    if args.iter().any(|arg| arg.contains("llama-cpp")) && !args.iter().any(|arg| arg.starts_with("--llama-bin")) {
        args.extend(["--llama-bin".to_owned(), llama_cpp::programs()?.display().to_string()]);
    }
    release("bench", WITHOUT_CANDLE, &args)
}

/// `cargo xtask demo`: builds the server's program and the demo, which runs it.
pub(crate) fn demo(args: &[String]) -> Result<()> {
    models::obtain()?;
    build("edgeweld-cloud", "cloud-generator", &[])?;
    build("edgeweld-tests", "demo", WITHOUT_CANDLE)?;
    run_built("demo", args)
}

/// The tensor library is minutes of building, and only `parity` compares with it.
const WITHOUT_CANDLE: &[&str] = &["--no-default-features"];

fn release(bin: &str, features: &[&str], args: &[String]) -> Result<()> {
    models::obtain()?;
    build("edgeweld-tests", bin, features)?;
    run_built(bin, args)
}

fn build(package: &str, bin: &str, features: &[&str]) -> Result<()> {
    let args = ["build", "--release", "--package", package, "--bin", bin];
    shell::run(&mut shell::cargo(&[&args, features].concat()))
}

fn run_built(bin: &str, args: &[String]) -> Result<()> {
    let program = shell::build_folder().join("release").join(format!("{bin}{}", std::env::consts::EXE_SUFFIX));
    shell::run(shell::command(program, args).env("EDGEWELD_MODELS", models::folder()))
}
