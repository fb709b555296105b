use std::path::Path;

use super::MergeMode;
use super::requantize::{MergedTensor, tensor_name};
use crate::gguf::{GgufFile, GgufWriter, Metadata, Value};
use crate::{CancelToken, Digest, Error, Result};

/// GGUF key: digest of the pack that was merged, `sha256:…`.
pub const PACK_KEY: &str = "edgeweld.merge.pack";
/// GGUF key: digest of the base file, `sha256:…`.
pub const BASE_KEY: &str = "edgeweld.merge.base";
/// GGUF key: `merge` or `promote`.
pub const MODE_KEY: &str = "edgeweld.merge.mode";
/// GGUF key: digest of the system message that the pack stands for, `sha256:…`.
pub const PROMPT_KEY: &str = "edgeweld.merge.prompt";
/// GGUF key: the pack's residual prompt.
pub const RESIDUAL_PROMPT_KEY: &str = "edgeweld.merge.residual_prompt";
const KEYS: [&str; 5] = [PACK_KEY, BASE_KEY, MODE_KEY, PROMPT_KEY, RESIDUAL_PROMPT_KEY];

/// What a saved merged model says about its pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedPack {
    /// Digest of the pack's file.
    pub digest: Digest,
    /// Digest of the system message that the pack stands for.
    pub prompt: Option<Digest>,
    /// Text that stays in the context.
    pub residual_prompt: Option<String>,
}

impl SavedPack {
    /// The pack that was merged into the model with this metadata, and how; `None` for any other model.
    ///
    /// # Errors
    /// [`Error::InvalidMetadata`] if a key has another type or value.
    pub fn read(metadata: Metadata<'_>) -> Result<Option<(Self, MergeMode)>> {
        let digest = |key: &str| -> Result<Option<Digest>> {
            let invalid = |error: Error| Error::InvalidMetadata { key: key.to_owned(), reason: error.to_string() };
            metadata.opt_str(key)?.map(|text| text.parse().map_err(invalid)).transpose()
        };
        let Some(pack) = digest(PACK_KEY)? else { return Ok(None) };
        let written = metadata.str(MODE_KEY)?;
        let mode = [MergeMode::Merge, MergeMode::Promote].into_iter().find(|mode| mode.name() == written);
        let mode = mode.ok_or_else(|| Error::InvalidMetadata {
            key: MODE_KEY.to_owned(),
            reason: format!("{written:?} is not merge or promote"),
        })?;
        let residual_prompt = metadata.opt_str(RESIDUAL_PROMPT_KEY)?.map(str::to_owned);
        Ok(Some((Self { digest: pack, prompt: digest(PROMPT_KEY)?, residual_prompt }, mode)))
    }
}

/// Saves a merged model as a GGUF file that any GGUF reader loads: the base's metadata and tensors with the merged
/// weights in their places, and keys that say which pack was merged into which base.
///
/// The file appears whole or not at all.
///
/// # Errors
/// [`Error::InvalidOption`] if nothing was merged, because the pack is a side path; [`Error::TargetMissing`] if
/// `file` is not the base; [`Error::Io`]; [`Error::Cancelled`].
pub fn save_merged(
    file: &GgufFile,
    merged: &[MergedTensor],
    mode: MergeMode,
    pack: &SavedPack,
    path: impl AsRef<Path>,
    cancel: &CancelToken,
) -> Result<()> {
    if matches!(mode, MergeMode::SidePath | MergeMode::Auto) {
        let reason = "a side path has no merged weights to save".to_owned();
        return Err(Error::InvalidOption { option: "mode", reason });
    }
    let mut writer = GgufWriter::new();
    writer.copy_metadata(file, &KEYS)?;
    let texts = [
        (PACK_KEY, Some(pack.digest.to_string())),
        (BASE_KEY, Some(file.digest().to_string())),
        (MODE_KEY, Some(mode.name().to_owned())),
        (PROMPT_KEY, pack.prompt.map(|prompt| prompt.to_string())),
        (RESIDUAL_PROMPT_KEY, pack.residual_prompt.clone()),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            writer.metadata(key, &Value::String(text))?;
        }
    }
    let mut replaced: std::collections::HashMap<_, _> =
        merged.iter().map(|tensor| (tensor_name(tensor.layer, tensor.target), &tensor.weight)).collect();
    for tensor in file.tensors() {
        match replaced.remove(tensor.name()) {
            Some(weight) => writer.tensor(tensor.name(), weight.block_type(), tensor.shape(), weight.weight_bytes())?,
            None => writer.tensor(tensor.name(), tensor.block_type(), tensor.shape(), tensor.weight_bytes())?,
        };
    }
    if let Some(target) = replaced.into_keys().next() {
        return Err(Error::TargetMissing { target });
    }
    writer.save(path, cancel)
}
