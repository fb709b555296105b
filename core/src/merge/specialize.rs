use std::sync::Arc;
use std::time::{Duration, Instant};

use super::proof::{Reference, check_gains, check_noise, check_probe};
use super::requantize::{MergedTensor, Requantized, requantize, sources};
use super::{Attempt, MergeMode, MergeOptions, MergeReport, Refusal};
use crate::gguf::GgufFile;
use crate::lora::{LoraSet, Target};
use crate::model::{Backend, Decoder};
use crate::verify::VerifiedPack;
use crate::{CancelToken, Error, Result};

/// A base model with a pack in it. Dropping it is unmerging: the base decoder was never changed.
pub struct Specialization<B: Backend> {
    /// The base decoder itself beside a side path; else one that shares all weights but the merged ones.
    pub decoder: Arc<Decoder<B>>,
    /// One entry per layer.
    pub side_path: Option<Arc<[B::Lora]>>,
    /// The merged weights; empty beside a side path.
    pub merged: Vec<MergedTensor>,
    /// How the pack got in: never [`MergeMode::Auto`].
    pub mode: MergeMode,
}

/// Where a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeStage {
    /// Re-quantising weights; counts bytes.
    Rounding,
    /// Comparing probe logits; counts models compared.
    Proving,
}

/// Called from worker threads with the stage, what is done and the total; returns fast.
pub type MergeProgress<'a> = &'a (dyn Fn(MergeStage, u64, u64) + Sync);

/// Puts a verified pack into a model as [`MergeOptions::mode`] says, and proves that it arrived.
///
/// `base` was loaded from `file`. `probes` are the tokens of the texts that the proof compares, such as
/// [`PROBE_TEXTS`](super::PROBE_TEXTS) in the model's own tokens.
///
/// # Errors
/// [`Error::TargetMissing`] and [`Error::ShapeMismatch`] if the pack does not fit the model;
/// [`Error::MergeLost`] and [`Error::MergeRefused`] if [`MergeMode::Merge`] or [`MergeMode::Promote`] was demanded
/// and its proof fails; [`Error::Cancelled`]. The base is as before in any case.
pub fn merge<B: Backend>(
    base: &Arc<Decoder<B>>,
    file: &GgufFile,
    pack: &VerifiedPack,
    probes: &[Vec<u32>],
    options: &MergeOptions,
    cancel: &CancelToken,
    progress: MergeProgress<'_>,
) -> Result<(Specialization<B>, MergeReport)> {
    merge_unverified(base, file, pack.shared_lora(), probes, options, cancel, progress)
}

/// [`merge`] for a LoRA that no signature vouches for: tools and tests that made it themselves.
///
/// # Errors
/// As [`merge`].
pub fn merge_unverified<B: Backend>(
    base: &Arc<Decoder<B>>,
    file: &GgufFile,
    lora: &Arc<LoraSet>,
    probes: &[Vec<u32>],
    options: &MergeOptions,
    cancel: &CancelToken,
    progress: MergeProgress<'_>,
) -> Result<(Specialization<B>, MergeReport)> {
    let start = Instant::now();
    if lora.layers.len() != base.layers.len() {
        let target = format!("layer {}", lora.layers.len().max(base.layers.len()) - 1);
        return Err(Error::TargetMissing { target });
    }
    // Checks every shape, whatever the mode.
    sources(file, lora, None)?;
    let side_path = base.backend.side_path(lora)?;

    let modes: &[MergeMode] = match options.mode {
        MergeMode::SidePath => &[],
        MergeMode::Merge => &[MergeMode::Merge],
        MergeMode::Promote => &[MergeMode::Promote],
        MergeMode::Auto => &[MergeMode::Merge, MergeMode::Promote],
    };
    let mut trial =
        Trial { base, file, lora, side_path: &side_path, probes, options, cancel, progress, reference: None };
    let mut attempts = Vec::new();
    for &mode in modes {
        let (attempt, specialization) = trial.run(mode)?;
        attempts.push(attempt);
        if let Some(specialization) = specialization {
            return Ok((specialization, report(options, mode, attempts, lora, start)));
        }
    }
    if let (MergeMode::Merge | MergeMode::Promote, Some(Attempt { refusal: Some(refusal), .. })) =
        (options.mode, attempts.pop_if(|_| options.mode != MergeMode::Auto))
    {
        return Err(refused(refusal));
    }
    let specialization = Specialization {
        decoder: base.clone(),
        side_path: Some(side_path),
        merged: Vec::new(),
        mode: MergeMode::SidePath,
    };
    Ok((specialization, report(options, MergeMode::SidePath, attempts, lora, start)))
}

/// What attempts share.
struct Trial<'a, B: Backend> {
    base: &'a Arc<Decoder<B>>,
    file: &'a GgufFile,
    lora: &'a LoraSet,
    side_path: &'a Arc<[B::Lora]>,
    probes: &'a [Vec<u32>],
    options: &'a MergeOptions,
    cancel: &'a CancelToken,
    progress: MergeProgress<'a>,
    reference: Option<Reference>,
}

