//! Packs in a loaded model.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use super::engine::Engine;
use super::model::Specialized;
use crate::merge::{MergeMode, MergeOptions, MergeProgress, MergeReport, PROBE_TEXTS, SavedPack};
use crate::tokenizer::EncodeOptions;
use crate::verify::{VerifiedPack, match_model};
use crate::{CancelToken, Digest, Error, Result};

/// The pack that is in a model.
pub struct MergedPack {
    /// Digest of the pack's file.
    pub digest: Digest,
    /// Digest of the system message that the pack stands for.
    pub prompt: Option<Digest>,
    /// Text that stays in the context.
    pub residual_prompt: Option<String>,
    /// How the pack is in the model: never [`MergeMode::Auto`].
    pub mode: MergeMode,
    /// What the merge measured; `None` if the model file was saved merged.
    pub report: Option<MergeReport>,
    /// `None` if the model file was saved merged: the loaded model itself then is the merged one.
    pub(super) model: Option<Box<dyn Specialized>>,
}

impl std::fmt::Debug for MergedPack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MergedPack").field("digest", &self.digest).field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl MergedPack {
    pub(super) fn from_saved(saved: SavedPack, mode: MergeMode) -> Self {
        let SavedPack { digest, prompt, residual_prompt } = saved;
        Self { digest, prompt, residual_prompt, mode, report: None, model: None }
    }
}

impl Engine {
    /// Puts a verified pack into the model, in the place of the one that is there. Sessions answer with it from their
    /// next turn on; see [`Arm`](super::Arm) for when they do. The base stays in memory, as it was.
    ///
    /// # Errors
    /// [`Error::BaseModelMismatch`] if the pack was verified for another model; those of
    /// [`merge::merge`](crate::merge::merge). The pack that was in the model then still is.
    pub fn merge(
        &self,
        pack: &VerifiedPack,
        options: &MergeOptions,
        cancel: &CancelToken,
        progress: MergeProgress<'_>,
    ) -> Result<MergeReport> {
        match_model(&pack.manifest().model, self.identity())?;
        let plain = EncodeOptions { add_special: true, parse_special: false };
        let probes: Vec<_> =
            PROBE_TEXTS.iter().map(|text| self.tokenizer().encode(text, plain)).collect::<Result<_>>()?;
        let (model, report) = self.0.model.merge(&self.0.file, pack, &probes, options, cancel, progress)?;
        let manifest = pack.manifest();
        let merged = MergedPack {
            digest: pack.digest(),
            prompt: manifest.prompt.as_ref().map(|prompt| prompt.digest),
            residual_prompt: manifest.residual_prompt.as_ref().map(|residual| residual.text.clone()),
            mode: model.mode(),
            report: Some(report.clone()),
            model: Some(model),
        };
        self.set_pack(Some(Arc::new(merged)));
        Ok(report)
    }

    /// Takes the pack out of the model: sessions answer with the base, exactly as before the merge, from their next
    /// turn on. Without a pack it does nothing.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the model file was saved merged: its base is another file.
    pub fn unmerge(&self) -> Result<()> {
        if self.pack().is_some_and(|pack| pack.model.is_none()) {
            let reason = "the model file was saved merged; load the base model instead".to_owned();
            return Err(Error::InvalidOption { option: "unmerge", reason });
        }
        self.set_pack(None);
        Ok(())
    }

    /// The pack that is in the model.
    pub fn pack(&self) -> Option<Arc<MergedPack>> {
        self.0.pack.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Saves the merged model as a GGUF file that this library and others load. Loaded by this library, it drops the
    /// pack's prompt too. The file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if no pack is in the model or it is a side path, which has no weights of its own;
    /// [`Error::Io`]; [`Error::Cancelled`].
    pub fn save_merged(&self, path: impl AsRef<Path>, cancel: &CancelToken) -> Result<()> {
        let pack = self.pack();
        let Some((pack, model)) = pack.as_ref().and_then(|pack| Some((pack, pack.model.as_ref()?))) else {
            let reason = "no pack is merged".to_owned();
            return Err(Error::InvalidOption { option: "save_merged", reason });
        };
        let saved =
            SavedPack { digest: pack.digest, prompt: pack.prompt, residual_prompt: pack.residual_prompt.clone() };
        model.save(&self.0.file, &saved, path.as_ref(), cancel)
    }

    fn set_pack(&self, pack: Option<Arc<MergedPack>>) {
        let replaced = {
            let mut place = self.0.pack.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *place, pack)
        };
        // Its weights are freed after the lock.
        drop(replaced);
    }
}
