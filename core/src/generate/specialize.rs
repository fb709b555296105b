//! Packs in a loaded model.

use std::path::Path;
use std::sync::{Arc, PoisonError, Weak};

use super::engine::{Engine, Inner};
use super::model::Specialized;
use crate::lora::LoraSet;
use crate::merge::{
    MergeMode, MergeOptions, MergeProgress, MergeReport, PROBE_TEXTS, SavedPack, combine_gates, combine_loras,
};
use crate::tokenizer::EncodeOptions;
use crate::verify::{VerifiedPack, VerifiedPool, match_model};
use crate::{CancelToken, Digest, Error, Result};

/// The pack that is in a model, or the combination of packs.
pub struct MergedPack {
    /// Digest of the pack's file; of a combination, one that its packs and weights determine.
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
    /// Whose model it is in.
    pub(super) engine: Weak<Inner>,
}

impl std::fmt::Debug for MergedPack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MergedPack").field("digest", &self.digest).field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl MergedPack {
    pub(super) fn from_saved(saved: SavedPack, mode: MergeMode) -> Self {
        let SavedPack { digest, prompt, residual_prompt } = saved;
        Self { digest, prompt, residual_prompt, mode, report: None, model: None, engine: Weak::new() }
    }
}

/// Several packs in one model at once, by weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct Combination<'a> {
    /// The packs and their weights; weights that add up to 1 keep the size of one pack's change.
    pub packs: &'a [(&'a VerifiedPack, f32)],
    /// For gates packs of one pool: mixes their gates, so that the combination costs what one pack costs. Without it the
    /// packs' deltas are added and their ranks add up, exactly, whatever they were made from.
    pub pool: Option<&'a VerifiedPool>,
    /// The system message that the combination stands for and that sessions drop, such as the packs' prompts in one.
    /// Without one, only conversations without a system message are answered by the combination.
    pub prompt: Option<&'a str>,
}

impl Combination<'_> {
    fn lora(&self) -> Result<LoraSet> {
        match self.pool {
            Some(pool) => combine_gates(self.packs, pool),
            None => {
                let parts: Vec<_> = self.packs.iter().map(|(pack, weight)| (pack.lora(), *weight)).collect();
                combine_loras(&parts)
            }
        }
    }

    fn digest(&self) -> Digest {
        let parts = self.packs.iter().map(|(pack, weight)| format!("{}*{:08x}", pack.digest(), weight.to_bits()));
        let kind = if self.pool.is_some() { "gates" } else { "deltas" };
        Digest::of(format!("{kind}:{}", parts.collect::<Vec<_>>().join("+")).as_bytes())
    }

    /// All packs' residual prompts, one after the other.
    fn residual_prompt(&self) -> Option<String> {
        let texts = self.packs.iter().filter_map(|(pack, _)| pack.manifest().residual_prompt.as_ref());
        texts.map(|residual| residual.text.clone()).reduce(|all, next| all + "\n" + &next)
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
        let manifest = pack.manifest();
        match_model(&manifest.model, self.identity())?;
        let saved = SavedPack {
            digest: pack.digest(),
            prompt: manifest.prompt.as_ref().map(|prompt| prompt.digest),
            residual_prompt: manifest.residual_prompt.as_ref().map(|residual| residual.text.clone()),
        };
        self.merge_lora(pack.shared_lora(), saved, options, cancel, progress)
    }

    /// As [`merge`](Self::merge), for several packs at once.
    ///
    /// # Errors
    /// As [`merge`](Self::merge); those of [`combine_gates`] and [`combine_loras`].
    pub fn merge_combination(
        &self,
        combination: &Combination<'_>,
        options: &MergeOptions,
        cancel: &CancelToken,
        progress: MergeProgress<'_>,
    ) -> Result<MergeReport> {
        for (pack, _) in combination.packs {
            match_model(&pack.manifest().model, self.identity())?;
        }
        let saved = SavedPack {
            digest: combination.digest(),
            prompt: combination.prompt.map(|prompt| Digest::of(prompt.as_bytes())),
            residual_prompt: combination.residual_prompt(),
        };
        self.merge_lora(&Arc::new(combination.lora()?), saved, options, cancel, progress)
    }

    fn merge_lora(
        &self,
        lora: &Arc<LoraSet>,
        saved: SavedPack,
        options: &MergeOptions,
        cancel: &CancelToken,
        progress: MergeProgress<'_>,
    ) -> Result<MergeReport> {
        let plain = EncodeOptions { add_special: true, parse_special: false };
        // A side path needs no proof, and a swap shall not wait for the tokenizer.
        let texts: &[&str] = if options.mode == MergeMode::SidePath { &[] } else { &PROBE_TEXTS };
        let probes: Vec<_> = texts.iter().map(|text| self.tokenizer().encode(text, plain)).collect::<Result<_>>()?;
        let (model, report) = self.0.model.merge(lora, &probes, options, cancel, progress)?;
        let SavedPack { digest, prompt, residual_prompt } = saved;
        let (mode, engine) = (model.mode(), Arc::downgrade(&self.0));
        let (report_kept, model) = (Some(report.clone()), Some(model));
        let merged = MergedPack { digest, prompt, residual_prompt, mode, report: report_kept, model, engine };
        self.set_pack(Some(Arc::new(merged)));
        Ok(report)
    }

    /// Puts back a pack that was merged into this model before, as [`pack`](Self::pack) gave it: nothing is computed
    /// again. An app that alternates between tasks keeps one value for each.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if it was merged into the model of another engine.
    pub fn swap(&self, pack: &Arc<MergedPack>) -> Result<()> {
        if !Weak::ptr_eq(&pack.engine, &Arc::downgrade(&self.0)) {
            let reason = "the pack is in the model of another engine".to_owned();
            return Err(Error::InvalidOption { option: "pack", reason });
        }
        self.set_pack(Some(pack.clone()));
        Ok(())
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
        model.save(&saved, path.as_ref(), cancel)
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
