use std::cell::RefCell;

use super::buffer::{Arena, Buffer};
use super::cache::{KEY_BLOCK, KvType, LayerCache, RopeTable};
use super::head::{Codes, Halves, Head, KEYS_PER_STEP};
use super::lanes::{Kernel, Lanes, dispatch};
use crate::kernels::Kernels;
use crate::model::config::AttentionParams;
use crate::threads::{Chunks, ThreadPool};

/// Queries per tile of a prefill (rows × heads that share a key/value head).
const QUERIES_PER_TILE: usize = 48;
/// Products below which a parallel region costs more than it saves.
const SERIAL_MAX: usize = 100_000;
/// Fewest keys worth giving to a worker of their own at decode.
const KEYS_PER_SPLIT_MIN: usize = 128;
/// Largest head width; `Config` allows no larger.
const HEAD_DIM_MAX: usize = 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Memory that workers write disjoint parts of.
#[derive(Clone, Copy)]
struct Disjoint<T>(*mut T);

// SAFETY: every use gives an element to one worker only.
unsafe impl<T> Sync for Disjoint<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Disjoint<T> {}

impl<T> Disjoint<T> {
    /// # Safety
    /// `start..start + len` lie in the memory, and no one else uses them.
    #[allow(clippy::mut_from_ref, reason = "workers write disjoint parts")]
    unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Attention of one layer over new rows at positions `start..`.
pub(super) struct Attention<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) pool: &'a ThreadPool,
    pub(super) arena: &'a std::sync::Arc<Arena>,
    pub(super) params: &'a AttentionParams,
    pub(super) q_norm: Option<&'a [f32]>,
    pub(super) k_norm: Option<&'a [f32]>,
    pub(super) start: usize,
}

