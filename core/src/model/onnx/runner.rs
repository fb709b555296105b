//! One sequence on a session: the KV cache stays where ONNX Runtime reads and writes it.

use std::sync::{Arc, PoisonError};

use ort::memory::Allocator;
use ort::session::IoBinding;
use ort::value::{DynValue, Tensor};

use super::Onnx;
use super::library::failed;
use super::provider::run_failed;
use super::session::Loaded;
use super::side_path::{OnnxLora, input_name};
use crate::lora::Target;
use crate::model::config::AttentionParams;
use crate::model::cpu::check_ids;
use crate::model::decoder::Decoder;
use crate::model::runner::{LogitRows, Runner};
use crate::{CancelToken, Error, Result};

/// Tokens per run of a prefill: enough rows for the matrix products, few enough to be cancelled soon.
const PREFILL_ROWS: usize = 128;
/// Rows per run where every row's logits are wanted: a vocabulary of 262,144 takes 1 MiB each.
const LOGIT_ROWS: usize = 32;
/// Tokens that a new cache has room for; it doubles when it is full.
const FIRST_ROOM: usize = 256;

/// A sequence of `decoder` for up to `capacity` tokens.
pub(super) fn runner(
    decoder: &Arc<Decoder<Onnx>>,
    capacity: usize,
    lora: Option<Arc<[OnnxLora]>>,
) -> Result<Box<dyn Runner>> {
    let sessions = decoder.backend.sessions()?;
    if !(1..=sessions.positions).contains(&capacity) {
        let reason = format!("{capacity} is not between 1 and the graph's {}", sessions.positions);
        return Err(Error::InvalidOption { option: "context_length", reason });
    }
    let loaded = sessions.of(decoder, lora.is_some())?;
    let binding = loaded.session.lock().unwrap_or_else(PoisonError::into_inner).create_binding().map_err(failed)?;
    let mut runner = OnnxRunner {
        loaded,
        binding,
        cache: Vec::new(),
        vocab_size: decoder.config.vocab_size,
        capacity,
        room: 0,
        len: 0,
        logits: Vec::new(),
        out: None,
    };
    let layers = decoder.config.attention.iter().enumerate();
    runner.cache =
        layers.flat_map(|(layer, params)| ["key", "value"].map(|kind| CacheTensor::new(layer, kind, params))).collect();
    runner.make_room(FIRST_ROOM.min(capacity))?;
    runner.bind_side_path(decoder, lora.as_deref())?;
    Ok(Box::new(runner))
}

struct OnnxRunner {
    loaded: Arc<Loaded>,
    binding: IoBinding,
    /// Keys, then values, of each layer.
    cache: Vec<CacheTensor>,
    /// Tokens that the cache has memory for.
    room: usize,
    vocab_size: usize,
    capacity: usize,
    len: usize,
    logits: Vec<f32>,
    /// Where a run's logits go, and for how many rows.
    out: Option<(usize, Tensor<f32>)>,
}

struct CacheTensor {
    past: String,
    present: String,
    head_count: usize,
    head_dim: usize,
    /// `[1, kv_heads, room, head_dim]`, bound as past and as present: attention appends in place.
    values: Option<Tensor<f32>>,
}

impl CacheTensor {
    fn new(layer: usize, kind: &str, params: &AttentionParams) -> Self {
        Self {
            past: format!("past_key_values.{layer}.{kind}"),
            present: format!("present.{layer}.{kind}"),
            head_count: params.kv_head_count,
            head_dim: params.head_dim,
            values: None,
        }
    }

    /// The first `len` tokens of each head.
    fn heads(&self, room: usize, len: usize) -> impl Iterator<Item = &[f32]> {
        let values = self.values.as_ref().map_or(&[][..], |values| values.extract_tensor().1);
        values.chunks_exact((room * self.head_dim).max(1)).map(move |head| &head[..len * self.head_dim])
    }

    fn heads_mut(&mut self, room: usize, len: usize) -> impl Iterator<Item = &mut [f32]> {
        let values = self.values.as_mut().map_or(&mut [][..], |values| values.extract_tensor_mut().1);
        let head_dim = self.head_dim;
        values.chunks_exact_mut((room * head_dim).max(1)).map(move |head| &mut head[..len * head_dim])
    }
}

impl OnnxRunner {
    /// Makes room for `tokens`, at least twice as much as there is, and keeps what is cached.
    fn make_room(&mut self, tokens: usize) -> Result<()> {
        if tokens <= self.room {
            return Ok(());
        }
        let (old, room) = (self.room, tokens.max(2 * self.room).min(self.capacity));
        let allocator = Allocator::default();
        for tensor in &mut self.cache {
            let shape = [1, tensor.head_count as i64, room as i64, tensor.head_dim as i64];
            let mut larger = CacheTensor {
                past: tensor.past.clone(),
                present: tensor.present.clone(),
                values: Some(Tensor::new(&allocator, shape).map_err(failed)?),
                ..*tensor
            };
            for (head, larger) in tensor.heads(old, self.len).zip(larger.heads_mut(room, self.len)) {
                larger.copy_from_slice(head);
            }
            let values = larger.values.as_mut().expect("just made");
            self.binding.bind_input(&*tensor.past, values).map_err(failed)?;
            self.binding.bind_output(&*tensor.present, &mut *values).map_err(failed)?;
            *tensor = larger;
        }
        self.room = room;
        Ok(())
    }

