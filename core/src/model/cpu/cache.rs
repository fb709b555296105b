use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::lanes::LANES_MAX;
use super::memory::HalfMemory;
use crate::model::backend::Sequence;
use crate::model::config::{AttentionParams, Rope};
use crate::{Error, Result};

/// Positions per block of cached keys.
pub(super) const KEY_BLOCK: usize = 32;

/// Keys and values of one layer, in f16, each head's apart so that a worker reads one run of memory.
pub(super) struct LayerCache {
    /// `[kv_head, block, head_dim, KEY_BLOCK]`: a vector holds one dimension of consecutive positions, so that
    /// scores need no sum across a vector.
    pub(super) keys: HalfMemory,
    /// `[kv_head, position, value_stride]`
    pub(super) values: HalfMemory,
    pub(super) kv_head_count: usize,
    pub(super) head_dim: usize,
    /// `head_dim`, padded with zeros to whole vectors.
    pub(super) value_stride: usize,
    /// Blocks of positions per head.
    pub(super) block_count: usize,
}

impl LayerCache {
    fn new(params: &AttentionParams, capacity: usize) -> Result<Self> {
        let (kv_head_count, head_dim) = (params.kv_head_count, params.head_dim);
        let block_count = capacity.div_ceil(KEY_BLOCK);
        let value_stride = head_dim.next_multiple_of(LANES_MAX);
        // Saturating: a size that overflows is one that the system refuses.
        let size = |width: usize| (kv_head_count * width).saturating_mul(block_count).saturating_mul(KEY_BLOCK);
        Ok(Self {
            keys: HalfMemory::zeroed(size(head_dim))?,
            values: HalfMemory::zeroed(size(value_stride))?,
            kv_head_count,
            head_dim,
            value_stride,
            block_count,
        })
    }

    /// `[head_dim, KEY_BLOCK]` blocks of one head.
    pub(super) fn key_blocks(&self, kv_head: usize) -> &[f16] {
        let size = self.block_count * self.head_dim * KEY_BLOCK;
        &self.keys.as_slice()[kv_head * size..][..size]
    }

    /// `[position, value_stride]` of one head.
    pub(super) fn value_rows(&self, kv_head: usize) -> &[f16] {
        let size = self.block_count * KEY_BLOCK * self.value_stride;
        &self.values.as_slice()[kv_head * size..][..size]
    }

    /// Halves that [`visit`](Self::visit) passes for `len` positions.
    fn state_len(&self, len: usize) -> usize {
        self.kv_head_count * (len.next_multiple_of(KEY_BLOCK) * self.head_dim + len * self.value_stride)
    }

    /// Every run of memory that holds the first `len` positions, head by head, keys then values.
    fn visit(&mut self, len: usize, mut run: impl FnMut(&mut [f16]) -> Result<()>) -> Result<()> {
        let key_size = self.block_count * self.head_dim * KEY_BLOCK;
        let value_size = self.block_count * KEY_BLOCK * self.value_stride;
        for head in 0..self.kv_head_count {
            let key_len = len.next_multiple_of(KEY_BLOCK) * self.head_dim;
            run(&mut self.keys.as_mut_slice()[head * key_size..][..key_len])?;
            run(&mut self.values.as_mut_slice()[head * value_size..][..len * self.value_stride])?;
        }
        Ok(())
    }
}

/// Cosines and sines of a rotation for consecutive positions.
pub(super) struct RopeTable {
    rope: Arc<Rope>,
    start: usize,
    /// `[rows, head_dim / 2]`
    pub(super) cos: Vec<f32>,
    /// `[rows, head_dim / 2]`
    pub(super) sin: Vec<f32>,
}

/// A sequence of the CPU backend.
pub struct CpuSequence {
    len: usize,
    capacity: usize,
    layers: Vec<LayerCache>,
    /// One per distinct rotation of the model's layers.
    ropes: Vec<RopeTable>,
}

