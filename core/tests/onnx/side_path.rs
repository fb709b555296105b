//! The side path on ONNX Runtime.

use std::sync::Arc;
use std::time::Instant;

use edgeweld::lora::{LayerLora, LoraPair};
use edgeweld::model::{Backend, Config, Decoder, LogitRows, Onnx};
use ndarray::Array2;

use super::{decoder, exported, forward, models};

const RANK: usize = 16;

fn layers(config: &Config, seed: u64) -> Vec<LayerLora> {
    let mut state = seed;
    let mut random = |rows: usize, cols: usize| {
        Array2::from_shape_simple_fn((rows, cols), || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 0.03
        })
    };
    let mut pair = |out, input| Some(LoraPair { a: random(RANK, input), b: random(out, RANK) });
    let (hidden, ffn) = (config.hidden_size, config.ffn_size);
    (0..config.layer_count())
        .map(|_| LayerLora { gate: pair(ffn, hidden), up: pair(ffn, hidden), down: pair(hidden, ffn) })
        .collect()
}

fn side_path<B: Backend>(decoder: &Decoder<B>, layers: &[LayerLora]) -> Arc<[B::Lora]> {
    layers.iter().map(|layer| decoder.backend.lora(layer, 1.0).unwrap()).collect()
}

#[test]
fn switching_packs_rebuilds_no_session() {
    let onnx = decoder(&exported(&models::path(models::SMOLLM2)));
    let packs = [1, 2].map(|seed| side_path(&onnx, &layers(&onnx.config, seed)));
    let ids = [1, 4093, 198, 3_725];
    let answer = |pack: usize| {
        let start = Instant::now();
        let mut runner = Onnx::runner(&onnx, 64, Some(packs[pack].clone())).unwrap();
        let elapsed = start.elapsed();
        (forward(&mut *runner, &ids, LogitRows::Last), elapsed)
    };
    let (first, _) = answer(0);
    let (second, switch) = answer(1);
    let (again, _) = answer(0);
    assert_ne!(first, second);
    assert_eq!(first, again);
    // Building a session takes several hundred milliseconds.
    assert!(switch.as_millis() < 100, "{switch:?}");
}
