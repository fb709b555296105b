//! The side path on ONNX Runtime beside the one of our own CPU backend.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use edgeweld::generate::LoadOptions;
use edgeweld::gguf::GgufFile;
use edgeweld::lora::{LayerLora, LoraPair, LoraSet};
use edgeweld::model::{Backend, Cpu, CpuOptions, Decoder, LogitRows, Onnx};
use edgeweld::pack::RawPack;
use edgeweld::tokenizer::EncodeOptions;
use edgeweld::verify::{TrustPolicy, VerifiedPack, verify};
use edgeweld::{CancelToken, Error};
use ndarray::Array2;

use super::{assert_close, decoder, exported, forward, load, models, tiny};

const POSITIONS: usize = 2_000;
/// Tokens that are in the context together.
const CONTEXT: usize = 250;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(path)
}

/// The refined pack of the repository, and the beginning of one of its pages in tokens.
fn pack_and_text() -> (VerifiedPack, Vec<u32>) {
    let engine = load(&models::path(models::SMOLLM2), LoadOptions::default());
    let raw = RawPack::read(std::fs::read(repository("examples/packs/tickets.pack")).unwrap()).unwrap();
    let trust = TrustPolicy { danger_accept_unsigned: true, ..TrustPolicy::trusting([]) };
    let pack = verify(&raw, &trust, engine.identity(), None).unwrap();
    let text = std::fs::read_to_string(repository("docs/pack-format.md")).unwrap();
    let mut ids = engine.tokenizer().encode(&text, EncodeOptions { add_special: false, parse_special: false }).unwrap();
    assert!(ids.len() >= POSITIONS, "{}", ids.len());
    ids.truncate(POSITIONS);
    (pack, ids)
}

fn side_path<B: Backend>(decoder: &Decoder<B>, lora: &LoraSet) -> Arc<[B::Lora]> {
    lora.layers.iter().map(|layer| decoder.backend.lora(layer, lora.scale).unwrap()).collect()
}

fn likeliest(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
}

