//! The ONNX Runtime backend: every family against `transformers`, the sessions and packs of the other backends, and
//! what is refused. `EDGEWELD_ONNXRUNTIME` names the shared library; `cargo xtask test` sets it.

mod genai;
#[path = "../suite/golden.rs"]
mod golden;
#[path = "../models/mod.rs"]
mod models;
#[path = "../suite/packs.rs"]
mod packs;
mod rejects;
#[path = "../suite/sessions.rs"]
mod sessions;
mod side_path;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use edgeweld::CancelToken;
use edgeweld::generate::{Device, Engine, LoadOptions};
use edgeweld::gguf::GgufFile;
use edgeweld::model::{Backend, Decoder, ExportOptions, LogitRows, Onnx, OnnxOptions, Provider, Runner, export_onnx};
use serde::Deserialize;

fn options() -> OnnxOptions {
    let library = std::env::var_os("EDGEWELD_ONNXRUNTIME");
    let library = library.expect("EDGEWELD_ONNXRUNTIME names ONNX Runtime's library: run `cargo xtask test`");
    OnnxOptions { library: Some(library.into()), providers: Vec::new() }
}

/// The exported folder of a model file, made once per run of this program.
fn exported(model: &Path) -> PathBuf {
    static DONE: LazyLock<Mutex<HashMap<PathBuf, PathBuf>>> = LazyLock::new(Mutex::default);
    let mut done = DONE.lock().unwrap();
    let count = done.len();
    let folder = done.entry(model.to_owned()).or_insert_with(|| {
        let name = format!("{count}-{}", model.file_stem().unwrap().to_string_lossy());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("onnx").join(name);
        export_onnx(model, &folder, &ExportOptions::default()).unwrap();
        folder
    });
    folder.clone()
}

fn load(model: &Path, load: LoadOptions) -> Engine {
    let options = LoadOptions { device: Device::Onnx, threads: Some(2), onnx: options(), ..load };
    Engine::load(exported(model), &options).unwrap()
}

/// A decoder without a tokenizer, as the tiny models have none.
fn decoder(folder: &Path) -> Arc<Decoder<Onnx>> {
    let file = GgufFile::open(folder.join("model.gguf")).unwrap();
    let backend = Onnx::open(folder, &file, &options(), Some(2)).unwrap();
    Arc::new(Decoder::load(&file, Arc::new(backend), &CancelToken::new(), &mut |_, _| ()).unwrap())
}

const TINY: [&str; 8] = ["llama-tied", "llama-untied", "llama3-rope", "gemma", "gemma2", "gemma3", "qwen2", "qwen3"];

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/tiny/{name}.gguf"))
}

#[derive(Deserialize)]
struct Expected {
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

fn forward(runner: &mut dyn Runner, ids: &[u32], rows: LogitRows) -> Vec<f32> {
    runner.forward(ids, rows, &CancelToken::new()).unwrap().to_vec()
}

fn assert_close(name: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len(), "{name}");
    for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert!((actual - expected).abs() < tolerance, "{name}: value {index} is {actual}, expected {expected}");
    }
}

#[test]
fn every_family_agrees_with_transformers() {
    for name in TINY {
        let text = std::fs::read_to_string(tiny(name).with_extension("json")).unwrap();
        let Expected { ids, logits } = serde_json::from_str(&text).unwrap();
        let mut runner = Onnx::runner(&decoder(&exported(&tiny(name))), 64, None).unwrap();
        assert_close(name, &forward(&mut *runner, &ids, LogitRows::All), &logits.concat(), 1e-3);
    }
}

#[test]
fn decode_steps_and_prefill_chunks_equal_one_prefill() {
    for name in TINY {
        let decoder = decoder(&exported(&tiny(name)));
        let ids: Vec<u32> = (0..60_u32).map(|i| (i * i * 7 + i * 3 + 1) % 32).collect();
        let all = forward(&mut *Onnx::runner(&decoder, 60, None).unwrap(), &ids, LogitRows::All);
        let row = |index: usize| &all[index * 32..][..32];
        let mut steps = Onnx::runner(&decoder, 60, None).unwrap();
        for (index, id) in ids[..40].iter().enumerate() {
            assert_close(name, &forward(&mut *steps, &[*id], LogitRows::Last), row(index), 1e-3);
        }
        // Forgetting tokens and appending others writes over what was there.
        steps.truncate(10);
        assert_close(name, &forward(&mut *steps, &ids[10..], LogitRows::Last), row(59), 1e-3);
        assert_eq!(steps.len(), 60);
    }
}

#[test]
fn providers_that_are_missing_are_passed_over_and_named() {
    let onnx = OnnxOptions { providers: vec![Provider::Qnn, Provider::Xnnpack, Provider::Cpu], ..options() };
    let folder = exported(&models::path(models::SMOLLM2));
    let options = LoadOptions { device: Device::Onnx, onnx, ..Default::default() };
    let outcomes = Engine::load(folder, &options).unwrap().providers();
    let refused: Vec<_> = outcomes.iter().map(|outcome| (outcome.provider, outcome.refusal.is_some())).collect();
    assert_eq!(refused, [(Provider::Qnn, true), (Provider::Xnnpack, true), (Provider::Cpu, false)], "{outcomes:?}");
}
