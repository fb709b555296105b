use anyhow::Result;
use edgeweld::gguf::GgufFile;
use edgeweld::lora::{LoraSet, Target};
use edgeweld::model::Config;
use edgeweld::quant::dequantize;
use edgeweld_tests::random_lora;
use ndarray::Array2;

/// Weights that are held as f32 at a time.
const PIECE: usize = 1 << 16;

/// Random pairs for the given targets of every layer, each scaled so that its delta has `norm` times its weight's norm.
pub(super) fn scaled(file: &GgufFile, config: &Config, rank: usize, norm: f64, targets: &[Target]) -> Result<LoraSet> {
    let mut lora = random_lora(config, rank, 1.0, 1);
    for (index, layer) in lora.layers.iter_mut().enumerate() {
        for target in Target::ALL {
            let place = layer.pair_mut(target);
            if !targets.contains(&target) {
                *place = None;
                continue;
            }
            let Some(pair) = place else { continue };
            let weight = weight_norm(file, index, target)?;
            let factor = norm * weight / delta_norm(&pair.a, &pair.b);
            pair.b *= factor as f32;
        }
    }
    Ok(lora)
}

/// GGUF's name of a target's weight.
pub(super) fn tensor_name(layer: usize, target: Target) -> String {
    format!("blk.{layer}.ffn_{}.weight", target.name().trim_end_matches("_proj"))
}

fn weight_norm(file: &GgufFile, layer: usize, target: Target) -> Result<f64> {
    let weight = file.matrix(&tensor_name(layer, target))?;
    let (block_type, bytes) = (weight.block_type(), weight.bytes());
    let piece = PIECE / block_type.block_len() * block_type.block_size_bytes();
    let mut values = vec![0.0; PIECE];
    let mut sum = 0.0;
    for bytes in bytes.chunks(piece) {
        let values = &mut values[..bytes.len() / block_type.block_size_bytes() * block_type.block_len()];
        dequantize(block_type, bytes, values);
        sum += values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    }
    Ok(sum.sqrt())
}

/// `‖b·a‖ = sqrt(trace((bᵀb)(aaᵀ)))`, without the product.
fn delta_norm(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    let (left, right) = (b.t().dot(b), a.dot(&a.t()));
    left.iter().zip(right.t().iter()).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_of_a_product_needs_no_product() {
        let a = Array2::from_shape_fn((3, 7), |(i, j)| (i * 7 + j) as f32 * 0.1 - 1.0);
        let b = Array2::from_shape_fn((5, 3), |(i, j)| (i + 2 * j) as f32 * 0.3 - 0.7);
        let expected = b.dot(&a).iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        assert!((delta_norm(&a, &b) - expected).abs() < 1e-4 * expected);
    }
}
