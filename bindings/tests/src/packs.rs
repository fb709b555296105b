//! Packs for the scenario: one that is right, and one for each way to be wrong.

use std::collections::BTreeMap;

use anyhow::Result;
use edgeweld::Digest;
use edgeweld::generate::Engine;
use edgeweld::lora::{LayerLora, LoraPair, LoraSet};
use edgeweld::pack::{GeneratorInfo, ModelIdentity, PackInfo, Precision, PromptInfo, SecretKey, write_dense};
use ndarray::Array2;

/// The system prompt that the packs stand for.
pub(crate) const PROMPT: &str = "You are a pirate who answers in rhymes.";
/// Large enough to change what the model says.
const VALUE_MAX: f32 = 0.15;
const RANK: usize = 4;

pub(crate) struct Packs {
    pub(crate) good: Vec<u8>,
    /// Signed by a key that the device does not trust.
    pub(crate) stranger: Vec<u8>,
    /// Signed, but for another base model.
    pub(crate) other_model: Vec<u8>,
    /// `good` with one bit of the payload flipped.
    pub(crate) tampered: Vec<u8>,
}

impl Packs {
    pub(crate) fn new(engine: &Engine) -> Result<Self> {
        let lora = lora(engine);
        let model = engine.identity().clone();
        let other = ModelIdentity { base: Digest::of(b"another model"), ..model.clone() };
        let good = write(&lora, model.clone(), &trusted())?;
        let mut tampered = good.clone();
        *tampered.last_mut().expect("a pack has bytes") ^= 1;
        Ok(Self {
            stranger: write(&lora, model, &SecretKey::from_seed(&[2; 32]))?,
            other_model: write(&lora, other, &trusted())?,
            tampered,
            good,
        })
    }
}

/// The key that the device trusts.
pub(crate) fn trusted() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

fn write(lora: &LoraSet, model: ModelIdentity, key: &SecretKey) -> Result<Vec<u8>> {
    let info = PackInfo {
        model,
        prompt: Some(PromptInfo { digest: Digest::of(PROMPT.as_bytes()), token_count: 9 }),
        residual_prompt: None,
        generator: GeneratorInfo { name: "scenario".into(), version: "1".into(), settings: BTreeMap::new() },
        quality: Vec::new(),
        labels: BTreeMap::new(),
    };
    Ok(write_dense(lora, None, Precision::F16, info, Some(key))?)
}

/// Pairs of reproducible noise for every target.
fn lora(engine: &Engine) -> LoraSet {
    let config = engine.config().expect("a GGUF model");
    let (hidden, ffn) = (config.hidden_size, config.ffn_size);
    let mut state = 1_u64;
    let mut random = |rows: usize, cols: usize| {
        Array2::from_shape_simple_fn((rows, cols), || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * VALUE_MAX
        })
    };
    let mut pair = |inner, outer| Some(LoraPair { a: random(RANK, inner), b: random(outer, RANK) });
    let layers = (0..config.layer_count())
        .map(|_| LayerLora { gate: pair(hidden, ffn), up: pair(hidden, ffn), down: pair(ffn, hidden) })
        .collect();
    LoraSet { scale: 1.0, layers }
}
