//! One head's keys and values as attention multiplies with them.

use std::ops::Range;

use half::f16;

use super::cache::{CacheShape, KEY_BLOCK, SCALE_GROUP};
use super::lanes::Lanes;

/// Keys per step of a tile: its scores and their keys stay in the first- and second-level cache.
pub(super) const KEYS_PER_STEP: usize = 128;
/// Queries whose products with a group of a block's keys are held before they are scaled.
const QUERIES_AT_ONCE: usize = 8;

/// The two products of attention.
pub(super) trait Head: Copy {
    /// `scores[query, key] = q · k` for a block of keys; `q: [queries, head_dim]`, rows of `scores` lie [`KEYS_PER_STEP`] apart.
    fn score<L: Lanes>(self, lanes: L, q: &[f32], queries: usize, block: usize, scores: &mut [f32]);

    /// `values[query] += Σ weights[query, key] · v` over `keys`, which start a block; `weights: [queries, KEYS_PER_STEP]`, zero
    /// up to a whole block. `scaled` is memory as large as `weights`.
    fn add_values<L: Lanes>(
        self,
        lanes: L,
        weights: &[f32],
        queries: usize,
        keys: Range<usize>,
        values: &mut [f32],
        scaled: &mut [f32],
    );
}

/// A head of an f16 cache.
#[derive(Clone, Copy)]
pub(super) struct Halves<'a> {
    pub(super) shape: CacheShape,
    /// `[block, head_dim, KEY_BLOCK]`
    pub(super) keys: &'a [f16],
    /// `[position, value_stride]`
    pub(super) values: &'a [f16],
}

impl Head for Halves<'_> {
    #[inline(always)]
    fn score<L: Lanes>(self, lanes: L, q: &[f32], queries: usize, block: usize, scores: &mut [f32]) {
        let dim = self.shape.head_dim;
        let k = Operand { values: &self.keys[block * dim * KEY_BLOCK..][..dim * KEY_BLOCK], stride: KEY_BLOCK };
        multiply::<L, f16, false>(lanes, q, dim, queries, k, dim, scores, KEYS_PER_STEP, KEY_BLOCK);
    }

    #[inline(always)]
    fn add_values<L: Lanes>(
        self,
        lanes: L,
        weights: &[f32],
        queries: usize,
        keys: Range<usize>,
        values: &mut [f32],
        _: &mut [f32],
    ) {
        let stride = self.shape.value_stride;
        let v = Operand { values: &self.values[keys.start * stride..keys.end * stride], stride };
        multiply::<L, f16, true>(lanes, weights, KEYS_PER_STEP, queries, v, keys.len(), values, stride, stride);
    }
}

/// A head of an 8-bit cache.
#[derive(Clone, Copy)]
pub(super) struct Codes<'a> {
    pub(super) shape: CacheShape,
    /// `[block, head_dim, KEY_BLOCK]`
    pub(super) keys: &'a [i8],
    /// `[position, value_stride]`
    pub(super) values: &'a [i8],
    /// `[block, group, KEY_BLOCK]`
    pub(super) key_scales: &'a [f16],
    /// `[block, group, KEY_BLOCK]`
    pub(super) value_scales: &'a [f16],
}

impl Codes<'_> {
    /// Of `[block, group, KEY_BLOCK]`, those of one block and group.
    #[inline(always)]
    fn scales<'s>(&self, all: &'s [f16], block: usize, group: usize) -> &'s [f16] {
        &all[(block * self.shape.group_count() + group) * KEY_BLOCK..][..KEY_BLOCK]
    }
}

