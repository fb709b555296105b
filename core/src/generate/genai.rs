//! Folders of onnxruntime-genai that another program made: tokenizer, template and graph lie side by side, and there is no
//! model file that a merge could start from.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::device::Device;
use super::engine::LoadOptions;
use super::model::{Model, Specialized};
use super::open::Opened;
use crate::chat::ChatTemplate;
use crate::lora::LoraSet;
use crate::merge::{MergeMode, MergeOptions, MergeProgress, MergeReport, SavedPack, side_path_report};
use crate::model::{Config, GenaiModel, ModelShape, OnnxLora, ProviderOutcome, Runner};
use crate::pack::ModelIdentity;
use crate::tokenizer::Tokenizer;
use crate::{CancelToken, Error, Result};

pub(super) fn is_genai(folder: &Path) -> bool {
    folder.join(GenaiModel::CONFIG_FILE).exists()
}

pub(super) fn open(folder: &Path, options: &LoadOptions) -> Result<Opened> {
    if options.device != Device::Onnx {
        let reason = format!("{} cannot run a folder of onnxruntime-genai, `onnx` can", options.device.name());
        return Err(Error::InvalidOption { option: "device", reason });
    }
    options.cancel.check()?;
    let model = GenaiModel::open(folder, &options.onnx, options.threads)?;
    options.cancel.check()?;
    let tokenizer = match &options.tokenizer_json {
        Some(path) => Tokenizer::from_json(path)?,
        None => Tokenizer::from_json(folder.join("tokenizer.json"))?,
    };
    let ids = model.special_ids();
    let tokenizer = tokenizer.with_special_ids(ids.bos, &ids.ends, ids.padding)?;
    let template = ChatTemplate::from_folder(folder, &tokenizer)?;
    Ok(Opened { model: Box::new(Arc::new(model)), tokenizer, template, pack: None })
}

impl Model for Arc<GenaiModel> {
    fn shape(&self) -> ModelShape {
        GenaiModel::shape(self)
    }

    fn config(&self) -> Option<&Config> {
        None
    }

    fn identity(&self, tokenizer: &Tokenizer, template: &ChatTemplate) -> ModelIdentity {
        ModelIdentity {
            architecture: self.architecture().to_owned(),
            quantization: self.quantization().to_owned(),
            base: self.digest(),
            tokenizer: tokenizer.digest(),
            template: (!template.is_built_in()).then(|| template.digest()),
        }
    }

    fn providers(&self) -> Vec<ProviderOutcome> {
        GenaiModel::providers(self).to_vec()
    }

    fn runner(&self, capacity: usize) -> Result<Box<dyn Runner>> {
        GenaiModel::runner(self, capacity, None)
    }

    fn put_into(&self, runner: &mut dyn Runner) -> bool {
        GenaiModel::put_into(self, None, runner)
    }

    /// A side path, if the graph has inputs for it. There are no weights here that a merge could round again.
    fn merge(
        &self,
        lora: &Arc<LoraSet>,
        _: &[Vec<u32>],
        options: &MergeOptions,
        _: &CancelToken,
        _: MergeProgress<'_>,
    ) -> Result<(Box<dyn Specialized>, MergeReport)> {
        let start = Instant::now();
        if !matches!(options.mode, MergeMode::SidePath | MergeMode::Auto) {
            let reason =
                "a folder of onnxruntime-genai has no model file to merge into: packs are side paths".to_owned();
            return Err(Error::InvalidOption { option: "mode", reason });
        }
        let side_path = self.side_path(lora)?;
        let report = side_path_report(options, lora, start);
        Ok((Box::new(WithSidePath { model: self.clone(), side_path }), report))
    }
}

struct WithSidePath {
    model: Arc<GenaiModel>,
    side_path: Arc<[OnnxLora]>,
}

impl Specialized for WithSidePath {
    fn mode(&self) -> MergeMode {
        MergeMode::SidePath
    }

    fn runner(&self, capacity: usize) -> Result<Box<dyn Runner>> {
        GenaiModel::runner(&self.model, capacity, Some(self.side_path.clone()))
    }

    fn put_into(&self, runner: &mut dyn Runner) -> bool {
        GenaiModel::put_into(&self.model, Some(self.side_path.clone()), runner)
    }

    fn save(&self, _: &SavedPack, _: &Path, _: &CancelToken) -> Result<()> {
        let reason = "a side path has no weights of its own".to_owned();
        Err(Error::InvalidOption { option: "save_merged", reason })
    }
}
