//! The command line of the edge side.
//!
//! `cargo run --release -p edgeweld-examples --features onnx --bin edgeweld -- export-onnx model.gguf -o folder`

use std::error::Error;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use edgeweld::CancelToken;
use edgeweld::model::{Activations, ExportOptions, export_onnx};

/// Prepare models for devices.
#[derive(Parser)]
#[command(name = "edgeweld")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a GGUF model as a folder for ONNX Runtime, in the layout of onnxruntime-genai
    ///
    /// The weights are taken over exactly, whatever their block type. The model file itself goes into the folder too (as
    /// a hard link where the disk allows): it has the tokenizer and the chat template, and packs are merged from it.
    ExportOnnx {
        /// The GGUF file, or the name of a test model
        model: String,
        /// The folder to write
        #[arg(short, long)]
        out: PathBuf,
        /// Longest context in tokens; the model's own, up to 4096, by default
        #[arg(long)]
        context: Option<usize>,
        /// Quantise activations to 8 bits: decodes faster, answers less exactly
        #[arg(long)]
        int8_activations: bool,
        /// Write inputs for a pack's pairs, for programs that run ONNX Runtime's adapters
        #[arg(long)]
        side_path: bool,
    },
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { command: Command::ExportOnnx { model, out, context, int8_activations, side_path } } =
        Arguments::parse();
    let model = edgeweld_examples::model_path(&model)?;
    let cancel = CancelToken::new();
    let stop = cancel.clone();
    ctrlc::set_handler(move || stop.cancel())?;
    let activations = if int8_activations { Activations::Int8 } else { Activations::Exact };
    let options = ExportOptions { context_length: context, activations, side_path, cancel };
    let exported = export_onnx(model, &out, &options)?;
    let megabytes = exported.data_size_bytes / 1_000_000;
    println!("{}: {megabytes} MB of constants, context {}", out.display(), exported.context_length);
    Ok(())
}
