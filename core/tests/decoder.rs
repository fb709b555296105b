//! Tiny random models of every family against `transformers` (`tests/fixtures/make_tiny_models.py`), and what a
//! sequence promises, on both backends.

use std::sync::Arc;

use edgeweld::gguf::GgufFile;
use edgeweld::lora::{LayerLora, LoraPair, Target};
use edgeweld::model::{Backend, Candle, Cpu, CpuOptions, Decoder, DecoderRunner, Device, LogitRows, Runner};
use edgeweld::{CancelToken, Error};
use ndarray::Array2;
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

struct Tiny {
    name: &'static str,
    gguf: &'static [u8],
    expected: &'static str,
}

macro_rules! tiny {
    ($name:literal) => {
        Tiny {
            name: $name,
            gguf: include_bytes!(concat!("fixtures/tiny/", $name, ".gguf")),
            expected: include_str!(concat!("fixtures/tiny/", $name, ".json")),
        }
    };
}

const MODELS: [Tiny; 8] = [
    tiny!("llama-tied"),
    tiny!("llama-untied"),
    tiny!("llama3-rope"),
    tiny!("gemma"),
    tiny!("gemma2"),
    tiny!("gemma3"),
    tiny!("qwen2"),
    tiny!("qwen3"),
];

impl Tiny {
    fn load<B: Backend>(&self, backend: B) -> Arc<Decoder<B>> {
        let file = GgufFile::from_bytes(self.gguf.to_vec()).unwrap();
        Arc::new(Decoder::load(&file, Arc::new(backend), &CancelToken::new(), &mut |_, _| ()).unwrap())
    }

    fn expected(&self) -> Expected {
        serde_json::from_str(self.expected).unwrap()
    }
}

fn cpu() -> Cpu {
    Cpu::new(&CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap()
}

fn candle() -> Candle {
    Candle::new(Device::Cpu).unwrap()
}

fn runner<B: Backend>(decoder: &Arc<Decoder<B>>, capacity: usize) -> DecoderRunner<B> {
    DecoderRunner::new(decoder.clone(), capacity, None).unwrap()
}

fn forward<B: Backend>(runner: &mut DecoderRunner<B>, ids: &[u32], rows: LogitRows) -> Vec<f32> {
    runner.forward(ids, rows, &CancelToken::new()).unwrap().to_vec()
}

fn assert_close(name: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len(), "{name}");
    for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert!((actual - expected).abs() < tolerance, "{name}: value {index} is {actual}, expected {expected}");
    }
}

/// `ids` long enough for several blocks of keys, windows and prefill steps.
fn long_ids(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * i * 7 + i * 3 + 1) % 32).collect()
}

fn families_agree<B: Backend>(backend: impl Fn() -> B, tolerance: f32) {
    for model in &MODELS {
        let Expected { ids, logits } = model.expected();
        let decoder = model.load(backend());
        let actual = forward(&mut runner(&decoder, 64), &ids, LogitRows::All);
        assert_close(model.name, &actual, &logits.concat(), tolerance);
    }
}

#[test]
fn every_family_agrees_with_transformers_on_the_cpu_backend() {
    families_agree(cpu, 2e-2);
}

#[test]
fn every_family_agrees_with_transformers_on_the_candle_backend() {
    families_agree(candle, 2e-4);
}

fn steps_agree<B: Backend>(backend: impl Fn() -> B, tolerance: f32) {
    for model in &MODELS {
        let decoder = model.load(backend());
        let ids = long_ids(300);
        let all = forward(&mut runner(&decoder, 300), &ids, LogitRows::All);
        let row = |index: usize| &all[index * 32..][..32];

        let mut steps = runner(&decoder, 300);
        for (index, id) in ids[..70].iter().enumerate() {
            assert_close(model.name, &forward(&mut steps, &[*id], LogitRows::Last), row(index), tolerance);
        }
        let mut chunks = runner(&decoder, 300);
        let mut end = 0;
        for len in [1, 33, 31, 64, 5, 166] {
            end += len;
            let last = forward(&mut chunks, &ids[end - len..end], LogitRows::Last);
            assert_close(model.name, &last, row(end - 1), tolerance);
        }
        assert_eq!(chunks.len(), 300);
    }
}

#[test]
fn decode_steps_and_prefill_chunks_equal_one_prefill_on_the_cpu_backend() {
    steps_agree(cpu, 2e-3);
}

