use std::sync::{Arc, mpsc};

use edgeweld::{CancelToken, merge};

use crate::task::Running;
use crate::{Engine, SdkError, TaskHandle, VerifiedPack};

/// How a pack gets into a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum MergeMode {
    /// Beside the weights: keeps the delta to within 1%, swaps in milliseconds, a little slower per token.
    SidePath,
    /// Into the weights, in their own format.
    Merge,
    /// Into the weights, in 8 bits.
    Promote,
    /// Merge, else promote, each within the memory budget and only if its proof passes; else the side path.
    Auto,
}

impl From<MergeMode> for merge::MergeMode {
    fn from(mode: MergeMode) -> Self {
        match mode {
            MergeMode::SidePath => Self::SidePath,
            MergeMode::Merge => Self::Merge,
            MergeMode::Promote => Self::Promote,
            MergeMode::Auto => Self::Auto,
        }
    }
}

impl From<merge::MergeMode> for MergeMode {
    fn from(mode: merge::MergeMode) -> Self {
        match mode {
            merge::MergeMode::SidePath => Self::SidePath,
            merge::MergeMode::Merge => Self::Merge,
            merge::MergeMode::Promote => Self::Promote,
            merge::MergeMode::Auto => Self::Auto,
        }
    }
}

/// Choices of one merge.
#[derive(Clone, Debug, Default, PartialEq, uniffi::Record)]
pub struct MergeOptions {
    /// How the pack gets in; automatic by default.
    #[uniffi(default = None)]
    pub mode: Option<MergeMode>,
    /// Most bytes of merged weights to hold beside the memory-mapped model; no limit by default.
    #[uniffi(default = None)]
    pub memory_budget_bytes: Option<u64>,
    /// Most that rounding may change the weights beside the pack, as a share of them, for the automatic mode to try their own
    /// format; 0.01 by default. More may save memory, and costs a proof that mostly fails.
    #[uniffi(default = None)]
    pub noise_max: Option<f64>,
    /// Threads; one per core by default.
    #[uniffi(default = None)]
    pub threads: Option<u32>,
}

impl MergeOptions {
    fn into_core(self) -> merge::MergeOptions {
        let default = merge::MergeOptions::default();
        merge::MergeOptions {
            mode: self.mode.map_or(default.mode, Into::into),
            memory_budget_bytes: self.memory_budget_bytes.unwrap_or(default.memory_budget_bytes),
            noise_max: self.noise_max.unwrap_or(default.noise_max),
            threads: self.threads.map_or(default.threads, |threads| threads as usize),
            ..default
        }
    }
}

/// What a merge is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum MergeStage {
    /// Rounding weights; counts bytes.
    Rounding,
    /// Comparing the merged model with the side path; counts models compared.
    Proving,
}

/// Where a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct MergeProgress {
    /// What it is doing.
    pub stage: MergeStage,
    /// How much of that is done.
    pub done: u64,
    /// How much there is.
    pub total: u64,
}

/// Is told how a merge goes, on the thread that called; steps that follow each other fast are left out.
#[uniffi::export(foreign)]
pub trait MergeListener: Send + Sync {
    /// The merge came this far. An exception ends the call and arrives at the caller.
    fn on_merge(&self, progress: MergeProgress) -> Result<(), SdkError>;
}

/// What a merge did, and the proof that it kept the pack.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct MergeReport {
    /// What was asked for.
    pub requested: MergeMode,
    /// What was chosen; never automatic.
    pub chosen: MergeMode,
    /// Why, as a sentence.
    pub reason: String,
    /// Memory held beside the model file's, in bytes.
    pub extra_size_bytes: u64,
    /// Whole time in milliseconds, proof included.
    pub elapsed_ms: f64,
    /// The smallest share of the pack that survived in any weight; absent for the side path, which keeps all.
    pub gain_min: Option<f64>,
    /// Share of probe tokens predicted as by the side path; absent for the side path.
    pub agreement: Option<f64>,
}

