//! The side path of products that share their input, as one node of our own.
//!
//! Of standard operators it takes three per target, each of one thread, two graph inputs, and every factor in f32: a small
//! model's token then is a tenth longer. This one takes f16 too, shares the work between the session's threads, and
//! finds all pairs through one input.

use std::ptr;

use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, s};
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::proto::OWN;
use super::side_path::Entry;
use crate::kernels::Kernels;
use crate::quant::BlockType;

/// The operator's name.
pub(super) const SIDE_PATH: &str = "SidePath";
/// Its attributes: the layer, its first target, and how many.
pub(super) const ATTRIBUTES: [&str; 3] = ["layer", "first_target", "targets"];
const TARGETS_PER_LAYER: usize = 3;
/// Outputs that are computed before they are added.
const OUTPUTS_AT_ONCE: usize = 64;

/// Inputs: `x` (`[…, in]`), `y` (`[…, out]`) and the [table](super::side_path::TABLE). Output: `y + b·(a·x)`; the targets'
/// outputs are equally many, one target's after the other's.
struct SidePath {
    kernels: Kernels,
    threads: usize,
}

/// [`SidePath`] at one node.
struct SidePathKernel {
    kernels: Kernels,
    threads: usize,
    /// Of the table.
    entries: std::ops::Range<usize>,
}

/// What sessions of graphs with a side path need.
pub(super) fn domain(threads: usize) -> ort::Result<OperatorDomain> {
    OperatorDomain::new(OWN)?.add(SidePath { kernels: Kernels::detect(), threads })
}

impl Operator for SidePath {
    type Kernel<'attr> = SidePathKernel;

    /// `y` becomes the output.
    const INPLACES: &[(u32, u32)] = &[(1, 0)];

    fn name(&self) -> &str {
        SIDE_PATH
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [TensorElementType::Float32, TensorElementType::Float32, TensorElementType::Int64].map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<SidePathKernel> {
        let attribute = |name| context.get::<i64>(name).ok_or_else(|| ort::Error::new(format!("no attribute {name}")));
        let [layer, first, targets] = ATTRIBUTES.map(attribute);
        let first = layer? as usize * TARGETS_PER_LAYER + first? as usize;
        Ok(SidePathKernel { kernels: self.kernels, threads: self.threads, entries: first..first + targets? as usize })
    }
}

impl Kernel for SidePathKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let input = |index| context.input(index)?.ok_or_else(|| ort::Error::new("an input is missing"));
        let (x, y, table) = (input(0)?, input(1)?, input(2)?);
        let (x_shape, x) = x.try_extract_tensor::<f32>()?;
        let (y_shape, y_at) = y.try_extract_tensor::<f32>().map(|(shape, y)| (shape.clone(), y.as_ptr()))?;
        let [cols, width] = [x_shape, &y_shape].map(|shape| shape.last().map_or(0, |extent| *extent as usize));
        let rows = x.len() / cols.max(1);
        let entries = table.try_extract_tensor::<i64>()?.1.as_chunks().0.get(self.entries.clone());
        let entries = entries.ok_or_else(|| ort::Error::new("the table is too short"))?;
        let out = width / entries.len();
        let mut output = context.output(0, y_shape)?.ok_or_else(|| ort::Error::new("nobody reads the output"))?;
        let y = Out(output.try_extract_tensor_mut::<f32>()?.1.as_mut_ptr());
        if !ptr::eq(y.0, y_at) {
            // SAFETY: both are of one shape, and no one else writes either now.
            unsafe { y.0.copy_from_nonoverlapping(y_at, rows * width) };
        }
        // SAFETY: the runner fills the table with pairs whose shapes it checked, and keeps them as long as the sequence.
        let pairs =
            entries.iter().enumerate().filter_map(|(index, entry)| unsafe { Pair::new(entry, cols, out, index) });
        let pairs: Vec<Pair> = pairs.collect();
        if pairs.is_empty() {
            return Ok(());
        }
        let threads = self.threads;
        let part = |total: usize, thread: usize| total * thread / threads..total * (thread + 1) / threads;
        if rows == 1 {
            let lone_row = |thread: usize| {
                for pair in &pairs {
                    let outputs = part(out, thread);
                    // SAFETY: stretches of the row that no other thread has.
                    let y = unsafe { y.stretch(pair.first + outputs.start, outputs.len()) };
                    pair.add_to_row(&self.kernels, x, outputs.start, y);
                }
            };
            return shared(context, threads, lone_row);
        }
        let floats: Vec<[Vec<f32>; 2]> = pairs.iter().map(|pair| [pair.floats(pair.a), pair.floats(pair.b)]).collect();
        let some_rows = |thread: usize| {
            let rows = part(rows, thread);
            // SAFETY: rows that no other thread has.
            let y = unsafe { y.stretch(rows.start * width, rows.len() * width) };
            let x = &x[rows.start * cols..rows.end * cols];
            for (pair, floats) in pairs.iter().zip(&floats) {
                pair.add_to_rows(floats, x, y, width);
            }
        };
        shared(context, threads, some_rows)
    }
}

