use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::lanes::LANES_MAX;
use super::memory::{CacheMemory, Plain};
use crate::model::backend::Sequence;
use crate::model::config::{AttentionParams, Rope};
use crate::{Error, Result};

/// Positions per block of cached keys.
pub(super) const KEY_BLOCK: usize = 32;

/// Dimensions of a head that share a scale in an 8-bit cache.
pub(super) const SCALE_GROUP: usize = 32;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvType {
    /// Two bytes each.
    #[default]
    F16,
    /// A byte each, and an f16 scale for every 32: 53% of the memory.
    Q8,
}

impl KvType {
    /// `f16` or `q8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }
}

/// Sizes of a layer's cache.
#[derive(Clone, Copy)]
pub(super) struct CacheShape {
    pub(super) kv_type: KvType,
    pub(super) kv_head_count: usize,
    pub(super) head_dim: usize,
    /// `head_dim`, padded with zeros to whole vectors.
    pub(super) value_stride: usize,
    /// Blocks of positions per head.
    block_count: usize,
}

/// A layer's four memories.
#[derive(Clone, Copy)]
enum Part {
    Keys,
    Values,
    KeyScales,
    ValueScales,
}

impl CacheShape {
    const PARTS: [Part; 4] = [Part::Keys, Part::Values, Part::KeyScales, Part::ValueScales];

    /// Scales per head and position of an 8-bit cache, for keys and again for values.
    pub(super) fn group_count(&self) -> usize {
        self.head_dim.div_ceil(SCALE_GROUP)
    }

    /// Bytes of one position of one head.
    fn width(&self, part: Part) -> usize {
        let (code, scale) = match self.kv_type {
            KvType::F16 => (2, 0),
            KvType::Q8 => (1, 2),
        };
        match part {
            Part::Keys => self.head_dim * code,
            Part::Values => self.value_stride * code,
            Part::KeyScales | Part::ValueScales => self.group_count() * scale,
        }
    }

    /// Bytes of one head.
    fn head_bytes(&self, part: Part) -> usize {
        // Saturating: a size that overflows is one that the system refuses.
        self.width(part).saturating_mul(self.block_count).saturating_mul(KEY_BLOCK)
    }

    /// Bytes of one head, from its first, that hold the first `len` positions.
    fn used_bytes(&self, part: Part, len: usize) -> usize {
        // Only values lie position by position; the rest is written in whole blocks.
        self.width(part) * if matches!(part, Part::Values) { len } else { len.next_multiple_of(KEY_BLOCK) }
    }

    /// Whether the part holds f16, of which some are no numbers.
    fn is_f16(&self, part: Part) -> bool {
        self.kv_type == KvType::F16 || matches!(part, Part::KeyScales | Part::ValueScales)
    }

    /// Every run of memory that holds the first `len` positions, head by head.
    fn runs(self, len: usize) -> impl Iterator<Item = (Part, Range<usize>)> {
        let run = move |head: usize, part| {
            let start = head * self.head_bytes(part);
            (part, start..start + self.used_bytes(part, len))
        };
        (0..self.kv_head_count).flat_map(move |head| Self::PARTS.map(|part| run(head, part)))
    }

    /// Bytes of [`runs`](Self::runs).
    fn state_bytes(&self, len: usize) -> usize {
        self.kv_head_count * Self::PARTS.iter().map(|part| self.used_bytes(*part, len)).sum::<usize>()
    }
}

/// Keys and values of one layer, each head's apart so that a worker reads one run of memory.
pub(super) struct LayerCache {
    pub(super) shape: CacheShape,
    /// As [`Part`]s:
    /// keys `[kv_head, block, head_dim, KEY_BLOCK]`: a vector holds one dimension of consecutive positions, so that scores need
    /// no sum across a vector; values `[kv_head, position, value_stride]`; the scales of each, in an 8-bit cache,
    /// `[kv_head, block, group, KEY_BLOCK]`.
    memories: [CacheMemory; 4],
}

impl LayerCache {
    fn new(params: &AttentionParams, capacity: usize, kv_type: KvType) -> Result<Self> {
        let shape = CacheShape {
            kv_type,
            kv_head_count: params.kv_head_count,
            head_dim: params.head_dim,
            value_stride: params.head_dim.next_multiple_of(LANES_MAX),
            block_count: capacity.div_ceil(KEY_BLOCK),
        };
        let memory = |part| CacheMemory::zeroed(shape.head_bytes(part).saturating_mul(shape.kv_head_count));
        let [keys, values, key_scales, value_scales] = CacheShape::PARTS.map(memory);
        Ok(Self { shape, memories: [keys?, values?, key_scales?, value_scales?] })
    }

    /// One head's part of a memory.
    fn head<T: Plain>(&self, part: Part, kv_head: usize) -> &[T] {
        let len = self.shape.head_bytes(part) / size_of::<T>();
        &self.memories[part as usize].as_slice()[kv_head * len..][..len]
    }

    /// Keys and values of one head of an f16 cache.
    pub(super) fn halves(&self, kv_head: usize) -> [&[f16]; 2] {
        [Part::Keys, Part::Values].map(|part| self.head(part, kv_head))
    }

    /// Codes of keys and values of one head of an 8-bit cache, and their scales.
    pub(super) fn codes(&self, kv_head: usize) -> ([&[i8]; 2], [&[f16]; 2]) {
        (
            [Part::Keys, Part::Values].map(|part| self.head(part, kv_head)),
            [Part::KeyScales, Part::ValueScales].map(|part| self.head(part, kv_head)),
        )
    }

