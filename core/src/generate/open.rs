//! What a path holds, read for an engine.

use std::path::Path;

use super::engine::LoadOptions;
use super::model::Model;
use super::specialize::MergedPack;
use crate::Result;
use crate::chat::ChatTemplate;
use crate::gguf::GgufFile;
use crate::merge::SavedPack;
use crate::model::LoadProgress;
use crate::tokenizer::Tokenizer;

/// The model file in a folder that `export_onnx` wrote.
const MODEL_FILE: &str = "model.gguf";

/// The parts of an engine.
pub(super) struct Opened {
    pub(super) model: Box<dyn Model>,
    pub(super) tokenizer: Tokenizer,
    pub(super) template: ChatTemplate,
    /// The pack that the model file was saved with.
    pub(super) pack: Option<MergedPack>,
}

pub(super) fn open(path: &Path, options: &LoadOptions, progress: LoadProgress<'_>) -> Result<Opened> {
    if !path.is_dir() {
        return open_gguf(path, path, options, progress);
    }
    #[cfg(feature = "onnx")]
    if !path.join(MODEL_FILE).exists() && super::genai::is_genai(path) {
        return super::genai::open(path, options);
    }
    open_gguf(path, &path.join(MODEL_FILE), options, progress)
}

fn open_gguf(path: &Path, file: &Path, options: &LoadOptions, progress: LoadProgress<'_>) -> Result<Opened> {
    let file = GgufFile::open(file)?;
    let model = options.device.load(path, &file, options, progress)?;
    let tokenizer = match &options.tokenizer_json {
        Some(path) => Tokenizer::from_json(path)?,
        None => Tokenizer::from_gguf(file.metadata())?,
    };
    let template = ChatTemplate::from_gguf(file.metadata(), &tokenizer)?;
    let pack = SavedPack::read(file.metadata())?.map(|(saved, mode)| MergedPack::from_saved(saved, mode));
    Ok(Opened { model, tokenizer, template, pack })
}
