use std::path::Path;

use edgeweld::CancelToken;
use edgeweld::gguf::{GgufWriter, Value};
use edgeweld::lora::{LoraSet, Target};
use edgeweld::pack::Manifest;

use super::{bytes, exact_type};
use crate::Result;

/// Writes the GGUF file that llama.cpp takes as `--lora`.
///
/// # Errors
/// [`edgeweld::Error::Io`], [`edgeweld::Error::Cancelled`].
pub fn gguf(lora: &LoraSet, manifest: &Manifest, path: &Path, cancel: &CancelToken) -> Result<()> {
    let rank = lora.layers.iter().find_map(|layer| Target::ALL.into_iter().find_map(|target| layer.pair(target)));
    let alpha = lora.scale * rank.map_or(1, |pair| pair.a.nrows()) as f32;
    let mut writer = GgufWriter::new();
    for (key, value) in [
        ("general.type", Value::String("adapter".into())),
        ("general.architecture", Value::String(manifest.model.architecture.clone())),
        ("adapter.type", Value::String("lora".into())),
        // llama.cpp divides by the rank, which it takes from the tensors.
        ("adapter.lora.alpha", Value::F32(alpha)),
    ] {
        writer.metadata(key, &value)?;
    }
    let block_type = exact_type(lora);
    for (index, layer) in lora.layers.iter().enumerate() {
        for target in Target::ALL {
            let Some(pair) = layer.pair(target) else { continue };
            for (half, values) in [("a", &pair.a), ("b", &pair.b)] {
                let shape = [values.nrows() as u32, values.ncols() as u32];
                let name = format!("blk.{index}.{}.weight.lora_{half}", ggml_name(target));
                writer.tensor(&name, block_type, &shape, bytes(values, block_type))?;
            }
        }
    }
    Ok(writer.save(path, cancel)?)
}

fn ggml_name(target: Target) -> &'static str {
    match target {
        Target::Gate => "ffn_gate",
        Target::Up => "ffn_up",
        Target::Down => "ffn_down",
    }
}
