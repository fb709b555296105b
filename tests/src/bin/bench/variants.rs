//! The test models in other block types, made once from the shipped files. What comes out has the block types that
//! `llama-quantize` chooses without an importance matrix, and its bytes: the rounding is ggml's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use edgeweld::CancelToken;
use edgeweld::gguf::{GgufFile, GgufWriter, Tensor, Value};
use edgeweld::quant::{BlockType, WeightBytes, dequantize, quantize};

/// Block types that every shipped model is also measured in.
const VARIANTS: [BlockType; 3] = [BlockType::Q4_0, BlockType::Q8_0, BlockType::Q4_K];
/// Weights that are held as f32 at a time.
const PIECE: usize = 1 << 20;

/// The variants of the model file `shipped`, in the folder `variants` beside it. Those that are missing are made, by a
/// process of its own: a child's peak memory counts from its parent's, so that whoever starts samples must stay small.
pub(crate) fn of(shipped: &Path) -> Result<Vec<PathBuf>> {
    let paths = paths(shipped);
    if !paths.iter().all(|path| path.exists()) {
        let status = Command::new(std::env::current_exe()?).arg("variants").arg(shipped).status()?;
        ensure!(status.success(), "the variants of {} were not made", shipped.display());
    }
    Ok(paths)
}

/// Makes the variants that are missing.
pub(crate) fn make_missing(shipped: &Path) -> Result<()> {
    for (path, block_type) in paths(shipped).iter().zip(VARIANTS) {
        if !path.exists() {
            eprintln!("making {}", path.display());
            fs::create_dir_all(path.parent().expect("in a folder")).with_context(|| path.display().to_string())?;
            make(&GgufFile::open(shipped)?, block_type)?.save(path, &CancelToken::new())?;
        }
    }
    Ok(())
}

fn paths(shipped: &Path) -> Vec<PathBuf> {
    let folder = shipped.with_file_name("variants");
    let stem = shipped.file_stem().unwrap_or_default().to_string_lossy();
    VARIANTS.iter().map(|block_type| folder.join(format!("{stem}-as-{block_type}.gguf"))).collect()
}

/// `file` with its matrices in `block_type`, or what [`for_tensor`] gives in its place.
fn make(file: &GgufFile, block_type: BlockType) -> Result<GgufWriter> {
    let tied = file.opt_tensor("output.weight").is_none();
    let mut writer = GgufWriter::new();
    writer.copy_metadata(file, &["general.file_type"])?;
    writer.metadata("general.file_type", &Value::U32(file_type(block_type)))?;
    for tensor in file.tensors() {
        let (name, shape) = (tensor.name(), tensor.shape());
        let wanted = match shape {
            [_, cols] => for_tensor(block_type, name, *cols as usize, tied),
            _ => tensor.block_type(),
        };
        let bytes = if wanted == tensor.block_type() { tensor.weight_bytes() } else { convert(tensor, wanted) };
        writer.tensor(name, wanted, shape, bytes)?;
    }
    Ok(writer)
}

/// The block type of a matrix in a model of `block_type`: the head (a `tied` one is the embedding) has more bits, and
/// rows that are not whole blocks take the next larger type with shorter ones.
pub(crate) fn for_tensor(block_type: BlockType, name: &str, cols: usize, tied: bool) -> BlockType {
    let head = if tied { "token_embd.weight" } else { "output.weight" };
    let wanted = if name == head && block_type != BlockType::Q8_0 { BlockType::Q6_K } else { block_type };
    match wanted {
        _ if cols.is_multiple_of(wanted.block_len()) => wanted,
        BlockType::Q4_K => BlockType::Q5_0,
        _ => BlockType::Q8_0,
    }
}

/// llama.cpp's number of the file type, which it shows.
pub(crate) fn file_type(block_type: BlockType) -> u32 {
    match block_type {
        BlockType::Q4_0 => 2,
        BlockType::Q8_0 => 7,
        BlockType::Q4_K => 14,
        other => other.ggml_number(),
    }
}

/// The tensor's weights in another block type, rounded as ggml does.
pub(crate) fn convert(tensor: Tensor<'_>, block_type: BlockType) -> WeightBytes {
    let from = tensor.block_type();
    // Whole blocks of both types.
    let mut values = vec![0.0; PIECE];
    let size_of =
        |block_type: BlockType, weights: usize| weights / block_type.block_len() * block_type.block_size_bytes();
    let count = tensor.bytes().len() / from.block_size_bytes() * from.block_len();
    let mut bytes = vec![0; size_of(block_type, count)];
    let pieces = tensor.bytes().chunks(size_of(from, PIECE)).zip(bytes.chunks_mut(size_of(block_type, PIECE)));
    for (source, out) in pieces {
        let values = &mut values[..source.len() / from.block_size_bytes() * from.block_len()];
        dequantize(from, source, values);
        quantize(block_type, values, out);
    }
    WeightBytes::Owned(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> GgufWriter {
        let weights: Vec<u8> = (0..64 * 256).flat_map(|i| ((i % 37) as f32 / 37.0).to_le_bytes()).collect();
        let mut writer = GgufWriter::new();
        writer.metadata("general.file_type", &Value::U32(0)).unwrap();
        writer.metadata("general.architecture", &Value::String("llama".into())).unwrap();
        let owned = |bytes: &[u8]| WeightBytes::Owned(bytes.into());
        writer.tensor("token_embd.weight", BlockType::F32, &[64, 256], owned(&weights)).unwrap();
        writer.tensor("blk.0.ffn_up.weight", BlockType::F32, &[128, 128], owned(&weights)).unwrap();
        writer.tensor("output_norm.weight", BlockType::F32, &[256], owned(&weights[..1024])).unwrap();
        writer
    }

    #[test]
    fn a_variant_keeps_everything_but_the_matrices_block_type() {
        let file = GgufFile::from_bytes(small().to_bytes()).unwrap();
        let variant = GgufFile::from_bytes(make(&file, BlockType::Q4_K).unwrap().to_bytes()).unwrap();
        let type_of = |name: &str| variant.tensor(name).unwrap().block_type();
        assert_eq!(type_of("token_embd.weight"), BlockType::Q6_K, "a tied head");
        assert_eq!(type_of("blk.0.ffn_up.weight"), BlockType::Q5_0, "rows of half a block");
        assert_eq!(variant.vector("output_norm.weight").unwrap(), file.vector("output_norm.weight").unwrap());
        assert_eq!(variant.metadata().str("general.architecture").unwrap(), "llama");
        assert_eq!(variant.metadata().u32("general.file_type").unwrap(), 14);
        let mut values = vec![0.0; 64 * 256];
        dequantize(BlockType::Q6_K, variant.matrix("token_embd.weight").unwrap().bytes(), &mut values);
        let worst =
            values.iter().enumerate().map(|(i, value)| (value - (i % 37) as f32 / 37.0).abs()).fold(0.0, f32::max);
        assert!(worst < 0.03, "{worst}");
    }

    #[test]
    fn variants_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let shipped = folder.path().join("m.gguf");
        small().save(&shipped, &CancelToken::new()).unwrap();
        make_missing(&shipped).unwrap();
        let paths = of(&shipped).unwrap();
        let names: Vec<_> = paths.iter().map(|path| path.file_name().unwrap().to_string_lossy()).collect();
        assert_eq!(names, ["m-as-Q4_0.gguf", "m-as-Q8_0.gguf", "m-as-Q4_K.gguf"]);
        fs::write(&paths[0], "kept").unwrap();
        make_missing(&shipped).unwrap();
        assert_eq!(fs::read(&paths[0]).unwrap(), b"kept");
    }
}