#[test]
fn decode_steps_and_prefill_chunks_equal_one_prefill_on_the_candle_backend() {
    steps_agree(candle, 2e-4);
}

fn sequence_keeps_its_promises<B: Backend>(backend: B) {
    let gemma3 = &MODELS[5];
    let decoder = gemma3.load(backend);
    let ids = long_ids(80);
    let mut runner = runner(&decoder, 80);
    let whole = forward(&mut runner, &ids, LogitRows::Last);
    assert_eq!(forward(&mut runner, &[], LogitRows::Last), [] as [f32; 0]);

    // Full: refused with both counts, and nothing changes.
    let error = runner.forward(&[1, 2], LogitRows::Last, &CancelToken::new()).unwrap_err();
    assert!(matches!(error, Error::ContextFull { required: 82, available: 80 }), "{error}");
    assert_eq!(runner.len(), 80);

    // Truncate and continue with something else, then with the same again.
    runner.truncate(40);
    forward(&mut runner, &[9, 8, 7], LogitRows::None);
    runner.truncate(37);
    assert_close("truncated", &forward(&mut runner, &ids[37..], LogitRows::Last), &whole, 2e-3);

    // Cancelled: as before.
    runner.truncate(50);
    let cancel = CancelToken::new();
    cancel.cancel();
    let error = runner.forward(&ids[50..], LogitRows::Last, &cancel).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    assert_eq!(runner.len(), 50);
    assert_close("cancelled", &forward(&mut runner, &ids[50..], LogitRows::Last), &whole, 2e-3);

    // An id outside the vocabulary is refused, and nothing changes.
    runner.truncate(50);
    let error = runner.forward(&[32], LogitRows::Last, &CancelToken::new()).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "ids", .. }), "{error}");
    assert_eq!(runner.len(), 50);

    // State: round trip into another sequence, and hostile bytes.
    let mut state = Vec::new();
    runner.write_state(&mut state).unwrap();
    let mut other = DecoderRunner::new(decoder.clone(), 90, None).unwrap();
    other.read_state(50, &state).unwrap();
    assert_eq!(other.len(), 50);
    assert_close("restored", &forward(&mut other, &ids[50..], LogitRows::Last), &whole, 2e-3);
    let before = other.len();
    let refused = |other: &mut DecoderRunner<B>, len: usize, state: &[u8]| {
        let error = other.read_state(len, state).unwrap_err();
        assert!(matches!(error, Error::InvalidPrefix { .. } | Error::ContextFull { .. }), "{error}");
        assert_eq!(other.len(), before);
    };
    refused(&mut other, 50, &state[..state.len() - 1]);
    refused(&mut other, 49, &state);
    refused(&mut other, 51, &state);
    refused(&mut other, usize::MAX, &state);
    refused(&mut other, 50, &[]);
    let not_a_number = vec![0xff; state.len()];
    refused(&mut other, 50, &not_a_number);
    other.read_state(0, &[]).unwrap();
    assert!(other.is_empty());
}

#[test]
fn a_sequence_keeps_its_promises_on_the_cpu_backend() {
    sequence_keeps_its_promises(cpu());
}

#[test]
fn a_sequence_keeps_its_promises_on_the_candle_backend() {
    sequence_keeps_its_promises(candle());
}

