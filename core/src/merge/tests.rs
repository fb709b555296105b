use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::Array2;

use super::requantize::{requantize, sources, tensor_name};
use super::round::{Factors, Rows};
use super::*;
use crate::gguf::{GgufFile, GgufWriter};
use crate::lora::{LayerLora, LoraPair, LoraSet, Target};
use crate::quant::{BlockType, WeightBytes, dequantize, quantize};
use crate::{CancelToken, Error};

const ROWS: usize = 256;
const COLS: usize = 512;

/// Deterministic, roughly normal numbers.
struct Normal(u64);

impl Normal {
    fn next(&mut self) -> f32 {
        let mut uniform = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..12).map(|_| uniform()).sum()
    }

    fn array(&mut self, rows: usize, cols: usize) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, cols), || self.next())
    }
}

fn norm(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt() as f32
}

/// One layer whose `up` is stored as `block_type`, and a rank-16 delta of the given norm relative to it.
fn layer(block_type: BlockType, relative_norm: f32) -> (GgufFile, LoraSet) {
    let mut normal = Normal(1);
    // Rows of different size, as in real models.
    let weights: Vec<f32> =
        (0..ROWS * COLS).map(|i| normal.next() * 0.05 * (1.0 + (i / COLS % 5) as f32 * 0.2)).collect();
    let mut bytes = vec![0; block_type.row_size_bytes(COLS).unwrap() * ROWS];
    quantize(block_type, &weights, &mut bytes);
    let mut writer = GgufWriter::new();
    let name = tensor_name(0, Target::Up);
    writer.tensor(&name, block_type, &[ROWS as u32, COLS as u32], WeightBytes::Owned(bytes.into())).unwrap();
    let file = GgufFile::from_bytes(writer.to_bytes()).unwrap();

    let (a, b) = (normal.array(16, COLS), normal.array(ROWS, 16));
    let scale = relative_norm * norm(weights) / norm(b.dot(&a));
    let up = Some(LoraPair { a, b });
    (file, LoraSet { scale, layers: vec![LayerLora { up, ..LayerLora::default() }] })
}

fn round(file: &GgufFile, lora: &LoraSet, promote_to: Option<BlockType>, rounding: Rounding) -> Requantized {
    requantize_unverified(file, lora, promote_to, rounding, 2, &CancelToken::new()).unwrap()
}

#[test]
fn amplified_rounding_keeps_the_delta_in_every_block_type_with_less_noise_than_stochastic() {
    for block_type in BlockType::ALL {
        for relative_norm in [0.005, 0.01, 0.03, 0.1] {
            let (file, lora) = layer(block_type, relative_norm);
            let report = round(&file, &lora, None, Rounding::Amplified).reports.remove(0);
            assert!((0.97..1.03).contains(&report.gain), "{block_type} {relative_norm}: {report:?}");
            assert!((report.relative_norm - f64::from(relative_norm)).abs() < 0.2 * f64::from(relative_norm));
            assert_eq!(report.block_type_after, block_type);
            let stochastic = round(&file, &lora, None, Rounding::Stochastic).reports.remove(0);
            // Float types are rounded to nearest in either case.
            let noise_max = if block_type.block_len() == 1 { f64::INFINITY } else { stochastic.noise };
            assert!(report.noise < noise_max, "{block_type} {relative_norm}: {report:?} {stochastic:?}");
        }
    }
}

#[test]
fn nearest_rounding_loses_small_deltas_in_four_bits() {
    for block_type in [BlockType::Q4_0, BlockType::Q4_1, BlockType::Q4_K] {
        let (file, lora) = layer(block_type, 0.01);
        let report = round(&file, &lora, None, Rounding::Nearest).reports.remove(0);
        assert!(report.gain < 0.5, "{block_type}: {report:?}");
    }
}

#[test]
fn promotion_keeps_the_delta_with_little_noise() {
    for block_type in [BlockType::Q2_K, BlockType::Q4_0, BlockType::Q4_1, BlockType::Q4_K, BlockType::Q6_K] {
        let (file, lora) = layer(block_type, 0.01);
        let merged = round(&file, &lora, Some(BlockType::Q8_0), Rounding::Amplified);
        let report = &merged.reports[0];
        assert!((0.97..1.03).contains(&report.gain) && report.noise < 0.8, "{report:?}");
        assert_eq!(merged.tensors[0].weight.block_type(), BlockType::Q8_0);
    }
    let (file, lora) = layer(BlockType::F16, 0.01);
    let kept = round(&file, &lora, Some(BlockType::Q8_0), Rounding::Amplified);
    assert_eq!(kept.tensors[0].weight.block_type(), BlockType::F16, "never to fewer bits");
}

