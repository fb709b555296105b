use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use memmap2::MmapMut;

use super::round::{Factors, Rows, Totals};
use super::{Rounding, TensorReport};
use crate::gguf::GgufFile;
use crate::lora::{LoraSet, Target};
use crate::quant::{BlockType, QMatrix, WeightBytes};
use crate::{CancelToken, Error, Result};

/// Rows per job. Fixed, so that the result does not depend on the number of threads; many, because every job learns anew
/// how its rows differ from the formula.
const ROWS_PER_JOB: usize = 512;

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
    let sizes = sources.iter().map(|source| source.merged_size_bytes() as usize);
    let ranges: Vec<Range<usize>> =
        sizes.scan(0, |end, size| Some(std::mem::replace(end, *end + size)..*end)).collect();
    let total = ranges.last().map_or(0, |range| range.end);
    let mut memory = fresh_memory(total)?;

    let mut factors: Vec<Option<Factors>> = sources.iter().map(|_| None).collect();
    in_parallel(threads, cancel, sources.iter().zip(&mut factors), |(source, factors)| {
        *factors = Some(Factors::new(&source.a, &source.b, source.base.cols(), scale));
    })?;

    let mut totals: Vec<Vec<Totals>> =
        sources.iter().map(|source| vec![Totals::default(); source.base.rows().div_ceil(ROWS_PER_JOB)]).collect();
    let mut rest = &mut memory[..];
    let tensors = sources.iter().zip(factors.iter().flatten()).zip(&ranges).zip(&mut totals);
    let jobs = tensors.flat_map(|(((source, factors), range), totals)| {
        let target = rest.split_off_mut(..range.len()).expect("the ranges fill the memory");
        let (from, to, cols) = (source.base.block_type(), source.to, source.base.cols());
        let row_size = range.len() / source.base.rows().max(1);
        let targets = target.chunks_mut((row_size * ROWS_PER_JOB).max(1));
        let bases = source.base.bytes().chunks((source.base.row_size_bytes() * ROWS_PER_JOB).max(1));
        targets.zip(bases).zip(totals).enumerate().map(move |(index, ((target, source), totals))| {
            (Rows { from, to, cols, source, target, factors, first: index * ROWS_PER_JOB }, totals)
        })
    });
    let done = Mutex::new(0);
    in_parallel(threads, cancel, jobs, |(rows, totals)| {
        let size = rows.target.len() as u64;
        *totals = rows.round(rounding);
        let done = {
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            *done += size;
            *done
        };
        progress(done, total as u64);
    })?;

    let memory = Arc::new(memory.make_read_only().map_err(|error| out_of_memory(total, &error))?);
    let mut reports = Vec::with_capacity(sources.len());
    let mut tensors = Vec::with_capacity(sources.len());
    for ((source, range), totals) in sources.iter().zip(ranges).zip(&totals) {
        let mut sum = Totals::default();
        totals.iter().for_each(|part| sum.add(part));
        reports.push(TensorReport::new(source.layer, source.target, source.base.block_type(), source.to, &sum));
        let bytes = WeightBytes::Shared { memory: memory.clone(), range };
        let weight = QMatrix::new(bytes, source.to, source.base.rows(), source.base.cols())?;
        tensors.push(MergedTensor { layer: source.layer, target: source.target, weight });
    }
    Ok(Requantized { tensors, reports, elapsed: start.elapsed() })
}

/// Runs every job on one of `threads` threads; 0 takes as many as the machine has cores.
fn in_parallel<J: Send>(
    threads: usize,
    cancel: &CancelToken,
    jobs: impl Iterator<Item = J> + Send,
    run: impl Fn(J) + Sync,
) -> Result<()> {
    let jobs = Mutex::new(jobs);
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while !cancel.is_cancelled()
            && let Some(job) = next()
        {
            run(job);
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
    cancel.check()
}

/// Fresh zero pages, large ones where the system has them: the first write to a page costs more than rounding what goes
/// into it.
fn fresh_memory(size_bytes: usize) -> Result<MmapMut> {
    // No system maps nothing.
    let memory = MmapMut::map_anon(size_bytes.max(1)).map_err(|error| out_of_memory(size_bytes, &error))?;
    #[cfg(target_os = "linux")]
    if let Err(error) = memory.advise(memmap2::Advice::HugePage) {
        log::debug!("no large pages: {error}");
    }
    Ok(memory)
}

fn out_of_memory(size_bytes: usize, error: &std::io::Error) -> Error {
    Error::Backend { backend: "cpu", reason: format!("no memory for {size_bytes} bytes of merged weights: {error}") }
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