impl CpuSequence {
    pub(super) fn new(layers: &[AttentionParams], capacity: usize) -> Result<Self> {
        let layers = layers.iter().map(|params| LayerCache::new(params, capacity)).collect::<Result<_>>()?;
        Ok(Self { len: 0, capacity, layers, ropes: Vec::new() })
    }

    /// The layer's cache, and its rotation for `rows` positions from the sequence's length.
    pub(super) fn layer(&mut self, layer: usize, rope: &Arc<Rope>, rows: usize) -> (&mut LayerCache, &RopeTable) {
        let start = self.len;
        let index = self.ropes.iter().position(|table| Arc::ptr_eq(&table.rope, rope)).unwrap_or_else(|| {
            self.ropes.push(RopeTable { rope: rope.clone(), start, cos: Vec::new(), sin: Vec::new() });
            self.ropes.len() - 1
        });
        let table = &mut self.ropes[index];
        let frequencies = &rope.inverse_frequencies;
        if table.start != start || table.cos.len() != rows * frequencies.len() {
            table.start = start;
            table.cos.clear();
            table.sin.clear();
            for position in start..start + rows {
                for frequency in frequencies {
                    let (sin, cos) = (position as f32 * frequency).sin_cos();
                    table.cos.push(cos);
                    table.sin.push(sin);
                }
            }
        }
        (&mut self.layers[layer], &self.ropes[index])
    }
}

impl Sequence for CpuSequence {
    fn len(&self) -> usize {
        self.len
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn size_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.kv_head_count * (layer.head_dim + layer.value_stride) * 2).sum()
    }

    fn advance(&mut self, rows: usize) {
        self.len += rows;
        debug_assert!(self.len <= self.capacity);
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn write_state(&self, out: &mut Vec<u8>) -> Result<()> {
        let len = self.len;
        out.reserve(self.layers.iter().map(|layer| layer.state_len(len) * 2).sum());
        for layer in &self.layers {
            for head in 0..layer.kv_head_count {
                let keys = &layer.key_blocks(head)[..len.next_multiple_of(KEY_BLOCK) * layer.head_dim];
                let values = &layer.value_rows(head)[..len * layer.value_stride];
                for half in keys.iter().chain(values) {
                    out.extend_from_slice(&half.to_le_bytes());
                }
            }
        }
        Ok(())
    }

    fn read_state(&mut self, len: usize, state: &[u8]) -> Result<()> {
        let invalid = |reason: String| Error::InvalidPrefix { reason };
        if len > self.capacity {
            return Err(Error::ContextFull { required: len, available: self.capacity });
        }
        let expected: usize = self.layers.iter().map(|layer| layer.state_len(len) * 2).sum();
        if state.len() != expected {
            return Err(invalid(format!("{} bytes of cache for {len} tokens, expected {expected}", state.len())));
        }
        // Refused before anything is overwritten: one infinite value would turn all logits into NaN.
        let (halves, _) = state.as_chunks::<2>();
        if halves.iter().any(|half| !f16::from_le_bytes(*half).is_finite()) {
            return Err(invalid("the cache holds a value that is not a number".to_owned()));
        }
        self.len = 0;
        let mut rest = halves;
        for layer in &mut self.layers {
            layer.visit(len, |run| {
                let (part, after) = rest.split_at(run.len());
                run.iter_mut().zip(part).for_each(|(half, bytes)| *half = f16::from_le_bytes(*bytes));
                rest = after;
                Ok(())
            })?;
        }
        self.len = len;
        Ok(())
    }
}

/// Writes the key of `position` into its block.
///
/// # Safety
/// `blocks` are one head's key blocks, and no one else uses this position's places.
pub(super) unsafe fn write_key(blocks: *mut f16, position: usize, key: &[f32]) {
    let block = position / KEY_BLOCK * key.len() * KEY_BLOCK + position % KEY_BLOCK;
    let mut halves = [f16::ZERO; LANES_MAX];
    for (index, values) in key.chunks(LANES_MAX).enumerate() {
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        for (offset, half) in halves.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *blocks.add(block + (index * LANES_MAX + offset) * KEY_BLOCK) = *half };
        }
    }
}
