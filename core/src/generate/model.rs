//! Decoders whose backend is chosen at run time.

use std::path::Path;
use std::sync::Arc;

use crate::chat::ChatTemplate;
use crate::gguf::GgufFile;
use crate::lora::LoraSet;
use crate::merge::{self, MergeMode, MergeOptions, MergeProgress, MergeReport, SavedPack, Specialization};
use crate::model::{Backend, Config, Decoder, ModelShape, ProviderOutcome, Runner};
use crate::pack::ModelIdentity;
use crate::tokenizer::Tokenizer;
use crate::{CancelToken, Result};

/// A base model.
pub(super) trait Model: Send + Sync {
    fn shape(&self) -> ModelShape;

    /// `None` of a graph that another program made.
    fn config(&self) -> Option<&Config>;

    /// What packs and saved prefixes are bound to; reads the whole model once.
    fn identity(&self, tokenizer: &Tokenizer, template: &ChatTemplate) -> ModelIdentity;

    fn providers(&self) -> Vec<ProviderOutcome>;

    /// An empty sequence for up to `capacity` tokens.
    fn runner(&self, capacity: usize) -> Result<Box<dyn Runner>>;

    /// Makes a runner of the same base go on as this model, empty; `false` if it is of another kind.
    fn put_into(&self, runner: &mut dyn Runner) -> bool;

    /// [`merge::merge_unverified`] of a LoRA that comes from verified packs.
    fn merge(
        &self,
        lora: &Arc<LoraSet>,
        probes: &[Vec<u32>],
        options: &MergeOptions,
        cancel: &CancelToken,
        progress: MergeProgress<'_>,
    ) -> Result<(Box<dyn Specialized>, MergeReport)>;
}

/// A base model with a pack in it.
pub(super) trait Specialized: Send + Sync {
    fn mode(&self) -> MergeMode;

    /// An empty sequence for up to `capacity` tokens.
    fn runner(&self, capacity: usize) -> Result<Box<dyn Runner>>;

    /// As [`Model::put_into`].
    fn put_into(&self, runner: &mut dyn Runner) -> bool;

    /// [`merge::save_merged`].
    fn save(&self, pack: &SavedPack, path: &Path, cancel: &CancelToken) -> Result<()>;
}

/// A decoder, and the file it was loaded from: merges start from its weights.
pub(super) struct FromFile<B: Backend> {
    pub(super) decoder: Arc<Decoder<B>>,
    pub(super) file: GgufFile,
}

struct SpecializedFromFile<B: Backend> {
    specialization: Specialization<B>,
    file: GgufFile,
}

impl<B: Backend> Model for FromFile<B> {
    fn shape(&self) -> ModelShape {
        self.decoder.config.shape()
    }

    fn config(&self) -> Option<&Config> {
        Some(&self.decoder.config)
    }

    fn identity(&self, tokenizer: &Tokenizer, _: &ChatTemplate) -> ModelIdentity {
        ModelIdentity::of(&self.file, tokenizer).expect("a loaded model has an architecture and an FFN")
    }

    fn providers(&self) -> Vec<ProviderOutcome> {
        B::providers(&self.decoder)
    }

    fn runner(&self, capacity: usize) -> Result<Box<dyn Runner>> {
        B::runner(&self.decoder, capacity, None)
    }

    fn put_into(&self, runner: &mut dyn Runner) -> bool {
        B::put_into(&self.decoder, None, runner)
    }

    fn merge(
        &self,
        lora: &Arc<LoraSet>,
        probes: &[Vec<u32>],
        options: &MergeOptions,
        cancel: &CancelToken,
        progress: MergeProgress<'_>,
    ) -> Result<(Box<dyn Specialized>, MergeReport)> {
        let (decoder, file) = (&self.decoder, self.file.clone());
        let (specialization, report) =
            merge::merge_unverified(decoder, &file, lora, probes, options, cancel, progress)?;
        Ok((Box::new(SpecializedFromFile { specialization, file }), report))
    }
}

impl<B: Backend> Specialized for SpecializedFromFile<B> {
    fn mode(&self) -> MergeMode {
        self.specialization.mode
    }

    fn runner(&self, capacity: usize) -> Result<Box<dyn Runner>> {
        B::runner(&self.specialization.decoder, capacity, self.specialization.side_path.clone())
    }

    fn put_into(&self, runner: &mut dyn Runner) -> bool {
        B::put_into(&self.specialization.decoder, self.specialization.side_path.clone(), runner)
    }

    fn save(&self, pack: &SavedPack, path: &Path, cancel: &CancelToken) -> Result<()> {
        let Specialization { merged, mode, .. } = &self.specialization;
        merge::save_merged(&self.file, merged, *mode, pack, path, cancel)
    }
}
