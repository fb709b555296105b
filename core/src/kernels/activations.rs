use super::lone_row::Parts;
use super::{Kernels, OutPointer};
use crate::threads::{Chunks, ThreadPool};

/// Weights and activations that share one scale in the integer dot products.
pub(super) const BLOCK: usize = 32;
/// Bytes of a block of activation codes.
pub(super) const CODES_BYTES: usize = 64;
/// Largest activation code: 127 · 256, so that both bytes of a code, rounded, are signed 8-bit numbers.
pub(super) const CODE_MAX: f32 = 32_512.0;
/// Activation rows that a GEMM kernel multiplies with a panel at once.
pub(super) const GROUP: usize = 8;
/// Output features per panel.
pub(super) const TILE: usize = 16;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Zeroed memory, aligned to cache lines, that grows and is never given back.
#[derive(Default)]
pub(super) struct Buffer(Vec<Line>);

impl Buffer {
    /// At least `len` values, and 1 KiB more that a kernel may read beyond the end.
    pub(super) fn reserve<T: Copy>(&mut self, len: usize) -> *mut T {
        let lines = (len * size_of::<T>()).div_ceil(64) + 16;
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; 64]));
        }
        self.0.as_mut_ptr().cast()
    }
}

/// Buffers for the quantised form of a matrix's input, reused from call to call.
#[derive(Default)]
pub struct Activations {
    codes: Buffer,
    scales: Buffer,
    sums: Buffer,
    half_sums: Buffer,
    /// `a·x` of the side path for several rows, and for one.
    pub(super) side: Vec<f32>,
    pub(super) lone_row: Parts,
}

impl Activations {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// `values`, row-major `[values.len() / cols, cols]`, as the input of one or more products. It is quantised once,
    /// by the first product that needs it.
    ///
    /// # Panics
    /// If `values` is not a whole number of rows.
    pub fn input<'a>(&'a mut self, values: &'a [f32], cols: usize) -> Input<'a> {
        assert!(cols > 0 && values.len().is_multiple_of(cols), "{} values in rows of {cols}", values.len());
        Input { values, rows: values.len() / cols, cols, quantized: None, buffers: self }
    }
}

/// The input `[rows, cols]` of matrix products.
pub struct Input<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    quantized: Option<Quantized>,
    pub(super) buffers: &'a mut Activations,
}

/// Quantised activations: `x ≈ scale · code` per block of 32 columns, with 16-bit codes.
///
/// Why 16 bits, where others take 8? In the real models, 8-bit codes move the log-probabilities of likely tokens by up
/// to 0.4; 16-bit codes by 0.005. See docs/measurements.md, "CPU kernels".
///
/// Rows come in groups of [`GROUP`] (the last may be smaller); in a group of `n` rows, block `b` of row `r` is
/// the `(b·n + r)`-th of the group's blocks, so that a kernel walks all of a group's rows with one pointer.
#[derive(Clone, Copy)]
pub(super) struct Quantized {
    codes: *mut u8,
    scales: *mut f32,
    sums: *mut f32,
    half_sums: *mut f32,
    rows: usize,
    blocks: usize,
}

// SAFETY: during `quantize` each group is written by one worker; afterwards the pointers are only read.
unsafe impl Sync for Quantized {}

/// One group of quantised rows; see [`Quantized`].
#[derive(Clone, Copy)]
pub(super) struct Group {
    /// `[blocks, rows, 64]`: 32 codes, -32,512 to 32,512, in the instruction set's own order. Behind a group of one row
    /// there is room for the same codes in another order, filled up to a multiple of four blocks.
    pub(super) codes: *mut u8,
    /// `[blocks, rows]`
    pub(super) scales: *mut f32,
    /// `scale · Σ codes` per block, `[blocks, rows]`.
    pub(super) sums: *mut f32,
    /// `scale · Σ codes` per half block, `[blocks, rows, 2]`.
    pub(super) half_sums: *mut f32,
    /// Rows of this group.
    pub(super) rows: usize,
    /// Blocks per row.
    pub(super) blocks: usize,
}

