//! `genai_config.json`: what onnxruntime-genai is told about the graph beside it.

use std::path::Path;

use serde::Deserialize;

use crate::model::GraphDefect;
use crate::{Error, Result};

/// The file's name.
pub(super) const CONFIG_FILE: &str = "genai_config.json";
/// Largest file that is read: published ones have a few KB.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Sizes above these are no language model's; they bound what a damaged file makes us allocate.
const LAYERS_MAX: usize = 4_096;
const SIZE_MAX: usize = 1 << 24;

#[derive(Deserialize)]
pub(super) struct GenaiConfig {
    pub(super) model: ModelSection,
    #[serde(default)]
    pub(super) search: SearchSection,
}

#[derive(Deserialize)]
pub(super) struct ModelSection {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) vocab_size: usize,
    pub(super) context_length: usize,
    pub(super) bos_token_id: Option<i64>,
    pub(super) eos_token_id: Option<OneOrMore>,
    pub(super) pad_token_id: Option<i64>,
    pub(super) decoder: DecoderSection,
    /// Models of two graphs have it.
    encoder: Option<serde_json::Value>,
}

#[derive(Deserialize)]
pub(super) struct DecoderSection {
    pub(super) filename: String,
    pub(super) head_size: usize,
    pub(super) num_attention_heads: usize,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) num_hidden_layers: usize,
    #[serde(default)]
    pub(super) inputs: InputNames,
    #[serde(default)]
    pub(super) outputs: OutputNames,
    /// A graph cut into several has it.
    pipeline: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(default)]
pub(super) struct InputNames {
    pub(super) input_ids: String,
    pub(super) attention_mask: String,
    pub(super) position_ids: String,
    /// `%d` stands for the layer.
    pub(super) past_key_names: String,
    pub(super) past_value_names: String,
    /// Keys and values in one tensor.
    past_names: Option<String>,
}

#[derive(Deserialize)]
#[serde(default)]
pub(super) struct OutputNames {
    pub(super) logits: String,
    pub(super) present_key_names: String,
    pub(super) present_value_names: String,
}

#[derive(Default, Deserialize)]
pub(super) struct SearchSection {
    #[serde(default)]
    pub(super) past_present_share_buffer: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(i64),
    More(Vec<i64>),
}

impl OneOrMore {
    pub(super) fn ids(&self) -> &[i64] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::More(ids) => ids,
        }
    }
}

impl Default for InputNames {
    fn default() -> Self {
        Self {
            input_ids: "input_ids".to_owned(),
            attention_mask: "attention_mask".to_owned(),
            position_ids: "position_ids".to_owned(),
            past_key_names: "past_key_values.%d.key".to_owned(),
            past_value_names: "past_key_values.%d.value".to_owned(),
            past_names: None,
        }
    }
}

impl Default for OutputNames {
    fn default() -> Self {
        Self {
            logits: "logits".to_owned(),
            present_key_names: "present.%d.key".to_owned(),
            present_value_names: "present.%d.value".to_owned(),
        }
    }
}

impl GenaiConfig {
    /// # Errors
    /// [`Error::Io`], [`Error::LimitExceeded`]; [`Error::InvalidGraph`] for a model of another kind than one decoder graph.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG_FILE);
        let size = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
        if size > CONFIG_BYTES_MAX {
            let what = "bytes of genai_config.json";
            return Err(Error::LimitExceeded { what, actual: size, limit: CONFIG_BYTES_MAX });
        }
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let invalid = |key: &str, reason: String| {
            let reason = GraphDefect::Configuration { key: key.to_owned(), reason };
            Error::InvalidGraph { path: path.clone(), reason }
        };
        let config: Self = serde_json::from_slice(&bytes).map_err(|error| invalid("JSON", error.to_string()))?;
        let decoder = &config.model.decoder;
        let unsupported = [
            ("model.encoder", config.model.encoder.is_some()),
            ("model.decoder.pipeline", decoder.pipeline.is_some()),
            ("model.decoder.inputs.past_names", decoder.inputs.past_names.is_some()),
        ];
        if let Some((key, _)) = unsupported.into_iter().find(|(_, present)| *present) {
            return Err(invalid(
                key,
                "is not supported: only one decoder graph with a key and a value per layer is".into(),
            ));
        }
        let sizes = [
            ("model.vocab_size", config.model.vocab_size, SIZE_MAX),
            ("model.context_length", config.model.context_length, SIZE_MAX),
            ("model.decoder.num_hidden_layers", decoder.num_hidden_layers, LAYERS_MAX),
            ("model.decoder.head_size", decoder.head_size, SIZE_MAX),
            ("model.decoder.num_key_value_heads", config.kv_head_count(), SIZE_MAX),
        ];
        match sizes.into_iter().find(|(_, size, limit)| !(1..=*limit).contains(size)) {
            Some((key, size, limit)) => Err(invalid(key, format!("{size} is not between 1 and {limit}"))),
            None => Ok(config),
        }
    }

    pub(super) fn kv_head_count(&self) -> usize {
        self.model.decoder.num_key_value_heads.unwrap_or(self.model.decoder.num_attention_heads)
    }
}

/// The name of a layer's tensor.
pub(super) fn of_layer(pattern: &str, layer: usize) -> String {
    pattern.replace("%d", &layer.to_string())
}
