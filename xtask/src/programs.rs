//! Commands whose work is a program of another package, built with optimisation.

use anyhow::Result;

use crate::{llama_cpp, models, onnxruntime, python, shell};

/// `cargo xtask parity`.
pub(crate) fn parity(args: &[String]) -> Result<()> {
    release("parity", with_onnx(args, &[]), args)
}

/// `cargo xtask bench`.
pub(crate) fn bench(args: &[String]) -> Result<()> {
    let mut args = args.to_vec();
    if args.iter().any(|arg| arg.contains("llama-cpp")) && !args.iter().any(|arg| arg.starts_with("--llama-bin")) {
        args.extend(["--llama-bin".to_owned(), llama_cpp::programs()?.display().to_string()]);
    }
    if args.iter().any(|arg| arg.contains("onnxruntime-genai"))
        && !args.iter().any(|arg| arg.starts_with("--genai-python"))
    {
        args.extend(["--genai-python".to_owned(), python::with_genai()?.display().to_string()]);
    }
    release("bench", with_onnx(&args, WITHOUT_CANDLE), &args)
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

/// Features for these arguments: ONNX Runtime is compared with everything there is.
fn with_onnx(args: &[String], otherwise: &'static [&'static str]) -> &'static [&'static str] {
    if args.iter().any(|arg| arg.contains("onnx")) { &["--features", "onnx"] } else { otherwise }
}

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
    let mut run = shell::command(program, args);
    run.env("EDGEWELD_MODELS", models::folder());
    if args.iter().any(|arg| arg.contains("onnx")) {
        run.env("EDGEWELD_ONNXRUNTIME", onnxruntime::library()?);
    }
    shell::run(&mut run)
}
