//! Folders of onnxruntime-genai that its own model builder wrote (tests/fixtures/make_genai.py), opened as they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgeweld::chat::{Message, RenderOptions};
use edgeweld::generate::{Device, Engine, GenerateOptions, LoadOptions, Token};
use edgeweld::lora::{LayerLora, LoraPair, LoraSet};
use edgeweld::merge::{MergeMode, MergeOptions};
use edgeweld::model::{Backend, ExportOptions, GenaiModel, GraphDefect, LogitRows, Onnx, export_onnx};
use edgeweld::pack::{GeneratorInfo, PackInfo, Precision, PromptInfo, RawPack, SecretKey, write_dense};
use edgeweld::verify::{TrustPolicy, VerifiedPack, verify};
use edgeweld::{CancelToken, Digest, Error};
use ndarray::Array2;
use serde::Deserialize;

use super::{assert_close, decoder, forward, options, tiny};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/genai")
}

/// What onnxruntime-genai answers.
#[derive(Deserialize)]
struct Expected {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

fn expected() -> BTreeMap<String, Expected> {
    serde_json::from_str(&std::fs::read_to_string(fixtures().join("expected.json")).unwrap()).unwrap()
}

fn load(folder: &Path) -> edgeweld::Result<Engine> {
    let load = LoadOptions { device: Device::Onnx, threads: Some(2), onnx: options(), ..LoadOptions::default() };
    Engine::load(folder, &load)
}

fn question() -> [Message; 1] {
    [Message::user("What is the quick fox?")]
}

fn answer(engine: &Engine, count: usize) -> Vec<u32> {
    let mut ids = Vec::new();
    let greedy = GenerateOptions { max_tokens: count, ..GenerateOptions::default() };
    let mut session = engine.session().unwrap();
    session.chat(&question(), &greedy, &mut |token: &Token| ids.push(token.id)).unwrap();
    ids
}

/// A copy of a folder, to change.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(fixtures().join(name)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    folder
}

/// A copy whose `genai_config.json` was changed.
fn configured(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let folder = copy(name);
    let path = folder.path().join("genai_config.json");
    let mut config = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
    folder
}

