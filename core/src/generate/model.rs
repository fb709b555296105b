//! Decoders whose backend is chosen at run time.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use crate::gguf::GgufFile;
use crate::lora::LoraSet;
use crate::merge::{self, MergeMode, MergeOptions, MergeProgress, MergeReport, SavedPack, Specialization};
use crate::model::{Backend, Config, Decoder, DecoderRunner, Runner};
use crate::{CancelToken, Result};

/// A base model.
pub(super) trait Model: Send + Sync {
    fn config(&self) -> &Config;

    /// An empty sequence for up to `capacity` tokens.
    fn runner(&self, capacity: usize) -> Result<Box<dyn Runner>>;

    /// Makes a runner of the same base go on as this model, empty; `false` if it is of another kind.
    fn put_into(&self, runner: &mut dyn Runner) -> bool;

    /// [`merge::merge_unverified`] of a LoRA that comes from verified packs; `file` is what the model was loaded from.
    fn merge(
        &self,
        file: &GgufFile,
        lora: &LoraSet,
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
    fn save(&self, file: &GgufFile, pack: &SavedPack, path: &Path, cancel: &CancelToken) -> Result<()>;
}

impl<B: Backend> Model for Arc<Decoder<B>> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn runner(&self, capacity: usize) -> Result<Box<dyn Runner>> {
        B::runner(self, capacity, None)
    }

    fn put_into(&self, runner: &mut dyn Runner) -> bool {
        change_model(runner, self, None)
    }

    fn merge(
        &self,
        file: &GgufFile,
        lora: &LoraSet,
        probes: &[Vec<u32>],
        options: &MergeOptions,
        cancel: &CancelToken,
        progress: MergeProgress<'_>,
    ) -> Result<(Box<dyn Specialized>, MergeReport)> {
        let (specialization, report) = merge::merge_unverified(self, file, lora, probes, options, cancel, progress)?;
        Ok((Box::new(specialization), report))
    }
}

impl<B: Backend> Specialized for Specialization<B> {
    fn mode(&self) -> MergeMode {
        self.mode
    }

    fn runner(&self, capacity: usize) -> Result<Box<dyn Runner>> {
        B::runner(&self.decoder, capacity, self.side_path.clone())
    }

    fn put_into(&self, runner: &mut dyn Runner) -> bool {
        change_model(runner, &self.decoder, self.side_path.clone())
    }

    fn save(&self, file: &GgufFile, pack: &SavedPack, path: &Path, cancel: &CancelToken) -> Result<()> {
        merge::save_merged(file, &self.merged, self.mode, pack, path, cancel)
    }
}

fn change_model<B: Backend>(runner: &mut dyn Runner, decoder: &Arc<Decoder<B>>, lora: Option<Arc<[B::Lora]>>) -> bool {
    match (runner as &mut dyn Any).downcast_mut::<DecoderRunner<B>>() {
        Some(runner) if Arc::ptr_eq(&runner.decoder().backend, &decoder.backend) => {
            runner.change_model(decoder.clone(), lora);
            true
        }
        _ => false,
    }
}
