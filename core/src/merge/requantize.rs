use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::round::{Rows, Sums};
use super::{Rounding, TensorReport};
use crate::gguf::GgufFile;
use crate::lora::{LoraSet, Target};
use crate::quant::{BlockType, QMatrix, WeightBytes};
use crate::{CancelToken, Error, Result};

/// Rows per job. Fixed, so that the result does not depend on the number of threads.
const ROWS_PER_JOB: usize = 64;

/// One weight after the merge.
#[derive(Clone)]
pub struct MergedTensor {
    /// Layer index.
    pub layer: usize,
    /// Which projection.
    pub target: Target,
    /// `W + Δ`
    pub weight: QMatrix,
}

/// Merged weights and what became of each delta.
pub struct Requantized {
    /// In the order of layers and [`Target::ALL`].
    pub tensors: Vec<MergedTensor>,
    /// One per tensor.
    pub reports: Vec<TensorReport>,
    /// Time it took.
    pub elapsed: Duration,
}

impl Requantized {
    /// Bytes of the merged weights.
    pub fn size_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.weight.bytes().len() as u64).sum()
    }
}

/// GGUF's name of an FFN weight.
pub(super) fn tensor_name(layer: usize, target: Target) -> String {
    let name = match target {
        Target::Gate => "gate",
        Target::Up => "up",
        Target::Down => "down",
    };
    format!("blk.{layer}.ffn_{name}.weight")
}

/// A base weight and its LoRA pair.
pub(super) struct Source<'a> {
    layer: usize,
    target: Target,
    base: QMatrix,
    to: BlockType,
    a: std::borrow::Cow<'a, [f32]>,
    b: std::borrow::Cow<'a, [f32]>,
}

impl Source<'_> {
    pub(super) fn is_promoted(&self) -> bool {
        self.to != self.base.block_type()
    }

    pub(super) fn merged_size_bytes(&self) -> u64 {
        self.to.row_size_bytes(self.base.cols()).unwrap_or(0) as u64 * self.base.rows() as u64
    }
}

/// Pairs every delta with its weight. `promote_to`: `None` keeps each tensor's block type; a tensor that already has
/// more bits, or whose rows are no whole number of the type's blocks, keeps its own.
///
/// # Errors
/// [`Error::TargetMissing`] if the file lacks a weight, [`Error::ShapeMismatch`] if a pair does not fit it.
pub(super) fn sources<'a>(
    file: &GgufFile,
    lora: &'a LoraSet,
    promote_to: Option<BlockType>,
) -> Result<Vec<Source<'a>>> {
    let mut sources = Vec::new();
    for (layer, pairs) in lora.layers.iter().enumerate() {
        for target in Target::ALL {
            let Some(pair) = pairs.pair(target) else { continue };
            let name = tensor_name(layer, target);
            if file.opt_tensor(&name).is_none() {
                return Err(Error::TargetMissing { target: format!("{layer}.{}", target.name()) });
            }
            let base = file.matrix(&name)?;
            let (rank, rows, cols) = (pair.a.nrows(), base.rows(), base.cols());
            if (pair.a.dim(), pair.b.dim()) != ((rank, cols), (rows, rank)) || rank == 0 {
                return Err(Error::ShapeMismatch {
                    tensor: name,
                    expected: vec![rows, cols],
                    actual: vec![pair.b.nrows(), pair.a.ncols()],
                });
            }
            let own = base.block_type();
            let bits = |block_type: BlockType| block_type.block_size_bytes() * 8 * 256 / block_type.block_len();
            let to = match promote_to {
                Some(to) if bits(to) > bits(own) && to.row_size_bytes(cols).is_some() => to,
                _ => own,
            };
            let standard = |array: &'a ndarray::Array2<f32>| match array.as_slice() {
                Some(slice) => slice.into(),
                None => array.iter().copied().collect::<Vec<_>>().into(),
            };
            sources.push(Source { layer, target, base, to, a: standard(&pair.a), b: standard(&pair.b) });
        }
    }
    Ok(sources)
}

