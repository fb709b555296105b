use ndarray::{Array2, Axis, concatenate};

use crate::lora::{LayerLora, LoraPair, LoraSet, Target};
use crate::pack::{Content, Gates};
use crate::verify::{VerifiedPack, VerifiedPool};
use crate::{Error, Result};

/// Combines LoRAs by weights, exactly: `Δ = Σ wᵢ·Δᵢ`. Ranks add up.
///
/// # Errors
/// [`Error::InvalidOption`] for no LoRA at all; [`Error::ShapeMismatch`] if their layers or widths differ.
pub fn combine_loras(parts: &[(&LoraSet, f32)]) -> Result<LoraSet> {
    let layer_count = layer_count(parts.first().map(|(lora, _)| lora.layers.len()))?;
    let mut combined = LoraSet { scale: 1.0, layers: vec![LayerLora::default(); layer_count] };
    for (lora, _) in parts {
        if lora.layers.len() != layer_count {
            return Err(Error::ShapeMismatch {
                tensor: "layers of a combined LoRA".to_owned(),
                expected: vec![layer_count],
                actual: vec![lora.layers.len()],
            });
        }
    }
    for (index, layer) in combined.layers.iter_mut().enumerate() {
        for target in Target::ALL {
            let pairs =
                parts.iter().filter_map(|(lora, weight)| Some((lora.layers[index].pair(target)?, weight * lora.scale)));
            let (a, b): (Vec<_>, Vec<Array2<f32>>) =
                pairs.map(|(pair, factor)| (pair.a.view(), &pair.b * factor)).unzip();
            if a.is_empty() {
                continue;
            }
            let b: Vec<_> = b.iter().map(|b| b.view()).collect();
            let mismatch = |_| Error::ShapeMismatch {
                tensor: format!("{index}.{} of a combined LoRA", target.name()),
                expected: vec![b[0].nrows(), a[0].ncols()],
                actual: b.iter().zip(&a).flat_map(|(b, a)| [b.nrows(), a.ncols()]).collect(),
            };
            *layer.pair_mut(target) = Some(LoraPair {
                a: concatenate(Axis(0), &a).map_err(mismatch)?,
                b: concatenate(Axis(1), &b).map_err(mismatch)?,
            });
        }
    }
    Ok(combined)
}

/// Combines gates packs of one pool by weights: the gates mix, the rank stays that of one pack.
///
/// Returns the LoRA of the mixed gates. With [`Composition::Average`](crate::pack::Composition::Average) this is a
/// mixture of factors, as within one pack, and not the sum of the packs' deltas; for that use [`combine_loras`].
///
/// # Errors
/// [`Error::InvalidOption`] if a pack has no gates, another pool or another composition.
pub fn combine_gates(parts: &[(&VerifiedPack, f32)], pool: &VerifiedPool) -> Result<LoraSet> {
    let invalid = |reason: &str| Error::InvalidOption { option: "packs", reason: reason.to_owned() };
    let mut mixed: Option<(Array2<f32>, _)> = None;
    for (pack, weight) in parts {
        let (Some(gates), Content::Gates { composition, pool: digest, .. }) = (pack.gates(), pack.manifest().content)
        else {
            return Err(invalid("a dense pack has no gates to mix"));
        };
        if digest != pool.digest() {
            return Err(invalid("the packs use another pool"));
        }
        match &mut mixed {
            None => mixed = Some((&gates.weights * *weight, composition)),
            Some((sum, first)) if *first == composition && sum.dim() == gates.weights.dim() => {
                sum.scaled_add(*weight, &gates.weights);
            }
            Some(_) => return Err(invalid("the packs mix experts in different ways")),
        }
    }
    let (weights, composition) = mixed.ok_or_else(|| invalid("there is none"))?;
    pool.pool().mix(&Gates { weights }, composition)
}

fn layer_count(first: Option<usize>) -> Result<usize> {
    first.ok_or_else(|| Error::InvalidOption { option: "parts", reason: "there is none".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn lora(scale: f32, up: LoraPair) -> LoraSet {
        LoraSet { scale, layers: vec![LayerLora { up: Some(up), ..LayerLora::default() }] }
    }

    #[test]
    fn combined_delta_is_the_weighted_sum() {
        let first = lora(0.5, LoraPair { a: array![[1.0, 2.0]], b: array![[3.0], [4.0], [5.0]] });
        let second =
            lora(2.0, LoraPair { a: array![[1.0, 0.0], [0.0, 1.0]], b: array![[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]] });
        let combined = combine_loras(&[(&first, 0.25), (&second, 2.0)]).unwrap();
        let delta = |lora: &LoraSet| {
            let pair = lora.layers[0].up.as_ref().unwrap();
            pair.b.dot(&pair.a) * lora.scale
        };
        assert_eq!(combined.layers[0].up.as_ref().unwrap().a.nrows(), 3);
        assert_eq!(delta(&combined), delta(&first) * 0.25 + delta(&second) * 2.0);
        assert_eq!(combined.layers[0].gate, None);
    }

    #[test]
    fn rejects_combining_nothing_or_different_shapes() {
        assert!(matches!(combine_loras(&[]), Err(Error::InvalidOption { option: "parts", .. })));
        let first = lora(1.0, LoraPair { a: array![[1.0, 2.0]], b: array![[3.0]] });
        let second = lora(1.0, LoraPair { a: array![[1.0]], b: array![[3.0]] });
        assert!(matches!(combine_loras(&[(&first, 1.0), (&second, 1.0)]), Err(Error::ShapeMismatch { .. })));
        let third = LoraSet { scale: 1.0, layers: Vec::new() };
        assert!(matches!(combine_loras(&[(&first, 1.0), (&third, 1.0)]), Err(Error::ShapeMismatch { .. })));
    }
}
