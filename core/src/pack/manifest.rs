use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PackDefect;
use crate::gguf::GgufFile;
use crate::lora::Target;
use crate::tokenizer::Tokenizer;
use crate::{Digest, Error, Result};

/// Most tokens of a residual prompt: a pack replaces the prompt, so what stays must be short.
pub const RESIDUAL_PROMPT_TOKENS_MAX: u32 = 64;
/// Most bytes of a residual prompt's text: 64 tokens of any tokenizer fit.
const RESIDUAL_PROMPT_BYTES_MAX: usize = 4096;
/// Most bytes of a name or value in the manifest.
const TEXT_BYTES_MAX: usize = 1024;
/// Most entries of `settings`, `labels` and `quality`.
const ENTRIES_MAX: usize = 64;
/// Largest dimensions: above any model that runs on a device, and small enough that no product overflows.
const LAYERS_MAX: u32 = 512;
const WIDTH_MAX: u32 = 1 << 18;
const RANK_MAX: u32 = 4096;
const EXPERTS_MAX: u32 = 1024;
/// Largest `alpha / rank`; a trained LoRA uses 0.25 to 4.
const SCALE_MAX: f32 = 256.0;

/// How gates mix experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Composition {
    /// `a = Σ Gⱼ·aⱼ` and `b = Σ Gⱼ·bⱼ`: the rank stays.
    Average,
    /// `b·a = Σ Gⱼ·bⱼ·aⱼ`: exact, rank times the number of gates that are not zero.
    ProductSum,
}

/// What the payload holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Content {
    /// The LoRA pairs.
    Dense {
        /// How they were composed; absent if they did not come from an expert pool.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        composition: Option<Composition>,
    },
    /// Gates `[layer, expert]` into a pool.
    Gates {
        /// How to mix the pool's experts.
        composition: Composition,
        /// Experts in the pool.
        expert_count: u32,
        /// Digest of the pool's file.
        pool: Digest,
    },
    /// An expert pool.
    Pool {
        /// Experts in this pool.
        expert_count: u32,
    },
}

impl Content {
    /// `dense pack`, `gates pack` or `pool`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense { .. } => "dense pack",
            Self::Gates { .. } => "gates pack",
            Self::Pool { .. } => "pool",
        }
    }
}

/// The edge model a pack fits. A LoRA on any other weights, tokens or turn markers is noise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelIdentity {
    /// `general.architecture`, such as `llama`.
    pub architecture: String,
    /// The weights' main block type, such as `Q4_1`.
    pub quantization: String,
    /// Digest of the model file.
    pub base: Digest,
    /// Digest of the tokenizer's data.
    pub tokenizer: Digest,
    /// Digest of the chat template's text; absent if the model has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Digest>,
}

impl ModelIdentity {
    /// The identity of a model file as read with `tokenizer`, which is usually its own. Reads the whole file once.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] or [`Error::InvalidMetadata`] if the file is not a model that this library decodes.
    pub fn of(file: &GgufFile, tokenizer: &Tokenizer) -> Result<Self> {
        let metadata = file.metadata();
        Ok(Self {
            architecture: metadata.str("general.architecture")?.to_owned(),
            quantization: file.tensor("blk.0.ffn_gate.weight")?.block_type().to_string(),
            base: file.digest(),
            tokenizer: tokenizer.digest(),
            template: metadata.opt_str("tokenizer.chat_template")?.map(|text| Digest::of(text.as_bytes())),
        })
    }
}

/// Dimensions of the edge model and of the LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraShape {
    /// Decoder layers of the edge model.
    pub layer_count: u32,
    /// Width of its residual stream.
    pub hidden_size: u32,
    /// Width of its FFN.
    pub ffn_size: u32,
    /// Rank of each LoRA pair, or of each expert.
    pub rank: u32,
    /// `scale = alpha / rank`.
    pub alpha: f32,
    /// Targets in every layer, in the order gate, up, down.
    pub targets: Vec<Target>,
}

impl LoraShape {
    /// `alpha / rank`, the factor on every `b · a`.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// `(in, out)` of a target's weight.
    pub fn dimensions(&self, target: Target) -> (usize, usize) {
        let (hidden, ffn) = (self.hidden_size as usize, self.ffn_size as usize);
        if target == Target::Down { (ffn, hidden) } else { (hidden, ffn) }
    }
}

/// The prompt that the pack replaces. The text itself is not in the pack: prompts are often secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptInfo {
    /// Digest of the system message's UTF-8 text.
    pub digest: Digest,
    /// Its length in the edge model's tokens.
    pub token_count: u32,
}

/// A short text that stays in the context, where weights alone do not do (names, dates, exact formats).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidualPrompt {
    /// The text of the system message that replaces the long one.
    pub text: String,
    /// Its length in the edge model's tokens, at most [`RESIDUAL_PROMPT_TOKENS_MAX`].
    pub token_count: u32,
}

/// The payload's bytes as they are in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayloadDescriptor {
    /// Digest of the **compressed** frame, so that it is checked before any byte is decompressed.
    pub digest: Digest,
    /// Size of the compressed frame.
    pub size_bytes: u64,
    /// Size of the safetensors file inside: the cap on decompression.
    pub tensors_size_bytes: u64,
}

/// The program that made the pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// How it was run: checkpoint digest, cloud LM, top-k, refine steps, ….
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