/// Re-quantises `W + scale · b·a` of every source, in parallel over rows; the same bytes for any number of threads.
///
/// `progress(done, total)` counts merged bytes and is called from worker threads.
///
/// # Errors
/// [`Error::Cancelled`].
pub(super) fn requantize(
    sources: &[Source<'_>],
    scale: f32,
    rounding: Rounding,
    threads: usize,
    cancel: &CancelToken,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Requantized> {
    let start = Instant::now();
    let total: u64 = sources.iter().map(Source::merged_size_bytes).sum();
    let mut merged: Vec<Arc<[u8]>> = sources.iter().map(|source| zeroed(source.merged_size_bytes() as usize)).collect();
    let mut sums: Vec<Vec<Sums>> =
        sources.iter().map(|source| vec![Sums::default(); source.base.rows().div_ceil(ROWS_PER_JOB)]).collect();

    let jobs = sources.iter().zip(&mut merged).zip(&mut sums).flat_map(|((source, merged), sums)| {
        let (rows, cols, from) = (source.base.rows(), source.base.cols(), source.base.block_type());
        let rank = source.a.len() / cols;
        let row_size = merged.len() / rows.max(1);
        let targets = Arc::get_mut(merged).expect("not shared yet").chunks_mut((row_size * ROWS_PER_JOB).max(1));
        let bases = source.base.bytes().chunks((source.base.row_size_bytes() * ROWS_PER_JOB).max(1));
        let bs = source.b.chunks(rank * ROWS_PER_JOB);
        targets.zip(bases).zip(bs).zip(sums).enumerate().map(move |(index, (((target, base), b), sums))| {
            let first = index * ROWS_PER_JOB;
            (Rows { from, to: source.to, cols, source: base, target, a: &source.a, b, scale, first }, sums)
        })
    });
    let queue = Mutex::new((jobs, 0_u64));
    let next = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let job = queue.0.next()?;
        queue.1 += job.0.target.len() as u64;
        Some((job, queue.1))
    };
    let cancelled = AtomicBool::new(false);
    let work = || {
        while let Some(((rows, sums), done)) = next() {
            if cancel.is_cancelled() {
                return cancelled.store(true, Ordering::Relaxed);
            }
            *sums = rows.round(rounding);
            progress(done, total);
        }
    };
    let threads = if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // A refused thread leaves its share to the others.
            let _ = std::thread::Builder::new().name("edgeweld-merge".to_owned()).spawn_scoped(scope, work);
        }
        work();
    });
    drop(queue);
    if cancelled.into_inner() {
        return Err(Error::Cancelled);
    }

    let mut reports = Vec::with_capacity(sources.len());
    let mut tensors = Vec::with_capacity(sources.len());
    for ((source, merged), sums) in sources.iter().zip(merged).zip(&sums) {
        let mut sum = Sums::default();
        sums.iter().for_each(|part| sum.add(part));
        reports.push(TensorReport::new(source.layer, source.target, source.base.block_type(), source.to, &sum));
        let weight = QMatrix::new(WeightBytes::Owned(merged), source.to, source.base.rows(), source.base.cols())?;
        tensors.push(MergedTensor { layer: source.layer, target: source.target, weight });
    }
    Ok(Requantized { tensors, reports, elapsed: start.elapsed() })
}

/// Re-quantises `W + Δ` without a model and without a proof, for tools and measurements.
///
/// `promote_to`: `None` keeps each tensor's block type.
///
/// # Errors
/// [`Error::TargetMissing`], [`Error::ShapeMismatch`], [`Error::Cancelled`].
pub fn requantize_unverified(
    file: &GgufFile,
    lora: &LoraSet,
    promote_to: Option<BlockType>,
    rounding: Rounding,
    threads: usize,
    cancel: &CancelToken,
) -> Result<Requantized> {
    requantize(&sources(file, lora, promote_to)?, lora.scale, rounding, threads, cancel, &|_, _| ())
}

/// Fresh zero pages: the thread that first writes one pays for it.
fn zeroed(len: usize) -> Arc<[u8]> {
    // SAFETY: zero is a valid `u8`.
    unsafe { Arc::<[u8]>::new_zeroed_slice(len).assume_init() }
}