impl Attention<'_> {
    /// Appends to `cache`, attends: `[rows, head_count · head_dim]`.
    pub(super) fn run(&self, qkv: [Buffer; 3], cache: &mut LayerCache, rope: &RopeTable) -> Buffer {
        let [mut q, mut k, v] = qkv;
        self.append(&mut q, &mut k, &v, cache, rope);
        self.attend(&q, cache)
    }

    /// Norms, rotates and scales `q`; norms and rotates `k`; writes `k` and `v` to the cache.
    fn append(&self, q: &mut Buffer, k: &mut Buffer, v: &Buffer, cache: &mut LayerCache, rope: &RopeTable) {
        let params = self.params;
        let (rows, dim) = (q.rows, params.head_dim);
        let (q_cols, kv_cols) = (q.cols, k.cols);
        let (q, k) = (Disjoint(q.as_mut_ptr()), Disjoint(k.as_mut_ptr()));
        let places = cache.places();
        let rotate = |x: &mut [f32], row: usize, norm: Option<&[f32]>| {
            if let Some(weight) = norm {
                let mut normed = [0.0; HEAD_DIM_MAX];
                self.kernels.rms_norm(x, weight, params.norm_epsilon, &mut normed[..dim]);
                x.copy_from_slice(&normed[..dim]);
            }
            let pairs = row * dim / 2..(row + 1) * dim / 2;
            self.kernels.rope(x, &rope.cos[pairs.clone()], &rope.sin[pairs], params.rope.interleaved);
        };
        let row_range = |range: std::ops::Range<usize>| {
            for row in range {
                let position = self.start + row;
                // SAFETY: every row, and every block of positions, is given to one worker; the cache has room for
                // the rows, which `Decoder::hidden` checked.
                unsafe {
                    let q = q.slice(row * q_cols, q_cols);
                    for head in q.chunks_exact_mut(dim) {
                        rotate(head, row, self.q_norm);
                        head.iter_mut().for_each(|value| *value *= params.scale);
                    }
                    let k = k.slice(row * kv_cols, kv_cols);
                    let v = v[row * kv_cols..][..kv_cols].chunks_exact(dim);
                    for (head, (key, value)) in k.chunks_exact_mut(dim).zip(v).enumerate() {
                        rotate(key, row, self.k_norm);
                        places.write(head, position, key, value);
                    }
                }
            }
        };
        if rows < KEY_BLOCK || self.pool.worker_count() == 1 {
            return row_range(0..rows);
        }
        // Whole blocks of positions, so that no two workers write one cache line.
        let first_block = self.start / KEY_BLOCK;
        let chunks = Chunks::new((self.start + rows).div_ceil(KEY_BLOCK) - first_block, 1);
        self.pool.run(|_, _| {
            while let Some(blocks) = chunks.take() {
                let first = (first_block + blocks.start) * KEY_BLOCK;
                let end = (first_block + blocks.end) * KEY_BLOCK;
                row_range(first.max(self.start) - self.start..(end - self.start).min(rows));
            }
        });
    }

    fn attend(&self, q: &Buffer, cache: &LayerCache) -> Buffer {
        let params = self.params;
        let group = params.head_count / params.kv_head_count;
        let out = self.arena.take(q.rows, q.cols);
        let end = self.start + q.rows;
        let first_key = params.window.map_or(0, |window| (self.start + 1).saturating_sub(window));
        let keys = end - first_key;
        if q.rows == 1 && self.pool.worker_count() > 1 && keys * q.cols > SERIAL_MAX {
            return self.attend_split(q, cache, first_key, out);
        }
        let rows_per_tile = (QUERIES_PER_TILE / group).clamp(1, q.rows);
        let tiles_per_head = q.rows.div_ceil(rows_per_tile);
        let tiles = Chunks::new(params.kv_head_count * tiles_per_head, 1);
        let out_pointer = Disjoint(out.as_ptr().cast_mut());
        let work = || {
            while let Some(range) = tiles.take() {
                // The last rows see most keys: they come first, so that the workers end together.
                let row = (tiles_per_head - 1 - range.start / params.kv_head_count) * rows_per_tile;
                let kv_head = range.start % params.kv_head_count;
                let rows = rows_per_tile.min(q.rows - row);
                let tile = Tile { attention: self, q, cache, kv_head, row, rows, keys: 0..usize::MAX };
                tile.run(|query, sum, values| {
                    let (row, head) = (row + query / group, kv_head * group + query % group);
                    // SAFETY: this tile's queries are given to one worker.
                    let out = unsafe { out_pointer.slice(row * q.cols + head * params.head_dim, params.head_dim) };
                    let scale = 1.0 / sum.total;
                    out.iter_mut().zip(values).for_each(|(out, value)| *out = value * scale);
                });
            }
        };
        if keys * q.rows * q.cols <= SERIAL_MAX {
            work()
        } else {
            self.pool.run(|_, _| work())
        }
        out
    }

    /// One row: keys are divided among workers, and their partial softmaxes merged.
    fn attend_split(&self, q: &Buffer, cache: &LayerCache, first_key: usize, mut out: Buffer) -> Buffer {
        let params = self.params;
        let (dim, kv_heads) = (params.head_dim, params.kv_head_count);
        let group = params.head_count / kv_heads;
        let first_key = first_key / KEY_BLOCK * KEY_BLOCK;
        let keys = self.start + 1 - first_key;
        let workers = self.pool.worker_count();
        // As few parts as give every worker the same number of them.
        let even = (1..=workers).find(|splits| (kv_heads * splits).is_multiple_of(workers)).unwrap_or(1);
        let splits = even.min(keys.div_ceil(KEYS_PER_SPLIT_MIN)).max(1);
        let keys_per_split = keys.div_ceil(splits).next_multiple_of(KEY_BLOCK);
        let splits = keys.div_ceil(keys_per_split);
        // Per part and query: its largest score, its sum, its weighted values.
        let stride = dim + 2;
        let mut partial = self.arena.take(kv_heads * splits, group * stride);
        let partial_pointer = Disjoint(partial.as_mut_ptr());
        let parts = Chunks::new(kv_heads * splits, 1);
        self.pool.run(|_, _| {
            while let Some(range) = parts.take() {
                let part = range.start;
                let from = first_key + part % splits * keys_per_split;
                let keys = from..from + keys_per_split;
                let tile = Tile { attention: self, q, cache, kv_head: part / splits, row: 0, rows: 1, keys };
                tile.run(|query, sum, values| {
                    // SAFETY: this part is given to one worker.
                    let place = unsafe { partial_pointer.slice((part * group + query) * stride, stride) };
                    place[0] = sum.largest;
                    place[1] = sum.total;
                    place[2..].copy_from_slice(&values[..dim]);
                });
            }
        });
        for (head, out) in out.chunks_exact_mut(dim).enumerate() {
            let (kv_head, query) = (head / group, head % group);
            let part = |split: usize| &partial[((kv_head * splits + split) * group + query) * stride..][..stride];
            let largest = (0..splits).fold(f32::NEG_INFINITY, |largest, split| largest.max(part(split)[0]));
            out.fill(0.0);
            let mut total = 0.0;
            for split in 0..splits {
                let part = part(split);
                let weight = (part[0] - largest).exp();
                total += weight * part[1];
                out.iter_mut().zip(&part[2..]).for_each(|(out, value)| *out += weight * value);
            }
            out.iter_mut().for_each(|out| *out /= total);
        }
        out
    }
}