#[test]
fn side_path_agrees_with_the_cpu_backends_on_the_likeliest_token() {
    let path = models::path(models::SMOLLM2);
    let (pack, ids) = pack_and_text();
    let file = GgufFile::open(&path).unwrap();
    let cpu = Cpu::new(&CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
    let cpu = Arc::new(Decoder::load(&file, Arc::new(cpu), &CancelToken::new(), &mut |_, _| ()).unwrap());
    let onnx = decoder(&exported(&path));
    let vocab = cpu.config.vocab_size;
    let mut expected = Cpu::runner(&cpu, CONTEXT, Some(side_path(&cpu, pack.lora()))).unwrap();
    let mut actual = Onnx::runner(&onnx, CONTEXT, Some(side_path(&onnx, pack.lora()))).unwrap();
    let mut base = Onnx::runner(&onnx, CONTEXT, None).unwrap();

    let (mut equal, mut changed) = (0, 0);
    for part in ids.chunks(CONTEXT) {
        expected.truncate(0);
        actual.truncate(0);
        base.truncate(0);
        for rows in part.chunks(50) {
            let expected = forward(&mut *expected, rows, LogitRows::All);
            let actual = forward(&mut *actual, rows, LogitRows::All);
            let base = forward(&mut *base, rows, LogitRows::All);
            for row in 0..rows.len() {
                let [expected, actual, base] =
                    [&expected, &actual, &base].map(|logits| likeliest(&logits[row * vocab..][..vocab]));
                equal += usize::from(expected == actual);
                changed += usize::from(base != actual);
            }
        }
    }
    println!("{equal} of {POSITIONS} equal; the pack changed {changed}");
    assert!(changed > POSITIONS / 20, "the pack says something: {changed}");
    assert!(equal * 100 >= POSITIONS * 99, "{equal} of {POSITIONS}");
}

/// A pack's pairs are kept in 8 bits by its first run, whichever sequence makes it and however many rows it has.
#[test]
fn every_run_of_a_pack_computes_with_the_same_values() {
    let onnx = decoder(&exported(&tiny("gemma3")));
    let ids: Vec<u32> = (1..=12).collect();
    for scale in [1.0, 0.5] {
        let array = |rows, cols| {
            Array2::from_shape_fn((rows, cols), |(row, col)| ((row * 7 + col * 3) % 11) as f32 / 8.0 - 0.625)
        };
        let pair = |out, input| Some(LoraPair { a: array(2, input), b: array(out, 2) });
        let (hidden, ffn) = (onnx.config.hidden_size, onnx.config.ffn_size);
        let layer = || LayerLora { gate: pair(ffn, hidden), up: None, down: pair(hidden, ffn) };
        let lora = Arc::new(LoraSet { scale, layers: onnx.layers.iter().map(|_| layer()).collect() });
        let shared = onnx.backend.side_path(&lora).unwrap();
        let runner = |lora: &Arc<[_]>| Onnx::runner(&onnx, 32, Some(lora.clone())).unwrap();
        let (mut first, mut kept) = (runner(&shared), runner(&side_path(&onnx, &lora)));
        let mut base = Onnx::runner(&onnx, 32, None).unwrap();
        let mut rows = Vec::new();
        for id in &ids {
            let [first, kept, base] =
                [&mut first, &mut kept, &mut base].map(|runner| forward(&mut **runner, &[*id], LogitRows::Last));
            assert_eq!(first, kept, "token {id} with scale {scale}");
            assert_ne!(first, base, "the pack says something");
            rows.extend(first);
        }
        let later = forward(&mut *runner(&shared), &ids, LogitRows::All);
        assert_close("all rows at once", &later, &rows, 1e-3);
        let new = onnx.backend.side_path(&lora).unwrap();
        assert_eq!(forward(&mut *runner(&new), &ids, LogitRows::All), later, "the first run, of many rows");
    }
}

#[test]
fn switching_packs_rebuilds_no_session() {
    let onnx = decoder(&exported(&models::path(models::SMOLLM2)));
    let (pack, ids) = pack_and_text();
    let opposite = LoraSet { scale: -pack.lora().scale, layers: pack.lora().layers.clone() };
    let packs = [pack.lora(), &opposite].map(|lora| side_path(&onnx, lora));
    let answer = |pack: usize| {
        let start = Instant::now();
        let mut runner = Onnx::runner(&onnx, 64, Some(packs[pack].clone())).unwrap();
        let elapsed = start.elapsed();
        (forward(&mut *runner, &ids[..4], LogitRows::Last), elapsed)
    };
    let (first, _) = answer(0);
    let (second, switch) = answer(1);
    let (again, _) = answer(0);
    assert_ne!(first, second);
    assert_eq!(first, again);
    // Building a session takes several hundred milliseconds.
    assert!(switch.as_millis() < 100, "{switch:?}");
}

#[test]
fn rejects_a_side_path_of_another_model() {
    let onnx = decoder(&exported(&tiny("llama-tied")));
    let config = &onnx.config;
    let pair = |out, input| Some(LoraPair { a: Array2::zeros((2, input)), b: Array2::zeros((out, 2)) });
    let layer = |hidden, ffn| LayerLora { gate: pair(ffn, hidden), up: None, down: None };
    let (layers, hidden, ffn) = (config.layer_count(), config.hidden_size, config.ffn_size);
    let refusal = |layers: Vec<LayerLora>| {
        let lora = side_path(&onnx, &LoraSet { scale: 1.0, layers });
        Onnx::runner(&onnx, 8, Some(lora)).err().expect("refused")
    };
    let deeper = (0..=layers).map(|_| layer(hidden, ffn)).collect();
    assert!(matches!(refusal(deeper), Error::TargetMissing { .. }));
    let wider = (0..layers).map(|_| layer(hidden + 1, ffn)).collect();
    let refused = refusal(wider);
    assert!(
        matches!(&refused, Error::ShapeMismatch { tensor, .. } if tensor == "layers.0.gate_proj.lora_a"),
        "{refused}"
    );
}