/// Calls `work` for each thread.
fn shared(context: &ComputeContext, threads: usize, work: impl Fn(usize) + Sync + Send) -> ort::Result<()> {
    if threads == 1 {
        work(0);
        return Ok(());
    }
    context.par_for(threads, threads, work)
}

/// Output memory that threads write disjoint parts of.
#[derive(Clone, Copy)]
struct Out(*mut f32);

// SAFETY: every element is written by one thread.
unsafe impl Sync for Out {}
// SAFETY: as above.
unsafe impl Send for Out {}

impl Out {
    /// # Safety
    /// The stretch is within the memory, and nobody else has a part of it.
    #[expect(clippy::mut_from_ref, reason = "the caller gives each stretch to one thread")]
    unsafe fn stretch(&self, start: usize, len: usize) -> &mut [f32] {
        // SAFETY: as the caller says.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// One target's pair.
struct Pair<'a> {
    /// Rows of f32 or f16.
    a: &'a [u8],
    b: &'a [u8],
    element: BlockType,
    rank: usize,
    /// Outputs of the target.
    out: usize,
    /// The first of them in `y`.
    first: usize,
}

impl Pair<'_> {
    /// `None` if the entry is of no pair.
    ///
    /// # Safety
    /// An entry's addresses are those of a pair of these extents.
    unsafe fn new([a, b, rank, value_bytes]: &Entry, cols: usize, out: usize, index: usize) -> Option<Self> {
        let [rank, value_bytes] = [*rank as usize, *value_bytes as usize];
        if rank == 0 {
            return None;
        }
        let bytes = |address: i64, count: usize| {
            let at = ptr::with_exposed_provenance::<u8>(address as usize);
            // SAFETY: as the caller says.
            unsafe { std::slice::from_raw_parts(at, count * value_bytes) }
        };
        let element = if value_bytes == size_of::<f16>() { BlockType::F16 } else { BlockType::F32 };
        Some(Self { a: bytes(*a, rank * cols), b: bytes(*b, out * rank), element, rank, out, first: index * out })
    }

    /// Adds the outputs from `first` on to `y`.
    fn add_to_row(&self, kernels: &Kernels, x: &[f32], first: usize, y: &mut [f32]) {
        let mut inner = vec![0.0; self.rank];
        kernels.float_rows(self.element, self.a, x, &mut inner);
        let row_bytes = self.b.len() / self.out;
        let mut sums = [0.0; OUTPUTS_AT_ONCE];
        for (index, y) in y.chunks_mut(OUTPUTS_AT_ONCE).enumerate() {
            let start = (first + index * OUTPUTS_AT_ONCE) * row_bytes;
            let sums = &mut sums[..y.len()];
            kernels.float_rows(self.element, &self.b[start..start + y.len() * row_bytes], &inner, sums);
            y.iter_mut().zip(sums).for_each(|(y, sum)| *y += *sum);
        }
    }

    /// Adds the outputs to their columns of `y`, whose rows are `width` wide.
    fn add_to_rows(&self, [a, b]: &[Vec<f32>; 2], x: &[f32], y: &mut [f32], width: usize) {
        let (rows, cols) = (y.len() / width, a.len() / self.rank);
        let sized = "as many values as the entry says";
        let a = ArrayView2::from_shape((self.rank, cols), a).expect(sized);
        let b = ArrayView2::from_shape((self.out, self.rank), b).expect(sized);
        let x = ArrayView2::from_shape((rows, cols), x).expect(sized);
        let mut y = ArrayViewMut2::from_shape((rows, width), y).expect(sized);
        let mut y = y.slice_mut(s![.., self.first..self.first + self.out]);
        general_mat_mul(1.0, &x.dot(&a.t()), &b.t(), 1.0, &mut y);
    }

    fn floats(&self, factor: &[u8]) -> Vec<f32> {
        if self.element == BlockType::F32 {
            return factor.as_chunks().0.iter().map(|value| f32::from_ne_bytes(*value)).collect();
        }
        let halves: Vec<f16> = factor.as_chunks().0.iter().map(|value| f16::from_ne_bytes(*value)).collect();
        let mut floats = vec![0.0; halves.len()];
        halves.convert_to_f32_slice(&mut floats);
        floats
    }
}