/// The running softmax of one query.
#[derive(Clone, Copy)]
struct Sum {
    largest: f32,
    total: f32,
}

/// The queries of some rows that share a key/value head, over a range of keys.
struct Tile<'a> {
    attention: &'a Attention<'a>,
    q: &'a Buffer,
    cache: &'a LayerCache,
    kv_head: usize,
    row: usize,
    rows: usize,
    /// Starts at a whole block; may reach beyond the visible keys.
    keys: std::ops::Range<usize>,
}

impl Tile<'_> {
    /// Calls `emit(query, sum, weighted values)` for each query; queries are `row · group + head`.
    fn run(self, emit: impl FnMut(usize, Sum, &[f32])) {
        let params = self.attention.params;
        let queries = self.rows * (params.head_count / params.kv_head_count);
        let scores = queries * KEYS_PER_STEP;
        let sizes = [queries * params.head_dim, scores, queries * self.cache.shape.value_stride, scores];
        SCRATCH.with_borrow_mut(|scratch| {
            let len = sizes.iter().sum();
            if scratch.len() < len {
                scratch.resize(len, 0.0);
            }
            let (q, rest) = scratch.split_at_mut(sizes[0]);
            let (scores, rest) = rest.split_at_mut(sizes[1]);
            let (values, scaled) = rest.split_at_mut(sizes[2]);
            let isa = self.attention.kernels.isa();
            dispatch(isa, TileKernel { tile: self, queries, q, scores, values, scaled, emit });
        });
    }
}

struct TileKernel<'a, F> {
    tile: Tile<'a>,
    queries: usize,
    /// `[queries, head_dim]`
    q: &'a mut [f32],
    /// `[queries, KEYS_PER_STEP]`
    scores: &'a mut [f32],
    /// `[queries, value_stride]`
    values: &'a mut [f32],
    /// `[queries, KEYS_PER_STEP]`, for what a head computes between.
    scaled: &'a mut [f32],
    emit: F,
}

impl<F: FnMut(usize, Sum, &[f32])> Kernel for TileKernel<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (shape, kv_head) = (self.tile.cache.shape, self.tile.kv_head);
        match shape.kv_type {
            KvType::F16 => {
                let [keys, values] = self.tile.cache.halves(kv_head);
                self.attend(lanes, Halves { shape, keys, values });
            }
            KvType::Q8 => {
                let ([keys, values], [key_scales, value_scales]) = self.tile.cache.codes(kv_head);
                self.attend(lanes, Codes { shape, keys, values, key_scales, value_scales });
            }
        }
    }
}

