use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::model::backend::Sequence;
use crate::model::config::{AttentionParams, Rope};
use crate::{Error, Result};

/// Tokens that the first allocation of a cache holds; it doubles from there.
const FIRST_CAPACITY: usize = 256;

/// Keys and values of one layer, `[kv_head, capacity, head_dim]` each in f32; absent before the first token.
struct LayerCache {
    kv_head_count: usize,
    head_dim: usize,
    keys_values: Option<[Tensor; 2]>,
}

/// A rotation's cosines and sines for consecutive positions, `[rows, 1, head_dim / 2]`.
struct Rotation {
    rope: Arc<Rope>,
    start: usize,
    rows: usize,
    cos: Tensor,
    sin: Tensor,
}

/// A sequence of the candle backend.
pub struct CandleSequence {
    len: usize,
    capacity: usize,
    device: Device,
    layers: Vec<LayerCache>,
    /// One per distinct rotation of the model's layers.
    rotations: Vec<Rotation>,
}

impl CandleSequence {
    pub(super) fn new(layers: &[AttentionParams], capacity: usize, device: Device) -> Self {
        let layer = |params: &AttentionParams| LayerCache {
            kv_head_count: params.kv_head_count,
            head_dim: params.head_dim,
            keys_values: None,
        };
        Self { len: 0, capacity, device, layers: layers.iter().map(layer).collect(), rotations: Vec::new() }
    }

    /// Cosines and sines for `rows` positions from the sequence's length.
    pub(super) fn rotation(&mut self, rope: &Arc<Rope>, rows: usize) -> Result<(Tensor, Tensor)> {
        let start = self.len;
        let known = self.rotations.iter().position(|rotation| Arc::ptr_eq(&rotation.rope, rope));
        if let Some(rotation) = known.map(|index| &self.rotations[index])
            && (rotation.start, rotation.rows) == (start, rows)
        {
            return Ok((rotation.cos.clone(), rotation.sin.clone()));
        }
        let frequencies = &rope.inverse_frequencies;
        let angles = (start..start + rows).flat_map(|position| frequencies.iter().map(move |f| position as f32 * f));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        let shape = (rows, 1, frequencies.len());
        let cos = Tensor::from_vec(cos, shape, &self.device)?;
        let sin = Tensor::from_vec(sin, shape, &self.device)?;
        if let Some(index) = known {
            self.rotations.swap_remove(index);
        }
        self.rotations.push(Rotation { rope: rope.clone(), start, rows, cos: cos.clone(), sin: sin.clone() });
        Ok((cos, sin))
    }

    /// Appends `[kv_head, rows, head_dim]` after the cached tokens; all from position `first` on, as a view.
    pub(super) fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor, first: usize) -> Result<(Tensor, Tensor)> {
        let end = self.len + k.dim(1)?;
        let [keys, values] = self.layers[layer].reserve(self.len, end, self.capacity, &self.device)?;
        keys.slice_set(k, 1, self.len)?;
        values.slice_set(v, 1, self.len)?;
        Ok((keys.narrow(1, first, end - first)?, values.narrow(1, first, end - first)?))
    }
}

impl LayerCache {
    /// Tensors with room for `end` tokens that hold the first `len`.
    fn reserve(&mut self, len: usize, end: usize, limit: usize, device: &Device) -> Result<&[Tensor; 2]> {
        let room = self.keys_values.as_ref().map_or(0, |[keys, _]| keys.dims()[1]);
        if room < end {
            let capacity = end.max(room * 2).max(FIRST_CAPACITY).min(limit.max(end));
            let grow = |old: Option<&Tensor>| -> Result<Tensor> {
                let new = Tensor::zeros((self.kv_head_count, capacity, self.head_dim), DType::F32, device)?;
                if let Some(old) = old
                    && len > 0
                {
                    new.slice_set(&old.narrow(1, 0, len)?.contiguous()?, 1, 0)?;
                }
                Ok(new)
            };
            let old = self.keys_values.as_ref();
            self.keys_values = Some([grow(old.map(|[keys, _]| keys))?, grow(old.map(|[_, values]| values))?]);
        }
        Ok(self.keys_values.as_ref().expect("room for at least one token"))
    }

    fn token_len(&self) -> usize {
        self.kv_head_count * self.head_dim
    }
}

impl Sequence for CandleSequence {
    fn len(&self) -> usize {
        self.len
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn size_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.token_len() * 2 * size_of::<f32>()).sum()
    }

    fn advance(&mut self, rows: usize) {
        self.len += rows;
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn write_state(&self, out: &mut Vec<u8>) -> Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        for tensor in self.layers.iter().filter_map(|layer| layer.keys_values.as_ref()).flatten() {
            let values: Vec<f32> = tensor.narrow(1, 0, self.len)?.flatten_all()?.to_vec1()?;
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Ok(())
    }

    fn read_state(&mut self, len: usize, state: &[u8]) -> Result<()> {
        let invalid = |reason: String| Error::InvalidPrefix { reason };
        if len > self.capacity {
            return Err(Error::ContextFull { required: len, available: self.capacity });
        }
        let expected = len * self.size_bytes();
        if state.len() != expected {
            return Err(invalid(format!("{} bytes of cache for {len} tokens, expected {expected}", state.len())));
        }
        let (values, _) = state.as_chunks::<4>();
        // Refused before anything is overwritten: one infinite value would turn all logits into NaN.
        if values.iter().any(|value| !f32::from_le_bytes(*value).is_finite()) {
            return Err(invalid("the cache holds a value that is not a number".to_owned()));
        }
        self.len = 0;
        if len == 0 {
            return Ok(());
        }
        let mut rest = values;
        for layer in &mut self.layers {
            let shape = (layer.kv_head_count, len, layer.head_dim);
            let size = len * layer.token_len();
            for tensor in layer.reserve(0, len, self.capacity, &self.device)? {
                let (part, after) = rest.split_at(size);
                let part = part.iter().map(|value| f32::from_le_bytes(*value)).collect();
                tensor.slice_set(&Tensor::from_vec(part, shape, &self.device)?, 1, 0)?;
                rest = after;
            }
        }
        self.len = len;
        Ok(())
    }
}
