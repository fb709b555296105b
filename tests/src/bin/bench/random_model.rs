//! Models with random weights, as big as one likes: decoding one shows how much of the memory's bandwidth is used.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use edgeweld::CancelToken;
use edgeweld::gguf::{GgufWriter, Value};
use edgeweld::quant::{BlockType, WeightBytes, quantize};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::variants;

#[derive(Args)]
pub(crate) struct Options {
    /// What the model looks like
    #[arg(long, value_enum, default_value = "tinyllama")]
    shape: ShapeName,
    /// Block type of the matrices: q4_0, q8_0, q4_k, …
    #[arg(long = "type", default_value = "q4_0", value_parser = block_type)]
    block_type: BlockType,
    /// The GGUF file to write
    out: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum ShapeName {
    /// TinyLlama: 1.1 billion weights
    Tinyllama,
}

/// A Llama-family model.
struct Shape {
    layers: u32,
    hidden: u32,
    ffn: u32,
    heads: u32,
    kv_heads: u32,
    vocab: u32,
    context: u32,
}

impl ShapeName {
    fn shape(self) -> Shape {
        match self {
            Self::Tinyllama => {
                Shape { layers: 22, hidden: 2048, ffn: 5632, heads: 32, kv_heads: 4, vocab: 32_000, context: 2048 }
            }
        }
    }
}

fn block_type(name: &str) -> Result<BlockType> {
    match BlockType::ALL.into_iter().find(|block_type| block_type.name().eq_ignore_ascii_case(name)) {
        Some(BlockType::Q8_1 | BlockType::Q8_K) => bail!("{name} is a type of activations"),
        Some(block_type) => Ok(block_type),
        None => bail!("{name:?} is no ggml block type"),
    }
}

/// Writes the model.
pub(crate) fn make(options: &Options) -> Result<()> {
    let writer = build(&options.shape.shape(), options.block_type)?;
    writer.save(&options.out, &CancelToken::new())?;
    println!("{}", options.out.display());
    Ok(())
}

fn build(shape: &Shape, block_type: BlockType) -> Result<GgufWriter> {
    let mut writer = GgufWriter::new();
    write_metadata(&mut writer, shape, block_type)?;
    let mut random = SmallRng::seed_from_u64(0);
    let mut matrix = |writer: &mut GgufWriter, name: String, rows: u32, cols: u32| -> Result<()> {
        let block_type = variants::for_tensor(block_type, &name, cols as usize, false);
        let bytes = random_weights(&mut random, block_type, rows as usize, cols as usize);
        writer.tensor(&name, block_type, &[rows, cols], bytes)?;
        Ok(())
    };
    let norm = |writer: &mut GgufWriter, name: String| -> Result<()> {
        let ones: Vec<u8> = (0..shape.hidden).flat_map(|_| 1_f32.to_le_bytes()).collect();
        writer.tensor(&name, BlockType::F32, &[shape.hidden], WeightBytes::Owned(ones.into()))?;
        Ok(())
    };
    let kv_size = shape.hidden / shape.heads * shape.kv_heads;
    matrix(&mut writer, "token_embd.weight".to_owned(), shape.vocab, shape.hidden)?;
    for layer in 0..shape.layers {
        for part in ["attn_norm", "ffn_norm"] {
            norm(&mut writer, format!("blk.{layer}.{part}.weight"))?;
        }
        for (part, rows, cols) in [
            ("attn_q", shape.hidden, shape.hidden),
            ("attn_k", kv_size, shape.hidden),
            ("attn_v", kv_size, shape.hidden),
            ("attn_output", shape.hidden, shape.hidden),
            ("ffn_gate", shape.ffn, shape.hidden),
            ("ffn_up", shape.ffn, shape.hidden),
            ("ffn_down", shape.hidden, shape.ffn),
        ] {
            matrix(&mut writer, format!("blk.{layer}.{part}.weight"), rows, cols)?;
        }
    }
    norm(&mut writer, "output_norm.weight".to_owned())?;
    matrix(&mut writer, "output.weight".to_owned(), shape.vocab, shape.hidden)?;
    Ok(writer)
}

/// The metadata of a Llama-2-like model: its tokens are bytes and numbered words.
fn write_metadata(writer: &mut GgufWriter, shape: &Shape, block_type: BlockType) -> Result<()> {
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let words = (0..).map(|word| format!("\u{2581}w{word}"));
    let tokens: Vec<String> = special.chain(bytes).chain(words).take(shape.vocab as usize).collect();
    // ggml's token types: 1 normal, 2 unknown, 3 control, 6 byte.
    let kind = |id: usize| match id {
        0 => 2,
        1 | 2 => 3,
        3..=258 => 6,
        _ => 1,
    };
    let kinds = (0..tokens.len()).map(kind).collect();
    let scores = (0..tokens.len()).map(|id| -(id as f32)).collect();
    for (key, value) in [
        ("general.architecture", Value::String("llama".to_owned())),
        ("general.name", Value::String("random weights".to_owned())),
        ("general.file_type", Value::U32(variants::file_type(block_type))),
        ("llama.block_count", Value::U32(shape.layers)),
        ("llama.context_length", Value::U32(shape.context)),
        ("llama.embedding_length", Value::U32(shape.hidden)),
        ("llama.feed_forward_length", Value::U32(shape.ffn)),
        ("llama.attention.head_count", Value::U32(shape.heads)),
        ("llama.attention.head_count_kv", Value::U32(shape.kv_heads)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.dimension_count", Value::U32(shape.hidden / shape.heads)),
        ("tokenizer.ggml.model", Value::String("llama".to_owned())),
        ("tokenizer.ggml.tokens", Value::Strings(tokens)),
        ("tokenizer.ggml.scores", Value::F32s(scores)),
        ("tokenizer.ggml.token_type", Value::I32s(kinds)),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
    ] {
        writer.metadata(key, &value)?;
    }
    Ok(())
}

/// Uniform weights that keep the activations' size from layer to layer.
fn random_weights(random: &mut SmallRng, block_type: BlockType, rows: usize, cols: usize) -> WeightBytes {
    let limit = (3.0 / cols as f32).sqrt();
    let row_size = cols / block_type.block_len() * block_type.block_size_bytes();
    let mut bytes = vec![0; rows * row_size];
    let mut row = vec![0.0; cols];
    for out in bytes.chunks_exact_mut(row_size) {
        row.fill_with(|| random.random_range(-limit..limit));
        quantize(block_type, &row, out);
    }
    WeightBytes::Owned(bytes.into())
}

#[cfg(test)]
mod tests {
    use edgeweld::generate::{Engine, GenerateOptions, LoadOptions, Token};

    use super::*;

    #[test]
    fn a_random_model_loads_and_generates() {
        let shape = Shape { layers: 2, hidden: 64, ffn: 96, heads: 4, kv_heads: 2, vocab: 300, context: 32 };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("random.gguf");
        build(&shape, BlockType::Q4_0).unwrap().save(&path, &CancelToken::new()).unwrap();
        let engine = Engine::load(&path, &LoadOptions::default()).unwrap();
        assert_eq!(engine.tokenizer().vocab_size(), 300);
        let options = GenerateOptions { max_tokens: 3, ..GenerateOptions::default() };
        let mut session = engine.session().unwrap();
        let generation = session.complete("ab", &options, &mut |_: &Token| ()).unwrap();
        assert_eq!(generation.prompt_tokens, 4, "BOS, space, two bytes");
    }

    #[test]
    fn block_types_are_named_in_any_case() {
        assert_eq!(block_type("q4_0").unwrap(), BlockType::Q4_0);
        assert!(block_type("q8_k").is_err() && block_type("q9").is_err());
    }
}
