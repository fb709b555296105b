//! Sample values, and a second implementation of the container that also builds what the writer would refuse.

use std::collections::BTreeMap;

use ed25519_dalek::{Signer, SigningKey};
use edgeweld::lora::{LayerLora, LoraPair, LoraSet, Target};
use edgeweld::pack::*;
use edgeweld::verify::{TrustPolicy, VerifiedPool, verify_pool};
use edgeweld::{Digest, Result};
use ndarray::{Array2, Array3, array};

pub(crate) const LAYERS: usize = 3;
pub(crate) const HIDDEN: usize = 8;
pub(crate) const FFN: usize = 12;
pub(crate) const RANK: usize = 2;

/// Deterministic values in -0.5..0.5 that f16 holds exactly.
pub(crate) fn value(seed: usize) -> f32 {
    ((seed * 2_654_435_761) % 1021) as f32 / 1024.0 - 0.5
}

pub(crate) fn matrix(rows: usize, cols: usize, seed: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(row, col)| value(seed + row * cols + col))
}

pub(crate) fn dimensions(target: Target) -> (usize, usize) {
    if target == Target::Down { (FFN, HIDDEN) } else { (HIDDEN, FFN) }
}

pub(crate) fn lora() -> LoraSet {
    let layer = |index: usize| {
        let mut layer = LayerLora::default();
        for (at, target) in Target::ALL.into_iter().enumerate() {
            let (cols, rows) = dimensions(target);
            let seed = 1000 * (3 * index + at);
            *layer.pair_mut(target) =
                Some(LoraPair { a: matrix(RANK, cols, seed + 1), b: matrix(rows, RANK, seed + 500) });
        }
        layer
    };
    LoraSet { scale: 1.0, layers: (0..LAYERS).map(layer).collect() }
}

pub(crate) fn pool() -> ExpertPool {
    let mut pool = ExpertPool { alpha: RANK as f32, gate: None, up: None, down: None };
    for (at, target) in Target::ALL.into_iter().enumerate() {
        let (cols, rows) = dimensions(target);
        let a = Array3::from_shape_fn((4, RANK, cols), |(e, r, c)| value(7000 * at + 997 * e + r * cols + c));
        let b = Array3::from_shape_fn((4, rows, RANK), |(e, r, c)| value(9000 * at + 991 * e + r * RANK + c));
        *pool.pair_mut(target) = Some(ExpertPair { a, b });
    }
    pool
}

pub(crate) fn gates() -> Gates {
    Gates { weights: array![[0.75, 0.25, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5], [1.0, 0.0, 0.0, 0.0]] }
}

pub(crate) fn model() -> ModelIdentity {
    ModelIdentity {
        architecture: "llama".into(),
        quantization: "Q4_1".into(),
        base: Digest::of(b"base"),
        tokenizer: Digest::of(b"tokenizer"),
        template: Some(Digest::of(b"template")),
    }
}

pub(crate) fn info() -> PackInfo {
    PackInfo {
        model: model(),
        prompt: Some(PromptInfo { digest: Digest::of(b"You are a helpful clerk."), token_count: 7 }),
        residual_prompt: Some(ResidualPrompt { text: "Answer in French.".into(), token_count: 4 }),
        generator: GeneratorInfo {
            name: "cloud-generator".into(),
            version: "0.1.0".into(),
            settings: BTreeMap::from([("top_k".into(), "2".into()), ("cloud_lm".into(), "gemma3-270m".into())]),
        },
        quality: vec![Measurement {
            metric: "accuracy".into(),
            set: "24 items held out".into(),
            item_count: 24,
            base: 0.25,
            prompted: 0.5,
            specialized: 0.625,
        }],
        labels: BTreeMap::from([("title".into(), "Clerk".into())]),
    }
}

pub(crate) fn pool_info() -> PackInfo {
    PackInfo { prompt: None, residual_prompt: None, quality: vec![], ..info() }
}

pub(crate) fn secret() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

pub(crate) fn trust() -> TrustPolicy {
    TrustPolicy::trusting([secret().public_key()])
}

pub(crate) fn dense_pack() -> Vec<u8> {
    write_dense(&lora(), Some(Composition::Average), Precision::F16, info(), Some(&secret())).unwrap()
}

pub(crate) fn pool_file() -> Vec<u8> {
    write_pool(&pool(), LAYERS, Precision::F16, pool_info(), Some(&secret())).unwrap()
}

pub(crate) fn gates_pack() -> Vec<u8> {
    let digest = Digest::of(&pool_file());
    write_gates(&gates(), Composition::ProductSum, &pool(), digest, info(), Some(&secret())).unwrap()
}

pub(crate) fn verified_pool() -> VerifiedPool {
    verify_pool(&RawPack::read(pool_file()).unwrap(), &trust(), &model()).unwrap()
}

pub(crate) fn verify(bytes: Vec<u8>) -> Result<edgeweld::verify::VerifiedPack> {
    edgeweld::verify::verify(&RawPack::read(bytes)?, &trust(), &model(), Some(&verified_pool()))
}

/// The parts of a file, for building ones that are wrong in one place.
pub(crate) struct Parts {
    pub(crate) manifest: Manifest,
    /// Added to the manifest's JSON object, to write fields that `Manifest` does not have.
    pub(crate) extra_json: &'static str,
    pub(crate) frame: Vec<u8>,
}

impl Parts {
    pub(crate) fn of(pack: Vec<u8>) -> Self {
        let manifest = RawPack::read(pack.clone()).unwrap().unverified_manifest().unwrap();
        let frame = pack[pack.len() - manifest.payload.size_bytes as usize..].to_vec();
        Self { manifest, extra_json: "", frame }
    }

    /// A dense pack with this safetensors file inside, correct lengths and digests everywhere.
    pub(crate) fn with_tensors(tensors: &[u8]) -> Self {
        let mut parts = Self::of(dense_pack());
        parts.set_frame(zstd::bulk::compress(tensors, 3).unwrap());
        parts.manifest.payload.tensors_size_bytes = tensors.len() as u64;
        parts
    }

    pub(crate) fn set_frame(&mut self, frame: Vec<u8>) {
        self.manifest.payload.digest = Digest::of(&frame);
        self.manifest.payload.size_bytes = frame.len() as u64;
        self.frame = frame;
    }

    /// The signed file, laid out as docs/pack-format.md says.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut manifest = serde_json::to_string(&self.manifest).unwrap();
        manifest.insert_str(1, self.extra_json);
        let key = SigningKey::from_bytes(&[1; 32]);
        let signature = key.sign(&[b"edgeweld pack v1\0", manifest.as_bytes()].concat());
        let mut body = b"EDGEWELD".to_vec();
        body.extend(1_u32.to_le_bytes());
        body.extend((manifest.len() as u32).to_le_bytes());
        body.extend(manifest.as_bytes());
        body.extend(key.verifying_key().as_bytes());
        body.extend(signature.to_bytes());
        let mut file = 0x184D_2A57_u32.to_le_bytes().to_vec();
        file.extend((body.len() as u32).to_le_bytes());
        file.extend(body);
        file.extend(&self.frame);
        file
    }
}

/// A safetensors file from a hand-written header.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// Decompresses a pack's payload: its safetensors file.
pub(crate) fn tensors_of(pack: Vec<u8>) -> Vec<u8> {
    let parts = Parts::of(pack);
    zstd::bulk::decompress(&parts.frame, parts.manifest.payload.tensors_size_bytes as usize).unwrap()
}