impl Head for Codes<'_> {
    #[inline(always)]
    fn score<L: Lanes>(self, lanes: L, q: &[f32], queries: usize, block: usize, scores: &mut [f32]) {
        let dim = self.shape.head_dim;
        let codes = &self.keys[block * dim * KEY_BLOCK..][..dim * KEY_BLOCK];
        for group in 0..self.shape.group_count() {
            let start = group * SCALE_GROUP;
            let depth = SCALE_GROUP.min(dim - start);
            let k = Operand { values: &codes[start * KEY_BLOCK..][..depth * KEY_BLOCK], stride: KEY_BLOCK };
            let scales = self.scales(self.key_scales, block, group);
            let mut products = [0.0; QUERIES_AT_ONCE * KEY_BLOCK];
            for first in (0..queries).step_by(QUERIES_AT_ONCE) {
                let count = QUERIES_AT_ONCE.min(queries - first);
                let q = &q[first * dim + start..];
                multiply::<L, i8, false>(lanes, q, dim, count, k, depth, &mut products, KEY_BLOCK, KEY_BLOCK);
                for (query, products) in products.chunks_exact(KEY_BLOCK).take(count).enumerate() {
                    let scores = &mut scores[(first + query) * KEYS_PER_STEP..][..KEY_BLOCK];
                    for at in (0..KEY_BLOCK).step_by(L::COUNT) {
                        let scores = &mut scores[at..];
                        let sum = if group == 0 { lanes.splat(0.0) } else { lanes.load(scores) };
                        lanes.store(lanes.fma(lanes.load(&products[at..]), lanes.load_f16(&scales[at..]), sum), scores);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn add_values<L: Lanes>(
        self,
        lanes: L,
        weights: &[f32],
        queries: usize,
        keys: Range<usize>,
        values: &mut [f32],
        scaled: &mut [f32],
    ) {
        let stride = self.shape.value_stride;
        for group in 0..self.shape.group_count() {
            for query in 0..queries {
                let row = query * KEYS_PER_STEP..(query + 1) * KEYS_PER_STEP;
                let (weights, scaled) = (&weights[row.clone()], &mut scaled[row]);
                let blocks = weights.chunks_exact(KEY_BLOCK).zip(scaled.chunks_exact_mut(KEY_BLOCK));
                for (block, (weights, scaled)) in blocks.take(keys.len().div_ceil(KEY_BLOCK)).enumerate() {
                    let scales = self.scales(self.value_scales, keys.start / KEY_BLOCK + block, group);
                    for at in (0..KEY_BLOCK).step_by(L::COUNT) {
                        let weight = lanes.mul(lanes.load(&weights[at..]), lanes.load_f16(&scales[at..]));
                        lanes.store(weight, &mut scaled[at..]);
                    }
                }
            }
            let start = group * SCALE_GROUP;
            let cols = SCALE_GROUP.min(stride - start);
            let v = Operand { values: &self.values[keys.start * stride + start..], stride };
            let out = &mut values[start..];
            multiply::<L, i8, true>(lanes, scaled, KEYS_PER_STEP, queries, v, keys.len(), out, stride, cols);
        }
    }
}

/// A number as the cache keeps it.
trait Element: Copy {
    /// The first `COUNT` values, widened.
    fn load<L: Lanes>(lanes: L, values: &[Self]) -> L::F32;
}

impl Element for f16 {
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, values: &[f16]) -> L::F32 {
        lanes.load_f16(values)
    }
}

impl Element for i8 {
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, values: &[i8]) -> L::F32 {
        lanes.load_i8(values)
    }
}

/// `[depth, cols]`
#[derive(Clone, Copy)]
struct Operand<'a, T> {
    values: &'a [T],
    stride: usize,
}

/// `c[r, j] (+)= Σ a[r, i] · b[i, j]`; `cols` is a multiple of 16.
#[inline(always)]
fn multiply<L: Lanes, T: Element, const ADD: bool>(
    lanes: L,
    a: &[f32],
    a_stride: usize,
    rows: usize,
    b: Operand<T>,
    depth: usize,
    c: &mut [f32],
    c_stride: usize,
    cols: usize,
) {
    assert!(rows == 0 || a.len() >= (rows - 1) * a_stride + depth);
    assert!(depth == 0 || b.values.len() >= (depth - 1) * b.stride + cols);
    assert!(rows == 0 || c.len() >= (rows - 1) * c_stride + cols);
    let mut row = 0;
    while row < rows {
        let count = match rows - row {
            left if left >= L::TILE_ROWS => L::TILE_ROWS,
            left if left >= 4 => 4,
            left => left,
        };
        let (a, stride) = (a[row * a_stride..].as_ptr(), b.stride);
        let mut col = 0;
        while col < cols {
            let b = b.values[col..].as_ptr();
            let c = c[row * c_stride + col..].as_mut_ptr();
            let pair = cols - col >= 2 * L::COUNT;
            // SAFETY: the asserts above.
            unsafe {
                macro_rules! tile {
                    ($rows:literal) => {
                        if pair {
                            register_tile::<L, T, $rows, 2, ADD>(lanes, a, a_stride, b, stride, depth, c, c_stride)
                        } else {
                            register_tile::<L, T, $rows, 1, ADD>(lanes, a, a_stride, b, stride, depth, c, c_stride)
                        }
                    };
                }
                match count {
                    8 => tile!(8),
                    4 => tile!(4),
                    3 => tile!(3),
                    2 => tile!(2),
                    _ => tile!(1),
                }
            }
            col += if pair { 2 * L::COUNT } else { L::COUNT };
        }
        row += count;
    }
}

/// # Safety
/// `ROWS` rows of `depth` values of `a`, `depth` rows of `VECTORS · COUNT` values of `b`, and `ROWS` such rows of `c`
/// can be reached.
#[inline(always)]
unsafe fn register_tile<L: Lanes, T: Element, const ROWS: usize, const VECTORS: usize, const ADD: bool>(
    lanes: L,
    a: *const f32,
    a_stride: usize,
    b: *const T,
    b_stride: usize,
    depth: usize,
    c: *mut f32,
    c_stride: usize,
) {
    let zero = lanes.splat(0.0);
    let mut sums = [[zero; VECTORS]; ROWS];
    for i in 0..depth {
        let mut weights = [zero; VECTORS];
        for (vector, weights) in weights.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let place = unsafe { std::slice::from_raw_parts(b.add(i * b_stride + vector * L::COUNT), L::COUNT) };
            *weights = T::load(lanes, place);
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let x = lanes.splat(unsafe { *a.add(row * a_stride + i) });
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = lanes.fma(x, weight, *sum);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            let place = unsafe { std::slice::from_raw_parts_mut(c.add(row * c_stride + vector * L::COUNT), L::COUNT) };
            let sum = if ADD { lanes.add(lanes.load(place), *sum) } else { *sum };
            lanes.store(sum, place);
        }
    }
}