impl<F: FnMut(usize, Sum, &[f32])> TileKernel<'_, F> {
    #[inline(always)]
    fn attend<L: Lanes>(self, lanes: L, head: impl Head) {
        let Self { tile, queries, q, scores, values, scaled, mut emit } = self;
        let attention = tile.attention;
        let params = attention.params;
        let (dim, stride) = (params.head_dim, tile.cache.shape.value_stride);
        let group = params.head_count / params.kv_head_count;
        for row in 0..tile.rows {
            let from = (tile.row + row) * tile.q.cols + tile.kv_head * group * dim;
            q[row * group * dim..][..group * dim].copy_from_slice(&tile.q[from..][..group * dim]);
        }
        values.fill(0.0);
        let mut sums = [Sum { largest: f32::NEG_INFINITY, total: 0.0 }; MAX_QUERIES];

        let first_position = attention.start + tile.row;
        let end = (first_position + tile.rows).min(tile.keys.end);
        let oldest = |position: usize| params.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let first = (oldest(first_position) / KEY_BLOCK * KEY_BLOCK).max(tile.keys.start);
        for step in (first..end).step_by(KEYS_PER_STEP) {
            let keys = (end - step).min(KEYS_PER_STEP);
            for block in 0..keys.div_ceil(KEY_BLOCK) {
                head.score(lanes, q, queries, step / KEY_BLOCK + block, &mut scores[block * KEY_BLOCK..]);
            }
            let whole = step >= oldest(first_position + tile.rows - 1) && step + keys <= first_position + 1;
            for query in 0..queries {
                let position = first_position + query / group;
                let row = &mut scores[query * KEYS_PER_STEP..][..KEYS_PER_STEP];
                if let Some(cap) = params.softcap {
                    attention.kernels.softcap(&mut row[..keys], cap);
                }
                if !whole {
                    let hidden = oldest(position).saturating_sub(step).min(keys);
                    row[..hidden].fill(f32::NEG_INFINITY);
                    row[(position + 1).saturating_sub(step).clamp(hidden, keys)..keys].fill(f32::NEG_INFINITY);
                }
                let padded = keys.next_multiple_of(KEY_BLOCK);
                row[keys..padded].fill(f32::NEG_INFINITY);
                let sum = &mut sums[query];
                let rescale = softmax_step(lanes, &mut row[..padded], sum);
                if rescale != 1.0 {
                    scale(lanes, &mut values[query * stride..][..stride], rescale);
                }
            }
            head.add_values(lanes, scores, queries, step..step + keys, values, scaled);
        }
        for query in 0..queries {
            emit(query, sums[query], &values[query * stride..][..stride]);
        }
    }
}

/// Queries of a tile: 48, or one row's heads of a key/value head.
const MAX_QUERIES: usize = 1024;

/// Turns scores into `e^(score - largest)`, adds them to the sum, and returns the factor that earlier values need.
#[inline(always)]
fn softmax_step<L: Lanes>(lanes: L, scores: &mut [f32], sum: &mut Sum) -> f32 {
    let mut largest = lanes.splat(sum.largest);
    for values in scores.chunks_exact(L::COUNT) {
        largest = lanes.max(lanes.load(values), largest);
    }
    let largest = lanes.largest(largest);
    if largest == f32::NEG_INFINITY {
        scores.fill(0.0);
        return 1.0;
    }
    let shift = lanes.splat(largest);
    let mut total = lanes.splat(0.0);
    for values in scores.chunks_exact_mut(L::COUNT) {
        let weight = lanes.exp(lanes.sub(lanes.load(values), shift));
        total = lanes.add(total, weight);
        lanes.store(weight, values);
    }
    let rescale = if largest == sum.largest { 1.0 } else { (sum.largest - largest).exp() };
    *sum = Sum { largest, total: sum.total * rescale + lanes.sum(total) };
    rescale
}

#[inline(always)]
fn scale<L: Lanes>(lanes: L, values: &mut [f32], factor: f32) {
    for values in values.chunks_exact_mut(L::COUNT) {
        lanes.store(lanes.mul(lanes.load(values), lanes.splat(factor)), values);
    }
}