fn refusal(folder: &Path) -> GraphDefect {
    match load(folder).map(|_| ()) {
        Err(Error::InvalidGraph { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_builders_folders_answer_as_onnxruntime_genai_does() {
    let cases = expected();
    assert_eq!(cases.len(), 3);
    for (name, expected) in cases {
        let engine = load(&fixtures().join(&name)).unwrap();
        let ids = engine.template().encode(engine.tokenizer(), &question(), &RenderOptions::default()).unwrap();
        assert_eq!(ids, expected.prompt, "{name}: the template and the tokenizer beside the graph");
        assert_eq!(answer(&engine, expected.greedy.len()), expected.greedy, "{name}");
        assert_eq!(engine.context_length(), 128, "{name}");
        assert!(
            engine.tokenizer().is_end(2) && engine.tokenizer().bos() == Some(1),
            "{name}: the configuration's tokens"
        );
    }
}

#[test]
fn a_graph_that_writes_its_cache_anew_answers_the_same() {
    for (name, expected) in expected() {
        let folder = configured(&name, |config| config["search"]["past_present_share_buffer"] = false.into());
        let engine = load(folder.path()).unwrap();
        assert_eq!(answer(&engine, expected.greedy.len()), expected.greedy, "{name}");
        let mut runner = engine.runner().unwrap();
        let last = forward(&mut *runner, &expected.prompt, LogitRows::Last);
        runner.truncate(5);
        assert_close(&name, &forward(&mut *runner, &expected.prompt[5..], LogitRows::Last), &last, 2e-2);
    }
}

#[test]
fn every_rows_logits_and_a_restored_cache_equal_one_pass() {
    for (name, expected) in expected() {
        let engine = load(&fixtures().join(&name)).unwrap();
        let (ids, vocab) = (&expected.prompt, engine.shape().vocab_size);
        let mut runner = engine.runner().unwrap();
        let all = forward(&mut *runner, ids, LogitRows::All);
        assert_eq!(all.len(), ids.len() * vocab);
        let mut state = Vec::new();
        runner.truncate(10);
        runner.write_state(&mut state).unwrap();
        assert_eq!(state.len(), runner.cache_size_bytes());
        let mut restored = engine.runner().unwrap();
        restored.read_state(10, &state).unwrap();
        let last = forward(&mut *restored, &ids[10..], LogitRows::Last);
        assert_close(&name, &last, &all[(ids.len() - 1) * vocab..], 2e-2);
        let mut damaged = state.clone();
        damaged[..4].fill(0xff);
        assert!(matches!(restored.read_state(10, &damaged), Err(Error::InvalidPrefix { .. })));
    }
}

/// Of values that f16 has too, since graphs of our own take factors in f16.
fn lora(layers: usize, hidden: usize, ffn: usize) -> LoraSet {
    // Graphs of our own keep the values in 8 bits, which have these.
    let wave = |rows: usize, cols: usize| {
        Array2::from_shape_fn((rows, cols), |(i, j)| [-127.0, 0.0, 127.0][(i * 7 + j * 3) % 11 % 3] / 512.0)
    };
    let pair = |out, input| Some(LoraPair { a: wave(4, input), b: wave(out, 4) });
    let layer = || LayerLora { gate: pair(ffn, hidden), up: pair(ffn, hidden), down: pair(hidden, ffn) };
    LoraSet { scale: 0.5, layers: (0..layers).map(|_| layer()).collect() }
}

fn pack(engine: &Engine) -> VerifiedPack {
    let key = SecretKey::from_seed(&[1; 32]);
    let info = PackInfo {
        model: engine.identity().clone(),
        prompt: Some(PromptInfo { digest: Digest::of(b"prompt"), token_count: 1 }),
        residual_prompt: None,
        generator: GeneratorInfo { name: "test".into(), version: "1".into(), settings: BTreeMap::new() },
        quality: Vec::new(),
        labels: BTreeMap::new(),
    };
    let file = write_dense(&lora(2, 64, 128), None, Precision::F16, info, Some(&key)).unwrap();
    verify(&RawPack::read(file).unwrap(), &TrustPolicy::trusting([key.public_key()]), engine.identity(), None).unwrap()
}

#[test]
fn a_pack_names_the_input_that_the_graph_does_not_have() {
    let engine = load(&fixtures().join("llama-int4")).unwrap();
    assert_eq!(engine.identity().architecture, "llama");
    assert_eq!(engine.identity().quantization, "int4");
    let pack = pack(&engine);
    let merge = |mode| {
        let options = MergeOptions { mode, ..MergeOptions::default() };
        engine.merge(&pack, &options, &CancelToken::new(), &|_, _, _| ()).unwrap_err()
    };
    for mode in [MergeMode::SidePath, MergeMode::Auto] {
        let error = merge(mode);
        assert!(matches!(&error, Error::PackNeedsInput { input } if input == "layers.0.gate_proj.lora_a"), "{error}");
    }
    assert!(matches!(merge(MergeMode::Merge), Error::InvalidOption { option: "mode", .. }));
}

#[test]
fn the_identity_changes_with_every_byte_of_graph_and_data() {
    let digest = |folder: &Path| load(folder).unwrap().identity().base;
    let folder = copy("llama-int4");
    let before = digest(folder.path());
    assert_eq!(before, digest(&fixtures().join("llama-int4")));
    let data = folder.path().join("model.onnx.data");
    let mut bytes = std::fs::read(&data).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&data, bytes).unwrap();
    assert_ne!(before, digest(folder.path()));
}

#[test]
fn a_foreign_graph_with_inputs_for_pairs_runs_a_side_path() {
    let folder = tempfile::tempdir().unwrap();
    let export = ExportOptions { side_path: true, ..ExportOptions::default() };
    export_onnx(tiny("llama-tied"), folder.path(), &export).unwrap();
    let own = decoder(folder.path());
    let lora = lora(own.config.layer_count(), own.config.hidden_size, own.config.ffn_size);
    let layers = lora.layers.iter().map(|layer| own.backend.lora(layer, lora.scale).unwrap()).collect();
    let ids = [1, 5, 9, 2];
    let with_pack = forward(&mut *Onnx::runner(&own, 16, Some(layers)).unwrap(), &ids, LogitRows::Last);
    let without = forward(&mut *Onnx::runner(&own, 16, None).unwrap(), &ids, LogitRows::Last);

    std::fs::remove_file(folder.path().join("model.gguf")).unwrap();
    let foreign = GenaiModel::open(folder.path(), &options(), Some(2)).unwrap();
    let side_path = foreign.side_path(&Arc::new(lora)).unwrap();
    let mut runner = foreign.runner(16, Some(side_path.clone())).unwrap();
    assert_close("with", &forward(&mut *runner, &ids, LogitRows::Last), &with_pack, 1e-4);
    // The same sequence goes on without the pack, and with it again.
    assert!(foreign.put_into(None, &mut *runner));
    assert_close("without", &forward(&mut *runner, &ids, LogitRows::Last), &without, 1e-4);
    assert!(foreign.put_into(Some(side_path), &mut *runner));
    assert_close("again", &forward(&mut *runner, &ids, LogitRows::Last), &with_pack, 1e-4);
}

#[test]
fn rejects_a_folder_of_another_kind_than_one_decoder() {
    for (key, section) in [("model.encoder", "encoder"), ("model.decoder.pipeline", "pipeline")] {
        let folder = configured("llama-int4", |config| {
            let model = &mut config["model"];
            let place = if section == "pipeline" { &mut model["decoder"][section] } else { &mut model[section] };
            *place = serde_json::json!([]);
        });
        assert!(matches!(refusal(folder.path()), GraphDefect::Configuration { key: actual, .. } if actual == key));
    }
    let folder = copy("llama-int4");
    std::fs::write(folder.path().join("genai_config.json"), "{").unwrap();
    assert!(matches!(refusal(folder.path()), GraphDefect::Configuration { .. }));
}

#[test]
fn rejects_a_configuration_that_the_graph_does_not_bear_out() {
    let decoder = |change: fn(&mut serde_json::Value)| {
        refusal(configured("llama-f16-positions", |config| change(&mut config["model"]["decoder"])).path())
    };
    let missing = decoder(|decoder| decoder["num_hidden_layers"] = 3.into());
    assert_eq!(missing, GraphDefect::MissingInput { name: "past_key_values.2.key".to_owned() });
    let missing = decoder(|decoder| decoder["outputs"]["logits"] = "scores".into());
    assert_eq!(missing, GraphDefect::MissingOutput { name: "scores".to_owned() });
    let unknown = decoder(|decoder| decoder["inputs"]["position_ids"] = "places".into());
    assert_eq!(unknown, GraphDefect::UnknownInput { name: "position_ids".to_owned() });
    let outside = decoder(|decoder| decoder["filename"] = "../model.onnx".into());
    assert!(matches!(outside, GraphDefect::OutsideFolder { .. }), "{outside:?}");
    let ids = decoder(|decoder| decoder["inputs"]["input_ids"] = "past_key_values.0.key".into());
    assert!(matches!(ids, GraphDefect::UnsupportedType { element: 10, .. }), "{ids:?}");
    let huge = decoder(|decoder| decoder["head_size"] = (1_u64 << 40).into());
    assert!(matches!(huge, GraphDefect::Configuration { .. }), "{huge:?}");
    let vocabulary = configured("llama-int4", |config| config["model"]["vocab_size"] = 319.into());
    assert!(matches!(refusal(vocabulary.path()), GraphDefect::WrongShape { name, .. } if name == "logits"));
}

#[test]
fn rejects_another_device_and_a_missing_tokenizer() {
    let result = Engine::load(fixtures().join("llama-int4"), &LoadOptions::default());
    assert!(matches!(result, Err(Error::InvalidOption { option: "device", .. })), "{:?}", result.err());
    let folder = copy("llama-int4");
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let result = load(folder.path());
    assert!(matches!(&result, Err(Error::Io { path, .. }) if path.ends_with("tokenizer.json")), "{:?}", result.err());
}