/// A side path equals a model whose FFN weights have the delta added, but for `tolerance` and a share of what the delta
/// changes.
fn side_path_equals_added_weights<B: Backend>(backend: impl Fn() -> B, tolerance: f32, share_of_delta: f32) {
    let model = &MODELS[1];
    let decoder = model.load(backend());
    let (rank, scale) = (4, 0.5);
    let wave = |rows: usize, cols: usize, seed: usize| {
        Array2::from_shape_fn((rows, cols), |(row, col)| ((row * 31 + col * 17 + seed) as f32 * 0.7).sin() * 0.2)
    };
    let lora: Vec<LayerLora> = (0..decoder.config.layer_count())
        .map(|layer| {
            let mut lora = LayerLora::default();
            // The second layer has a delta for one target only.
            for target in Target::ALL.into_iter().filter(|target| layer == 0 || *target == Target::Up) {
                let (out, cols) = if target == Target::Down { (16, 24) } else { (24, 16) };
                *lora.pair_mut(target) = Some(LoraPair { a: wave(rank, cols, layer), b: wave(out, rank, 5 + layer) });
            }
            lora
        })
        .collect();

    let file = GgufFile::from_bytes(model.gguf.to_vec()).unwrap();
    let mut merged = model.load(backend());
    let layers = &mut Arc::get_mut(&mut merged).unwrap().layers;
    for (index, lora) in lora.iter().enumerate() {
        for target in Target::ALL {
            let Some(pair) = lora.pair(target) else { continue };
            let name = ["ffn_gate", "ffn_up", "ffn_down"][target as usize];
            let source = file.matrix(&format!("blk.{index}.{name}.weight")).unwrap();
            let mut values = vec![0.0; source.rows() * source.cols()];
            edgeweld::quant::dequantize(source.block_type(), source.bytes(), &mut values);
            let delta = pair.b.dot(&pair.a) * scale;
            let bytes: Vec<u8> = values.iter().zip(&delta).flat_map(|(w, d)| (w + d).to_le_bytes()).collect();
            let bytes = edgeweld::quant::WeightBytes::Owned(bytes.into());
            let block_type = edgeweld::quant::BlockType::F32;
            let matrix = edgeweld::quant::QMatrix::new(bytes, block_type, source.rows(), source.cols()).unwrap();
            let matrix = backend().matrix(matrix).unwrap();
            let layer = &mut layers[index];
            *[&mut layer.gate, &mut layer.up, &mut layer.down][target as usize] = matrix;
        }
    }

    let lora: Vec<_> = lora.iter().map(|layer| decoder.backend.lora(layer, scale).unwrap()).collect();
    let mut with_lora = DecoderRunner::new(decoder.clone(), 64, Some(lora.into())).unwrap();
    let ids = model.expected().ids;
    let base = forward(&mut runner(&decoder, 64), &ids, LogitRows::All);
    let expected = forward(&mut runner(&merged, 64), &ids, LogitRows::All);
    let moved = base.iter().zip(&expected).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(moved > 0.2, "the delta moves logits by {moved} only");
    let tolerance = tolerance + share_of_delta * moved;
    assert_close("prefill", &forward(&mut with_lora, &ids, LogitRows::All), &expected, tolerance);
    with_lora.truncate(0);
    for (index, id) in ids.iter().enumerate() {
        let expected = &expected[index * 32..][..32];
        assert_close("decode", &forward(&mut with_lora, &[*id], LogitRows::Last), expected, tolerance);
    }
}

#[test]
fn a_side_path_equals_added_weights_on_the_cpu_backend() {
    // The factors have 8 bits.
    side_path_equals_added_weights(cpu, 5e-3, 0.02);
}

#[test]
fn a_side_path_equals_added_weights_on_the_candle_backend() {
    side_path_equals_added_weights(candle, 2e-4, 0.0);
}

#[test]
fn a_side_path_with_another_layer_count_is_refused() {
    let decoder = MODELS[0].load(cpu());
    let error = DecoderRunner::new(decoder, 64, Some(Arc::new([]))).err().unwrap();
    assert!(matches!(error, Error::TargetMissing { .. }), "{error}");
}

#[test]
fn a_context_that_no_memory_holds_is_refused() {
    let decoder = MODELS[0].load(cpu());
    for capacity in [0, usize::MAX, 1 << 50] {
        let error = DecoderRunner::new(decoder.clone(), capacity, None).err().unwrap();
        assert!(matches!(error, Error::InvalidOption { option: "context_length", .. }), "{error}");
    }
}

#[test]
fn an_absurd_thread_count_is_refused() {
    for threads in [0, 1_000_000] {
        let error = Cpu::new(&CpuOptions { threads: Some(threads), ..CpuOptions::default() }).err().unwrap();
        assert!(matches!(error, Error::InvalidOption { option: "threads", .. }), "{error}");
    }
}

#[test]
fn loading_reports_progress_and_stops_when_cancelled() {
    let file = GgufFile::from_bytes(MODELS[0].gguf.to_vec()).unwrap();
    let mut seen = Vec::new();
    let cancel = CancelToken::new();
    Decoder::load(&file, Arc::new(cpu()), &cancel, &mut |done, all| seen.push((done, all))).unwrap();
    assert_eq!(seen, [(0, 2), (1, 2), (2, 2)]);
    let stop = &mut |_, _| cancel.cancel();
    let error = Decoder::load(&file, Arc::new(cpu()), &cancel, stop).err().unwrap();
    assert!(matches!(error, Error::Cancelled));
}