    pub(super) fn places(&mut self) -> Places<'_> {
        let memories = self.memories.each_mut().map(|memory| memory.bytes_mut().as_mut_ptr());
        Places { shape: self.shape, memories, cache: PhantomData }
    }
}

/// Where threads write new positions of a layer's cache, each thread its own.
pub(super) struct Places<'a> {
    shape: CacheShape,
    memories: [*mut u8; 4],
    cache: PhantomData<&'a mut LayerCache>,
}

// SAFETY: `write` has its callers promise that no two write the same position.
unsafe impl Sync for Places<'_> {}

impl Places<'_> {
    /// Writes one head's key and value.
    ///
    /// # Safety
    /// The cache has room for `position`, and no one else uses it meanwhile.
    pub(super) unsafe fn write(&self, kv_head: usize, position: usize, key: &[f32], value: &[f32]) {
        let (block, place) = (position / KEY_BLOCK, position % KEY_BLOCK);
        let shape = &self.shape;
        debug_assert!(kv_head < shape.kv_head_count && block < shape.block_count && key.len() == shape.head_dim);
        let head = |part: Part| self.memories[part as usize].wrapping_add(kv_head * shape.head_bytes(part));
        let key_start = block * shape.head_dim * KEY_BLOCK + place;
        let value_start = position * shape.value_stride;
        match shape.kv_type {
            KvType::F16 => {
                let (keys, values) = (head(Part::Keys).cast::<f16>(), head(Part::Values).cast::<f16>());
                let mut halves = [f16::ZERO; SCALE_GROUP];
                for (group, key) in key.chunks(SCALE_GROUP).enumerate() {
                    let halves = &mut halves[..key.len()];
                    halves.convert_from_f32_slice(key);
                    for (offset, half) in halves.iter().enumerate() {
                        // SAFETY: the place is in the cache: the caller's promise.
                        unsafe { *keys.add(key_start + (group * SCALE_GROUP + offset) * KEY_BLOCK) = *half };
                    }
                }
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts_mut(values.add(value_start), value.len()) }
                    .convert_from_f32_slice(value);
            }
            KvType::Q8 => {
                let (keys, values) = (head(Part::Keys).cast::<i8>(), head(Part::Values).cast::<i8>());
                let scales = [Part::KeyScales, Part::ValueScales].map(|part| head(part).cast::<f16>());
                let mut codes = [0; SCALE_GROUP];
                for group in 0..shape.group_count() {
                    let dims = group * SCALE_GROUP..shape.head_dim.min((group + 1) * SCALE_GROUP);
                    let scale_at = (block * shape.group_count() + group) * KEY_BLOCK + place;
                    let codes = &mut codes[..dims.len()];
                    // SAFETY: as above, for each place of this group.
                    unsafe {
                        *scales[0].add(scale_at) = quantize(&key[dims.clone()], codes);
                        for (dim, code) in dims.clone().zip(&*codes) {
                            *keys.add(key_start + dim * KEY_BLOCK) = *code;
                        }
                        let values = std::slice::from_raw_parts_mut(values.add(value_start + dims.start), dims.len());
                        *scales[1].add(scale_at) = quantize(&value[dims], values);
                    }
                }
            }
        }
    }
}

/// Codes from -127 to 127 and their scale.
fn quantize(values: &[f32], codes: &mut [i8]) -> f16 {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = f16::from_f32(largest / 127.0);
    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    scale
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
    pub(super) fn new(layers: &[AttentionParams], capacity: usize, kv_type: KvType) -> Result<Self> {
        let layers = layers.iter().map(|params| LayerCache::new(params, capacity, kv_type)).collect::<Result<_>>()?;
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
        let width = |shape: CacheShape| CacheShape::PARTS.iter().map(|part| shape.width(*part)).sum::<usize>();
        self.layers.iter().map(|layer| layer.shape.kv_head_count * width(layer.shape)).sum()
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
        out.reserve(self.layers.iter().map(|layer| layer.shape.state_bytes(len)).sum());
        // As it lies in memory: every CPU with kernels here is little-endian.
        for layer in &self.layers {
            layer.shape.runs(len).for_each(|(part, run)| out.extend(&layer.memories[part as usize].bytes()[run]));
        }
        Ok(())
    }

    fn read_state(&mut self, len: usize, state: &[u8]) -> Result<()> {
        let invalid = |reason: String| Error::InvalidPrefix { reason };
        if len > self.capacity {
            return Err(Error::ContextFull { required: len, available: self.capacity });
        }
        let expected: usize = self.layers.iter().map(|layer| layer.shape.state_bytes(len)).sum();
        if state.len() != expected {
            return Err(invalid(format!("{} bytes of cache for {len} tokens, expected {expected}", state.len())));
        }
        // Refused before anything is overwritten: one infinite value would turn all logits into NaN.
        let mut rest = state;
        for shape in self.layers.iter().map(|layer| layer.shape) {
            for (part, run) in shape.runs(len) {
                let bytes = rest.split_off(..run.len()).expect("the sizes were compared");
                let (halves, _) = bytes.as_chunks::<2>();
                if shape.is_f16(part) && halves.iter().any(|half| !f16::from_le_bytes(*half).is_finite()) {
                    return Err(invalid("the cache holds a value that is not a number".to_owned()));
                }
            }
        }
        self.len = 0;
        let mut rest = state;
        for layer in &mut self.layers {
            for (part, run) in layer.shape.runs(len) {
                let bytes = rest.split_off(..run.len()).expect("the sizes were compared");
                layer.memories[part as usize].bytes_mut()[run].copy_from_slice(bytes);
            }
        }
        self.len = len;
        Ok(())
    }
}