impl Quantized {
    pub(super) fn group(&self, group: usize) -> Group {
        let first = group * GROUP * self.blocks;
        debug_assert!(group * GROUP < self.rows);
        // SAFETY: the buffers hold `rows · blocks` blocks, and the group starts inside them.
        unsafe {
            Group {
                codes: self.codes.add(first * CODES_BYTES),
                scales: self.scales.add(first),
                sums: self.sums.add(first),
                half_sums: self.half_sums.add(first * 2),
                rows: (self.rows - group * GROUP).min(GROUP),
                blocks: self.blocks,
            }
        }
    }
}

impl Input<'_> {
    /// Rows of the input.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn quantized(&mut self, kernels: &Kernels, pool: &ThreadPool) -> Quantized {
        if let Some(quantized) = self.quantized {
            return quantized;
        }
        assert!(self.cols.is_multiple_of(BLOCK), "{} columns cannot be quantised in blocks of {BLOCK}", self.cols);
        let (rows, blocks) = (self.rows, self.cols / BLOCK);
        let buffers = &mut *self.buffers;
        let quantized = Quantized {
            // One row more, for the second order in which an instruction set may keep the codes of a lone row.
            codes: buffers.codes.reserve((rows + 1) * blocks * CODES_BYTES),
            scales: buffers.scales.reserve(rows * blocks),
            sums: buffers.sums.reserve(rows * blocks),
            half_sums: buffers.half_sums.reserve(rows * blocks * 2),
            rows,
            blocks,
        };
        let (values, cols) = (self.values, self.cols);
        let quantize_group = |index: usize| {
            let group = quantized.group(index);
            for row in 0..group.rows {
                let values = &values[(index * GROUP + row) * cols..][..cols];
                // SAFETY: `kernels` proves the instruction set; the group has room for this row.
                unsafe { (kernels.ops.quantize)(values, group, row) };
            }
        };
        let groups = rows.div_ceil(GROUP);
        // One region costs about as much as quantising two thousand values.
        if groups == 1 {
            quantize_group(0);
        } else {
            let chunks = Chunks::new(groups, groups.div_ceil(pool.worker_count() * 4));
            pool.run(|_, _| {
                while let Some(range) = chunks.take() {
                    range.for_each(quantize_group);
                }
            });
        }
        self.quantized = Some(quantized);
        quantized
    }
}

/// The scalar twin of every `quantize` kernel.
///
/// # Safety
/// `group` has room for row `row` of `values.len()` columns, a multiple of 32.
pub(super) unsafe fn quantize_scalar(values: &[f32], group: Group, row: usize) {
    for (block, values) in values.chunks_exact(BLOCK).enumerate() {
        let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let scale = largest / CODE_MAX;
        // The inverse of a denormal would be infinite.
        let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
        let mut halves = [0i32; 2];
        let at = block * group.rows + row;
        for (index, value) in values.iter().enumerate() {
            let code = (value * inverse).round_ties_even().clamp(-CODE_MAX, CODE_MAX) as i16;
            halves[index / 16] += i32::from(code);
            // SAFETY: `at` is below `rows · blocks`; the codes are aligned to cache lines.
            unsafe { *group.codes.add(at * CODES_BYTES).cast::<i16>().add(index) = code };
        }
        // SAFETY: as above.
        unsafe {
            *group.scales.add(at) = scale;
            *group.sums.add(at) = scale * (halves[0] + halves[1]) as f32;
            *group.half_sums.add(at * 2) = scale * halves[0] as f32;
            *group.half_sums.add(at * 2 + 1) = scale * halves[1] as f32;
        }
    }
}

impl OutPointer {
    /// # Safety
    /// `start + len` values lie in the memory that the pointer was made from, and no one else uses these.
    #[allow(clippy::mut_from_ref, reason = "workers write disjoint parts of one output")]
    pub(super) unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