#[test]
fn merged_bytes_do_not_depend_on_the_number_of_threads_or_the_instruction_set() {
    for block_type in BlockType::ALL {
        for promote_to in [None, Some(BlockType::Q8_0)] {
            let (file, lora) = layer(block_type, 0.01);
            let merge = |threads| {
                let (rounding, cancel) = (Rounding::Amplified, CancelToken::new());
                requantize_unverified(&file, &lora, promote_to, rounding, threads, &cancel).unwrap().tensors.remove(0)
            };
            let merged = merge(1).weight;
            assert!(merged.bytes() == merge(3).weight.bytes(), "{block_type}");
            let base = file.matrix("blk.0.ffn_up.weight").unwrap();
            let pair = lora.layers[0].up.as_ref().unwrap();
            let factors = Factors::new(pair.a.as_slice().unwrap(), pair.b.as_slice().unwrap(), COLS, lora.scale);
            for (isa, round) in Rows::every_way() {
                let mut target = vec![0; merged.bytes().len()];
                let (from, to, source) = (block_type, merged.block_type(), base.bytes());
                round(
                    Rows { from, to, cols: COLS, source, target: &mut target, factors: &factors, first: 0 },
                    Rounding::Amplified,
                );
                assert!(target == merged.bytes(), "{block_type} to {to}, {isa}");
            }
        }
    }
}

#[test]
fn promoted_bytes_are_those_of_the_quantiser() {
    for block_type in [BlockType::Q4_1, BlockType::Q6_K] {
        let (file, lora) = layer(block_type, 0.01);
        let merged = round(&file, &lora, Some(BlockType::Q8_0), Rounding::Nearest).tensors.remove(0).weight;
        let base = file.matrix("blk.0.ffn_up.weight").unwrap();
        let pair = lora.layers[0].up.as_ref().unwrap();
        let mut values = vec![0.0; ROWS * COLS];
        dequantize(block_type, base.bytes(), &mut values);
        let delta = pair.b.dot(&pair.a) * lora.scale;
        values.iter_mut().zip(&delta).for_each(|(value, delta)| *value += delta);
        let mut expected = vec![0; merged.bytes().len()];
        quantize(BlockType::Q8_0, &values, &mut expected);
        // The delta is in integers of its factors, so a value halfway between two codes may fall to the other side.
        let differing = merged.bytes().iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert!(differing < expected.len() / 500, "{block_type}: {differing} of {} bytes differ", expected.len());
    }
}

#[test]
fn a_zero_delta_gives_the_base_bytes_back() {
    let (file, mut lora) = layer(BlockType::Q4_0, 0.01);
    lora.scale = 0.0;
    let merged = round(&file, &lora, None, Rounding::Amplified);
    assert_eq!(merged.tensors[0].weight.bytes(), file.matrix("blk.0.ffn_up.weight").unwrap().bytes());
    assert_eq!((merged.reports[0].gain, merged.reports[0].noise), (1.0, 0.0));
}

#[test]
fn progress_reaches_the_total_and_cancelling_stops() {
    let (file, lora) = layer(BlockType::Q4_0, 0.01);
    let sources = sources(&file, &lora, None).unwrap();
    let (last, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let cancel = CancelToken::new();
    let merge = |cancel: &CancelToken| {
        requantize(&sources, lora.scale, Rounding::Amplified, 2, cancel, &|done, of| {
            last.fetch_max(done, Ordering::Relaxed);
            total.store(of, Ordering::Relaxed);
        })
    };
    merge(&cancel).unwrap();
    let size = file.matrix("blk.0.ffn_up.weight").unwrap().bytes().len() as u64;
    assert_eq!((last.load(Ordering::Relaxed), total.load(Ordering::Relaxed)), (size, size));
    cancel.cancel();
    assert!(matches!(merge(&cancel), Err(Error::Cancelled)));
}

#[test]
fn rejects_pairs_that_do_not_fit() {
    let (file, lora) = layer(BlockType::Q4_0, 0.01);
    let cancel = CancelToken::new();
    let refuse = |lora: &LoraSet| {
        requantize_unverified(&file, lora, None, Rounding::Amplified, 1, &cancel).err().expect("refused")
    };
    let mut wide = lora.clone();
    wide.layers[0].up.as_mut().unwrap().a = Array2::zeros((16, COLS + 1));
    assert!(matches!(refuse(&wide), Error::ShapeMismatch { .. }));
    let mut ranks = lora.clone();
    ranks.layers[0].up.as_mut().unwrap().b = Array2::zeros((ROWS, 15));
    assert!(matches!(refuse(&ranks), Error::ShapeMismatch { .. }));
    let mut missing = lora.clone();
    missing.layers[0].gate = missing.layers[0].up.clone();
    assert!(matches!(refuse(&missing), Error::TargetMissing { target } if target == "0.gate_proj"));
}

#[test]
fn hostile_steps_and_deltas_do_not_panic() {
    for block_type in BlockType::ALL {
        let bytes = vec![0xff; block_type.row_size_bytes(COLS).unwrap() * ROWS];
        let mut writer = GgufWriter::new();
        let name = tensor_name(0, Target::Up);
        writer.tensor(&name, block_type, &[ROWS as u32, COLS as u32], WeightBytes::Owned(bytes.into())).unwrap();
        let file = GgufFile::from_bytes(writer.to_bytes()).unwrap();
        for value in [1.0, 1e30, f32::NAN, f32::INFINITY] {
            let up = Some(LoraPair { a: Array2::from_elem((2, COLS), value), b: Array2::from_elem((ROWS, 2), value) });
            let lora = LoraSet { scale: 1.0, layers: vec![LayerLora { up, ..LayerLora::default() }] };
            for rounding in [Rounding::Amplified, Rounding::Stochastic, Rounding::Nearest] {
                round(&file, &lora, None, rounding);
                round(&file, &lora, Some(BlockType::Q8_0), rounding);
            }
        }
    }
}