    /// Binds the pack's pairs; where there is none, the graph's own zeros stay.
    fn bind_side_path(&mut self, decoder: &Decoder<Onnx>, lora: Option<&[OnnxLora]>) -> Result<()> {
        let Some(lora) = lora else { return Ok(()) };
        let layers = decoder.config.layer_count();
        if lora.len() != layers {
            let target = format!("layer {} of a model of {layers} layers", lora.len().max(layers) - 1);
            return Err(Error::TargetMissing { target });
        }
        let (hidden, ffn) = (decoder.config.hidden_size, decoder.config.ffn_size);
        for (layer, lora) in lora.iter().enumerate() {
            for (pair, target) in lora.pairs.iter().zip(Target::ALL) {
                let Some(pair) = pair else { continue };
                let (rows, cols) = if target == Target::Down { (hidden, ffn) } else { (ffn, hidden) };
                let rank = pair[0].shape()[0] as usize;
                for ((part, values), expected) in ["a", "b"].into_iter().zip(pair).zip([[rank, cols], [rows, rank]]) {
                    let tensor = input_name(layer, target, part);
                    let actual: Vec<usize> = values.shape().iter().map(|extent| *extent as usize).collect();
                    if actual != expected {
                        return Err(Error::ShapeMismatch { tensor, expected: expected.to_vec(), actual });
                    }
                    self.binding.bind_input(tensor, values).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    /// Appends `ids`; the logits of the rows from `first` on are in `out` afterwards.
    fn step(&mut self, ids: &[u32], first: usize) -> Result<()> {
        let total = self.len + ids.len();
        self.make_room(total)?;
        let ids_value = integers(&[1, ids.len()], ids.iter().map(|id| i64::from(*id)).collect())?;
        let mask = integers(&[1, total], vec![1; total])?;
        let start = integers(&[1], vec![first as i64])?;
        for (name, value) in [("input_ids", &ids_value), ("attention_mask", &mask), ("logit_start", &start)] {
            self.binding.bind_input(name, value).map_err(failed)?;
        }
        let rows = ids.len() - first;
        if self.out.as_ref().is_none_or(|(bound, _)| *bound != rows) {
            let shape = [1, rows as i64, self.vocab_size as i64];
            let mut out = Tensor::new(&Allocator::default(), shape).map_err(failed)?;
            self.binding.bind_output("logits", &mut out).map_err(failed)?;
            self.out = Some((rows, out));
        }
        let mut session = self.loaded.session.lock().unwrap_or_else(PoisonError::into_inner);
        session.run_binding(&self.binding).map_err(|error| run_failed(&self.loaded.providers, error.message()))?;
        drop(session);
        self.len = total;
        Ok(())
    }

    fn run(&mut self, ids: &[u32], rows: LogitRows, cancel: &CancelToken) -> Result<()> {
        let step_rows = if rows == LogitRows::All { LOGIT_ROWS } else { PREFILL_ROWS };
        for step in ids.chunks(step_rows) {
            cancel.check()?;
            let first = if rows == LogitRows::All { 0 } else { step.len() - 1 };
            self.step(step, first)?;
            if rows == LogitRows::All {
                self.take_logits();
            }
        }
        if rows == LogitRows::Last && !ids.is_empty() {
            self.take_logits();
        }
        Ok(())
    }

    fn take_logits(&mut self) {
        if let Some((_, out)) = &self.out {
            self.logits.extend_from_slice(out.extract_tensor().1);
        }
    }
}

impl Runner for OnnxRunner {
    fn len(&self) -> usize {
        self.len
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn cache_size_bytes(&self) -> usize {
        let values: usize = self.cache.iter().map(|tensor| tensor.head_count * tensor.head_dim).sum();
        self.len * values * size_of::<f32>()
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn forward(&mut self, ids: &[u32], rows: LogitRows, cancel: &CancelToken) -> Result<&mut [f32]> {
        check_ids(ids, self.vocab_size)?;
        let before = self.len;
        let required = before + ids.len();
        if required > self.capacity {
            return Err(Error::ContextFull { required, available: self.capacity });
        }
        self.logits.clear();
        if let Err(error) = self.run(ids, rows, cancel) {
            // What the failed run appended lies beyond the length and is written over.
            self.len = before;
            self.logits.clear();
            return Err(error);
        }
        Ok(&mut self.logits)
    }

    fn write_state(&self, out: &mut Vec<u8>) -> Result<()> {
        for head in self.cache.iter().flat_map(|tensor| tensor.heads(self.room, self.len)) {
            out.extend(head.iter().flat_map(|value| value.to_le_bytes()));
        }
        Ok(())
    }

    fn read_state(&mut self, len: usize, state: &[u8]) -> Result<()> {
        let invalid = |reason: String| Error::InvalidPrefix { reason };
        if len > self.capacity {
            return Err(Error::ContextFull { required: len, available: self.capacity });
        }
        let per_token: usize = self.cache.iter().map(|tensor| tensor.head_count * tensor.head_dim).sum();
        let expected = len * per_token * size_of::<f32>();
        if state.len() != expected {
            return Err(invalid(format!("{} bytes of cache for {len} tokens, expected {expected}", state.len())));
        }
        let (values, _) = state.as_chunks::<4>();
        // Refused before anything is overwritten: one infinite value would turn all logits into NaN.
        if values.iter().any(|value| !f32::from_le_bytes(*value).is_finite()) {
            return Err(invalid("the cache holds a value that is not a number".to_owned()));
        }
        self.len = 0;
        self.make_room(len)?;
        let mut rest = values.iter().map(|value| f32::from_le_bytes(*value));
        let room = self.room;
        for head in self.cache.iter_mut().flat_map(|tensor| tensor.heads_mut(room, len)) {
            head.iter_mut().zip(&mut rest).for_each(|(place, value)| *place = value);
        }
        self.len = len;
        Ok(())
    }
}

fn integers(shape: &[usize], values: Vec<i64>) -> Result<DynValue> {
    Ok(Tensor::from_array((shape.to_vec(), values)).map_err(failed)?.into_dyn())
}
