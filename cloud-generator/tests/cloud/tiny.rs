//! A generator of a few KB on disk: a Gemma 3 of seven layers reads for a Llama of two.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use edgeweld::gguf::{GgufFile, GgufWriter, Value};
use edgeweld::pack::SecretKey;
use edgeweld::verify::TrustPolicy;
use edgeweld_cloud::generator::{Generator, GeneratorConfig, GeneratorInfo, LanguageModel};
use edgeweld_cloud::publish::{PackRequest, Payload, Publisher, PublisherOptions};
use tempfile::TempDir;

/// Longest prompt in tokens; here a token is a letter.
pub(crate) const PROMPT_TOKENS_MAX: usize = 40;
pub(crate) const PROMPT: &str = "say yes or no.";

pub(crate) struct Tiny {
    pub(crate) folder: TempDir,
}

impl Tiny {
    pub(crate) fn new() -> Self {
        let tiny = Self { folder: tempfile::tempdir().unwrap() };
        write_model("gemma3", &tiny.cloud());
        write_model("llama-tied", &tiny.edge());
        let cloud = LanguageModel::load(&tiny.cloud(), &Device::Cpu).unwrap();
        let edge = LanguageModel::load(&tiny.edge(), &Device::Cpu).unwrap();
        let config = GeneratorConfig {
            expert_count: 4,
            top_k: 2,
            rank: 2,
            alpha: 2.0,
            router_hidden_size: 8,
            cloud_rank: 2,
            prompt_tokens_max: PROMPT_TOKENS_MAX,
            ..GeneratorConfig::default()
        };
        let (cloud_config, edge_config) = (&cloud.decoder.config, &edge.decoder.config);
        let generator = Generator::new(config.clone(), cloud_config, edge_config, 7, &Device::Cpu).unwrap();
        // Training would make these other than zero.
        for (index, (_, var)) in generator.parameters.iter().filter(|(name, _)| name.ends_with(".b")).enumerate() {
            let values = (0..var.elem_count()).map(|at| ((at + 31 * index) as f32).sin() * 0.25).collect();
            var.set(&Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap()).unwrap();
        }
        let (cloud, edge) = (cloud.digest.to_string(), edge.digest.to_string());
        let info = GeneratorInfo { name: "tiny".into(), cloud, edge, step_count: 0, generator: config };
        generator.save(&tiny.generator(), &info).unwrap();
        tiny
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn cloud(&self) -> PathBuf {
        self.path("Tiny-Gemma-3.gguf")
    }

    pub(crate) fn edge(&self) -> PathBuf {
        self.path("Tiny-Llama.Q4_0.gguf")
    }

    pub(crate) fn generator(&self) -> PathBuf {
        self.path("generator")
    }

    pub(crate) fn publisher(&self) -> Publisher {
        let signer = Some(secret());
        let (generator, cloud, edge) = (self.generator(), self.cloud(), self.edge());
        Publisher::load(PublisherOptions { generator, cloud, edge, signer, device: Default::default() }).unwrap()
    }
}

pub(crate) fn secret() -> SecretKey {
    SecretKey::from_seed(&[5; 32])
}

pub(crate) fn trust() -> TrustPolicy {
    TrustPolicy::trusting([secret().public_key()])
}

pub(crate) fn request(system_prompt: &str, payload: Payload) -> PackRequest {
    PackRequest {
        system_prompt: system_prompt.into(),
        payload,
        residual_prompt: None,
        labels: BTreeMap::from([("title".into(), "a test".into())]),
    }
}

// The fixture with a tokenizer: letters, space, line break, full stop.
fn write_model(fixture: &str, path: &Path) {
    let source = format!("{}/../core/tests/fixtures/tiny/{fixture}.gguf", env!("CARGO_MANIFEST_DIR"));
    let file = GgufFile::open(source).unwrap();
    let mut tokens: Vec<String> = ["<pad>", "<bos>", "<eos>"].map(String::from).into();
    tokens.extend(('a'..='z').chain(['Ġ', 'Ċ', '.']).map(String::from));
    let kinds = (0..tokens.len()).map(|id| if id < 3 { 3 } else { 1 }).collect();
    let mut writer = GgufWriter::new();
    writer.copy_metadata(&file, &[]).unwrap();
    for (key, value) in [
        ("model", Value::String("gpt2".into())),
        ("pre", Value::String("default".into())),
        ("tokens", Value::Strings(tokens)),
        ("token_type", Value::I32s(kinds)),
        ("merges", Value::Strings(Vec::new())),
        ("bos_token_id", Value::U32(1)),
        ("eos_token_id", Value::U32(2)),
        ("add_bos_token", Value::Bool(true)),
    ] {
        writer.metadata(&format!("tokenizer.ggml.{key}"), &value).unwrap();
    }
    for tensor in file.tensors() {
        writer.tensor(tensor.name(), tensor.block_type(), tensor.shape(), tensor.weight_bytes()).unwrap();
    }
    writer.save(path, &Default::default()).unwrap();
}
