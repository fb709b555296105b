use std::path::PathBuf;

use clap::{Args, ValueEnum};
use edgeweld::CancelToken;
use edgeweld_cloud::{Result, export};

use super::pack_file::PackFile;

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A folder with adapter_config.json and adapter_model.safetensors, for Python's peft.
    Peft,
    /// A GGUF file for llama.cpp's --lora.
    Gguf,
    /// An adapter file for ONNX Runtime, whose parameters are the inputs of our ONNX graphs.
    OnnxAdapter,
}

/// Write a pack's LoRA in another program's format.
#[derive(Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pack: PackFile,
    /// Format.
    #[arg(long, value_enum)]
    format: Format,
    /// Folder (peft) or file.
    #[arg(short, long)]
    output: PathBuf,
    /// Name or folder of the base model, for peft's configuration.
    #[arg(long)]
    base_model: Option<String>,
}

pub(crate) fn run(args: &ExportArgs, cancel: &CancelToken) -> Result<()> {
    let (manifest, lora) = args.pack.lora()?;
    match args.format {
        Format::Peft => export::peft(&lora, &manifest, args.base_model.as_deref(), &args.output)?,
        Format::Gguf => export::gguf(&lora, &manifest, &args.output, cancel)?,
        Format::OnnxAdapter => export::ort_adapter(&lora, &args.output)?,
    }
    println!("{}", args.output.display());
    Ok(())
}