impl From<merge::MergeReport> for MergeReport {
    fn from(report: merge::MergeReport) -> Self {
        let merged = report.merged();
        Self {
            requested: report.requested.into(),
            chosen: report.chosen.into(),
            gain_min: merged.and_then(|attempt| attempt.tensors.iter().map(|tensor| tensor.gain).reduce(f64::min)),
            agreement: merged.and_then(|attempt| Some(attempt.probe?.agreement)),
            extra_size_bytes: report.extra_size_bytes,
            elapsed_ms: report.elapsed.as_secs_f64() * 1e3,
            reason: report.reason,
        }
    }
}

/// The pack that is in a model.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct MergedPack {
    /// Digest of the pack's file.
    pub digest: String,
    /// Digest of the system prompt that it stands for.
    pub prompt_digest: Option<String>,
    /// How it is in the model; never automatic.
    pub mode: MergeMode,
}

#[uniffi::export]
impl Engine {
    /// Puts a verified pack into the model, in the place of the one that is there. Sessions answer with it from their
    /// next turn on. Blocks: milliseconds for the side path, seconds for the others. Cancelled or refused, the model is
    /// as before.
    #[uniffi::method(default(listener = None, task = None, options))]
    pub fn merge_blocking(
        &self,
        pack: &VerifiedPack,
        options: MergeOptions,
        listener: Option<Arc<dyn MergeListener>>,
        task: Option<Arc<TaskHandle>>,
    ) -> Result<MergeReport, SdkError> {
        let running = Running::new(task);
        let options = options.into_core();
        let Some(listener) = listener else {
            return Ok(self.inner.merge(&pack.inner, &options, running.cancel(), &|_, _, _| ())?.into());
        };
        // Core reports from its workers; a listener of another language is called on the caller's thread only.
        std::thread::scope(|scope| {
            let (sender, progress) = mpsc::channel();
            let worker = scope.spawn(|| {
                let report = move |stage, done, total| {
                    // The receiver is gone only after a failure, which cancels.
                    let _ = sender.send((stage, done, total));
                };
                self.inner.merge(&pack.inner, &options, running.cancel(), &report)
            });
            let failure = relay(&progress, &*listener, running.cancel());
            let result = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match failure {
                Some(failure) => Err(failure),
                None => Ok(result?.into()),
            }
        })
    }

    /// Takes the pack out of the model, which then answers exactly as before the merge.
    pub fn unmerge(&self) -> Result<(), SdkError> {
        Ok(self.inner.unmerge()?)
    }

    /// The pack that is in the model.
    pub fn merged_pack(&self) -> Option<MergedPack> {
        let pack = self.inner.pack()?;
        Some(MergedPack {
            digest: pack.digest.to_string(),
            prompt_digest: pack.prompt.map(|digest| digest.to_string()),
            mode: pack.mode.into(),
        })
    }

    /// Saves the merged model as a GGUF file that loads in place of the model and the pack. Blocks for seconds.
    #[uniffi::method(default(task = None))]
    pub fn save_merged_blocking(&self, path: String, task: Option<Arc<TaskHandle>>) -> Result<(), SdkError> {
        Ok(self.inner.save_merged(path, Running::new(task).cancel())?)
    }
}

/// Tells the listener the latest of what arrived until the merge ends; its failure cancels the merge.
fn relay(
    progress: &mpsc::Receiver<(merge::MergeStage, u64, u64)>,
    listener: &dyn MergeListener,
    cancel: &CancelToken,
) -> Option<SdkError> {
    while let Ok(mut latest) = progress.recv() {
        while let Ok(later) = progress.try_recv() {
            latest = later;
        }
        let (stage, done, total) = latest;
        let stage = match stage {
            merge::MergeStage::Rounding => MergeStage::Rounding,
            merge::MergeStage::Proving => MergeStage::Proving,
        };
        if let Err(failure) = listener.on_merge(MergeProgress { stage, done, total }) {
            cancel.cancel();
            return Some(failure);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_as_core_has_it() {
        let said = MergeOptions { noise_max: Some(0.02), ..MergeOptions::default() };
        assert_eq!(said.into_core(), merge::MergeOptions { noise_max: 0.02, ..merge::MergeOptions::default() });
    }
}