/// How well the pack did, in one metric on one set of items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// What was measured, such as `accuracy` or `nll_nats`.
    pub metric: String,
    /// Where, such as `prompt's own task, 24 items held out`.
    pub set: String,
    /// Items measured.
    pub item_count: u32,
    /// The base model without the prompt.
    pub base: f64,
    /// The base model with the prompt in its context.
    pub prompted: f64,
    /// The base model with this pack, without the prompt.
    pub specialized: f64,
}

/// The signed header of a pack or pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What the payload holds.
    pub content: Content,
    /// The edge model.
    pub model: ModelIdentity,
    /// Dimensions of model and LoRA.
    pub shape: LoraShape,
    /// The prompt; a pack has one, a pool has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PromptInfo>,
    /// Text that stays in the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual_prompt: Option<ResidualPrompt>,
    /// The payload.
    pub payload: PayloadDescriptor,
    /// Who made it and how.
    pub generator: GeneratorInfo,
    /// How well it did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quality: Vec<Measurement>,
    /// Free text for people and apps (title, version, tenant); the runtime never acts on it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Manifest {
    /// Parses and checks a manifest.
    ///
    /// # Errors
    /// [`Error::InvalidPack`] with `Manifest` (not the JSON the format demands; unknown and duplicate
    /// fields included) or `ManifestField` (a value outside its limits).
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|error| PackDefect::Manifest { reason: error.to_string() })?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The JSON bytes: fields in declaration order, map keys sorted, no white space.
    ///
    /// # Errors
    /// [`Error::InvalidPack`] if a value is outside its limits, so that nothing unreadable is ever written.
    pub fn write(&self) -> Result<Vec<u8>> {
        let bytes = serde_json::to_vec(self).map_err(|error| PackDefect::Manifest { reason: error.to_string() })?;
        if bytes.len() > super::MANIFEST_SIZE_BYTES_MAX {
            return Err(PackDefect::ManifestLength {
                actual_bytes: bytes.len() as u64,
                limit_bytes: super::MANIFEST_SIZE_BYTES_MAX as u64,
            }
            .into());
        }
        // Reading it back also refuses floats that JSON cannot hold.
        Self::read(&bytes)?;
        Ok(bytes)
    }

    fn check(&self) -> Result<()> {
        let shape = &self.shape;
        in_range("shape.layer_count", shape.layer_count, LAYERS_MAX)?;
        in_range("shape.hidden_size", shape.hidden_size, WIDTH_MAX)?;
        in_range("shape.ffn_size", shape.ffn_size, WIDTH_MAX)?;
        in_range("shape.rank", shape.rank, RANK_MAX)?;
        if !(shape.alpha > 0.0 && shape.scale() <= SCALE_MAX) {
            return Err(field("shape.alpha", format!("{} with rank {}", shape.alpha, shape.rank)));
        }
        if shape.targets.is_empty() || !shape.targets.is_sorted_by(|a, b| a < b) {
            return Err(field("shape.targets", "not a non-empty list in the order gate, up, down".into()));
        }
        match self.content {
            Content::Gates { expert_count, .. } | Content::Pool { expert_count } => {
                in_range("content.expert_count", expert_count, EXPERTS_MAX)?;
            }
            Content::Dense { .. } => {}
        }
        let is_pool = matches!(self.content, Content::Pool { .. });
        if is_pool == self.prompt.is_some() {
            return Err(field("prompt", "a pack has one and a pool has none".into()));
        }
        if let Some(residual) = &self.residual_prompt {
            if is_pool {
                return Err(field("residual_prompt", "a pool has none".into()));
            }
            in_range("residual_prompt.token_count", residual.token_count, RESIDUAL_PROMPT_TOKENS_MAX)?;
            if residual.text.is_empty() || residual.text.len() > RESIDUAL_PROMPT_BYTES_MAX {
                return Err(field("residual_prompt.text", format!("{} bytes", residual.text.len())));
            }
        }
        self.check_texts()
    }

    fn check_texts(&self) -> Result<()> {
        let text = |name: &'static str, text: &str| {
            if text.len() > TEXT_BYTES_MAX {
                return Err(field(name, format!("{} bytes, the limit is {TEXT_BYTES_MAX}", text.len())));
            }
            Ok(())
        };
        text("model.architecture", &self.model.architecture)?;
        text("model.quantization", &self.model.quantization)?;
        text("generator.name", &self.generator.name)?;
        text("generator.version", &self.generator.version)?;
        for (name, map) in [("generator.settings", &self.generator.settings), ("labels", &self.labels)] {
            if map.len() > ENTRIES_MAX {
                return Err(field(name, format!("{} entries, the limit is {ENTRIES_MAX}", map.len())));
            }
            for (key, value) in map {
                text(name, key)?;
                text(name, value)?;
            }
        }
        if self.quality.len() > ENTRIES_MAX {
            return Err(field("quality", format!("{} entries, the limit is {ENTRIES_MAX}", self.quality.len())));
        }
        for measurement in &self.quality {
            text("quality.metric", &measurement.metric)?;
            text("quality.set", &measurement.set)?;
        }
        Ok(())
    }
}

fn in_range(name: &'static str, value: u32, max: u32) -> Result<()> {
    if (1..=max).contains(&value) { Ok(()) } else { Err(field(name, format!("{value} is not in 1..={max}"))) }
}

fn field(field: &'static str, reason: String) -> Error {
    PackDefect::ManifestField { field, reason }.into()
}
