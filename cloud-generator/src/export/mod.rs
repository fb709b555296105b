//! A pack's LoRA in other programs' formats: [peft](fn@peft), [llama.cpp](fn@gguf) and [ONNX Runtime](fn@ort_adapter).
//!
//! These files carry neither signature nor prompt digest: whoever opens them trusts their source otherwise.

mod gguf;
mod ort_adapter;
mod peft;

use edgeweld::lora::LoraSet;
use edgeweld::quant::{BlockType, WeightBytes};
use half::f16;

pub use gguf::gguf;
pub use ort_adapter::ort_adapter;
pub use peft::peft;

/// The smaller of f16 and f32 that holds every value of the LoRA exactly; packs usually hold f16.
fn exact_type(lora: &LoraSet) -> BlockType {
    let is_f16 = |value: &f32| f16::from_f32(*value).to_f32().to_bits() == value.to_bits();
    let pairs = || lora.layers.iter().flat_map(|layer| [&layer.gate, &layer.up, &layer.down]).flatten();
    let all_f16 = pairs().all(|pair| pair.a.iter().chain(&pair.b).all(is_f16));
    if all_f16 { BlockType::F16 } else { BlockType::F32 }
}

fn bytes<'a>(values: impl IntoIterator<Item = &'a f32>, block_type: BlockType) -> WeightBytes {
    let values = values.into_iter();
    let bytes: Vec<u8> = match block_type {
        BlockType::F16 => values.flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        _ => values.flat_map(|value| value.to_le_bytes()).collect(),
    };
    WeightBytes::Owned(bytes.into())
}