impl<B: Backend> Trial<'_, B> {
    fn run(&mut self, mode: MergeMode) -> Result<(Attempt, Option<Specialization<B>>)> {
        let options = self.options;
        let promote_to = (mode == MergeMode::Promote).then_some(options.promote_to);
        let sources = sources(self.file, self.lora, promote_to)?;
        let size_bytes = sources.iter().map(|source| source.merged_size_bytes()).sum();
        let mut attempt = Attempt {
            mode,
            size_bytes,
            tensors: Vec::new(),
            probe: None,
            refusal: None,
            merge_time: Duration::ZERO,
            proof_time: Duration::ZERO,
        };
        if let Some(block_type) = promote_to
            && !sources.iter().any(|source| source.is_promoted())
        {
            attempt.refusal = Some(Refusal::NothingToPromote { block_type });
            return Ok((attempt, None));
        }
        if size_bytes > options.memory_budget_bytes {
            let budget_bytes = options.memory_budget_bytes;
            attempt.refusal = Some(Refusal::Memory { required_bytes: size_bytes, budget_bytes });
            return Ok((attempt, None));
        }

        let report = |done, total| (self.progress)(MergeStage::Rounding, done, total);
        let Requantized { tensors, reports, elapsed } =
            requantize(&sources, self.lora.scale, options.rounding, options.threads, self.cancel, &report)?;
        (attempt.tensors, attempt.merge_time) = (reports, elapsed);
        attempt.refusal = check_gains(&attempt.tensors, options);
        if attempt.refusal.is_none() && options.mode == MergeMode::Auto {
            attempt.refusal = check_noise(&attempt.tensors, options);
        }
        if attempt.refusal.is_some() {
            return Ok((attempt, None));
        }

        let start = Instant::now();
        let decoder = Arc::new(with_weights(self.base, &tensors)?);
        (self.progress)(MergeStage::Proving, 0, 2);
        let reference = match &mut self.reference {
            Some(reference) => reference,
            none => none.insert(Reference::new(self.base, self.side_path, self.probes, self.cancel)?),
        };
        (self.progress)(MergeStage::Proving, 1, 2);
        let probe = reference.compare(&decoder, self.cancel)?;
        (self.progress)(MergeStage::Proving, 2, 2);
        attempt.refusal = check_probe(&probe, options);
        (attempt.probe, attempt.proof_time) = (Some(probe), start.elapsed());
        let passed = attempt.refusal.is_none();
        Ok((attempt, passed.then_some(Specialization { decoder, side_path: None, merged: tensors, mode })))
    }
}

/// A decoder that shares `base`'s weights but for `tensors`.
///
/// # Errors
/// Those of [`Backend::matrix`].
pub fn with_weights<B: Backend>(base: &Decoder<B>, tensors: &[MergedTensor]) -> Result<Decoder<B>> {
    let mut decoder = base.clone();
    for tensor in tensors {
        let weight = decoder.backend.matrix(tensor.weight.clone())?;
        let layer = &mut decoder.layers[tensor.layer];
        match tensor.target {
            Target::Gate => layer.gate = weight,
            Target::Up => layer.up = weight,
            Target::Down => layer.down = weight,
        }
    }
    Ok(decoder)
}

fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Gain { target, gain, low, high } => {
            Error::MergeLost { target, gain, limit: if gain > high { high } else { low } }
        }
        refusal => Error::MergeRefused { refusal },
    }
}

/// The report of a side path that nothing was tried before.
#[cfg(feature = "onnx")]
pub(crate) fn side_path_report(options: &MergeOptions, lora: &LoraSet, start: Instant) -> MergeReport {
    report(options, MergeMode::SidePath, Vec::new(), lora, start)
}

fn report(
    options: &MergeOptions,
    chosen: MergeMode,
    attempts: Vec<Attempt>,
    lora: &LoraSet,
    start: Instant,
) -> MergeReport {
    let refusals = attempts.iter().filter_map(|attempt| {
        let refusal = attempt.refusal.as_ref()?;
        Some(format!("{} refused: {refusal}", if attempt.mode == MergeMode::Merge { "merge" } else { "promotion" }))
    });
    let refusals: Vec<_> = refusals.collect();
    let chosen_name = match chosen {
        MergeMode::SidePath => "side path",
        MergeMode::Merge => "merge: its proof passed",
        MergeMode::Promote | MergeMode::Auto => "promotion: its proof passed",
    };
    let reason = match (options.mode, refusals.is_empty()) {
        (MergeMode::SidePath, _) => "side path, as asked".to_owned(),
        (_, true) => chosen_name.to_owned(),
        (_, false) => format!("{chosen_name}; {}", refusals.join("; ")),
    };
    log::info!("{reason}");
    let factors =
        || lora.layers.iter().flat_map(|layer| Target::ALL.into_iter().filter_map(|target| layer.pair(target)));
    let extra_size_bytes = match attempts.last() {
        Some(attempt) if attempt.refusal.is_none() => attempt.size_bytes,
        _ => factors().map(|pair| 4 * (pair.a.len() + pair.b.len()) as u64).sum(),
    };
    MergeReport {
        requested: options.mode,
        chosen,
        reason,
        rounding: options.rounding,
        attempts,
        extra_size_bytes,
        elapsed: start.elapsed(),
    }
}
