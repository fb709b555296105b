//! One sequence on a session: inputs, KV cache and logits stay where ONNX Runtime reads and writes them.

use std::ptr;
use std::sync::{Arc, PoisonError};

use half::f16;
use ort::AsPointer;
use ort::memory::Allocator;
use ort::session::{IoBinding, Session};
use ort::value::{Tensor, TensorElementType};

use super::cache::{self, Cache};
use super::input::Input;
use super::library::failed;
use super::provider::run_failed;
use super::session::Loaded;
use super::side_path::{OnnxLora, PLACE, PairInputs, Place, input_name, tensor};
use super::wiring::{Integers, LOGIT_START, RowsWithLogits};
use crate::lora::Target;
use crate::model::cpu::check_ids;
use crate::model::runner::{LogitRows, Runner};
use crate::{CancelToken, Error, Result};

/// Tokens per run of a prefill: enough rows for the matrix products, few enough to be cancelled soon.
const PREFILL_ROWS: usize = 128;
/// Rows per run where every row's logits are wanted: a vocabulary of 262,144 takes 1 MiB each.
const LOGIT_ROWS: usize = 32;

/// Runs in which a pack's tensors are put where tokens read them fastest.
const STEPS_TO_KEEP: usize = 8;

/// A sequence on a session.
pub(super) struct OnnxRunner {
    loaded: Arc<Loaded>,
    binding: IoBinding,
    ids: Input,
    mask: Option<Input>,
    positions: Option<Input>,
    logit_start: Option<Input>,
    cache: Box<dyn Cache>,
    /// Where the pairs are, if the graph asks for that.
    place: Option<Tensor<i64>>,
    /// The pairs that are bound: their memory is read by every run. Two while others take their place.
    bound: Vec<Arc<[OnnxLora]>>,
    /// Layers of which the tensors that are bound are where tokens read them fastest.
    kept_layers: usize,
    capacity: usize,
    len: usize,
    logits: Vec<f32>,
    /// Where a run's logits go, and for how many rows.
    out: Option<(usize, Logits)>,
}

enum Logits {
    F32(Tensor<f32>),
    F16(Tensor<f16>),
}

impl OnnxRunner {
    /// A sequence for up to `capacity` tokens.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a capacity the graph is not for; those of [`put_in`](Self::put_in).
    pub(super) fn new(loaded: Arc<Loaded>, capacity: usize, lora: Option<Arc<[OnnxLora]>>) -> Result<Self> {
        let wiring = &loaded.wiring;
        if !(1..=wiring.positions_max).contains(&capacity) {
            let reason = format!("{capacity} is not between 1 and the graph's {}", wiring.positions_max);
            return Err(Error::InvalidOption { option: "context_length", reason });
        }
        let binding = loaded.session.lock().unwrap_or_else(PoisonError::into_inner).create_binding().map_err(failed)?;
        let start = || Integers { name: LOGIT_START.to_owned(), element: TensorElementType::Int64 };
        let mut runner = Self {
            binding,
            ids: Input::new(&wiring.ids),
            mask: wiring.mask.as_ref().map(Input::new),
            positions: wiring.positions.as_ref().map(Input::new),
            logit_start: (wiring.logit_rows == RowsWithLogits::FromStart).then(|| Input::new(&start())),
            cache: cache::cache(wiring, capacity),
            place: None,
            bound: Vec::new(),
            kept_layers: 0,
            capacity,
            len: 0,
            logits: Vec::new(),
            out: None,
            loaded,
        };
        let wiring = &runner.loaded.wiring;
        if wiring.pair_inputs == PairInputs::Place && wiring.has_side_path() {
            let nowhere = Place::default();
            let place = Tensor::from_array(([nowhere.len()], nowhere.to_vec())).map_err(failed)?;
            runner.binding.bind_input(PLACE, &place).map_err(failed)?;
            runner.place = Some(place);
        }
        runner.put_in(lora)?;
        Ok(runner)
    }

    /// Whether this sequence runs on `loaded`.
    pub(super) fn is_on(&self, loaded: &Arc<Loaded>) -> bool {
        Arc::ptr_eq(&self.loaded, loaded)
    }

    /// Goes on with the pairs of `lora`, or without any, with an empty cache.
    ///
    /// # Errors
    /// [`Error::TargetMissing`], [`Error::PackNeedsInput`], [`Error::ShapeMismatch`] for pairs the graph has no inputs for.
    pub(super) fn put_in(&mut self, lora: Option<Arc<[OnnxLora]>>) -> Result<()> {
        self.len = 0;
        if lora.is_none() && self.bound.is_empty() {
            return Ok(());
        }
        if let Some(lora) = &lora {
            self.loaded.wiring.check_side_path(lora.iter().map(OnnxLora::pairs))?;
        }
        let replaced = self.bound.len();
        self.bound.extend(lora.clone());
        if let Some(place) = &mut self.place {
            let (address, count) = lora.as_ref().map_or((0, 0), |lora| (lora.as_ptr().expose_provenance(), lora.len()));
            place.extract_tensor_mut().1.copy_from_slice(&[address as i64, count as i64]);
        } else {
            for layer in 0..self.loaded.wiring.side_path.len() {
                self.bind_pairs(layer, lora.as_ref().map(|lora| &lora[layer]), replaced > 0)?;
            }
        }
        self.bound.drain(..replaced);
        self.kept_layers = lora.map_or(0, |lora| lora.iter().take_while(|layer| layer.is_kept()).count());
        Ok(())
    }

    /// Binds a layer's pairs, which are checked and in `bound`, as tensors; `replaces` others.
    fn bind_pairs(&mut self, layer: usize, lora: Option<&OnnxLora>, replaces: bool) -> Result<()> {
        let shapes = self.loaded.wiring.side_path[layer];
        for (target, shape) in Target::ALL.into_iter().zip(shapes) {
            let [a, b] = match (lora.and_then(|lora| lora.factors(target)), shape) {
                (Some([a, b]), _) => [tensor(a)?, tensor(b)?],
                (None, Some([rows, cols])) if replaces => zeros(rows, cols)?,
                // The graph's own zeros are there until something else is bound.
                _ => continue,
            };
            for (part, values) in [("a", a), ("b", b)] {
                self.binding.bind_input(input_name(layer, target, part), &values).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Puts the tensors of some layers where tokens read them fastest: with all of a pack's, a switch to it would wait for that.
    fn keep_tensors(&mut self) -> Result<()> {
        if self.place.is_some() {
            return Ok(());
        }
        let Some(lora) = self.bound.last().filter(|lora| self.kept_layers < lora.len()).cloned() else { return Ok(()) };
        let layers = self.kept_layers..lora.len().min(self.kept_layers + lora.len().div_ceil(STEPS_TO_KEEP));
        self.kept_layers = layers.end;
        for layer in layers {
            lora[layer].keep();
            self.bind_pairs(layer, Some(&lora[layer]), true)?;
        }
        Ok(())
    }

    /// Appends `ids`; the logits of the rows from `first` on are in `out` afterwards, or of all or the last, as the graph
    /// gives them.
    fn step(&mut self, ids: &[u32], first: usize) -> Result<()> {
        let (len, total) = (self.len, self.len + ids.len());
        self.keep_tensors()?;
        let binding = &mut self.binding;
        self.cache.make_room(len, total, binding)?;
        self.ids.set(&[1, ids.len()], ids.iter().map(|id| *id as usize), binding)?;
        if let Some(mask) = &mut self.mask {
            // As wide as the cache: a shape that stays the same lets ONNX Runtime keep its plan of the memory.
            let room = self.cache.room().max(total);
            mask.set(&[1, room], (0..room).map(|place| usize::from(place < total)), binding)?;
        }
        if let Some(positions) = &mut self.positions {
            positions.set(&[1, ids.len()], len..total, binding)?;
        }
        if let Some(start) = &mut self.logit_start {
            start.set(&[1], std::iter::once(first), binding)?;
        }
        let rows = match self.loaded.wiring.logit_rows {
            RowsWithLogits::FromStart => ids.len() - first,
            RowsWithLogits::All => ids.len(),
            RowsWithLogits::Last => 1,
        };
        if self.out.as_ref().is_none_or(|(bound, _)| *bound != rows) {
            self.bind_logits(rows)?;
        }
        let mut session = self.loaded.session.lock().unwrap_or_else(PoisonError::into_inner);
        run_bound(&mut session, &self.binding).map_err(|error| run_failed(&self.loaded.providers, error.message()))?;
        drop(session);
        self.cache.finish(total);
        self.len = total;
        Ok(())
    }

    fn bind_logits(&mut self, rows: usize) -> Result<()> {
        let wiring = &self.loaded.wiring;
        let (allocator, shape) = (Allocator::default(), [1, rows as i64, wiring.vocab_size as i64]);
        let out = if wiring.logits_type == TensorElementType::Float16 {
            let mut out = Tensor::new(&allocator, shape).map_err(failed)?;
            self.binding.bind_output(&*wiring.logits, &mut out).map_err(failed)?;
            Logits::F16(out)
        } else {
            let mut out = Tensor::new(&allocator, shape).map_err(failed)?;
            self.binding.bind_output(&*wiring.logits, &mut out).map_err(failed)?;
            Logits::F32(out)
        };
        self.out = Some((rows, out));
        Ok(())
    }

    fn run(&mut self, ids: &[u32], rows: LogitRows, cancel: &CancelToken) -> Result<()> {
        let gives = self.loaded.wiring.logit_rows;
        let step_rows = match (rows, gives) {
            (LogitRows::All, RowsWithLogits::Last) => 1,
            (LogitRows::All, _) | (_, RowsWithLogits::All) => LOGIT_ROWS,
            _ => PREFILL_ROWS,
        };
        for step in ids.chunks(step_rows) {
            cancel.check()?;
            let first = if rows == LogitRows::All { 0 } else { step.len() - 1 };
            self.step(step, first)?;
            if rows == LogitRows::All {
                self.take_logits(step.len());
            }
        }
        Ok(())
    }

    /// The logits of the last row, where they are if that is possible.
    fn last_logits(&mut self) -> &mut [f32] {
        if let Some((_, Logits::F16(_))) = &self.out {
            self.take_logits(1);
        }
        match &mut self.out {
            Some((_, Logits::F32(out))) => {
                let values = out.extract_tensor_mut().1;
                let skipped = values.len() - self.loaded.wiring.vocab_size;
                &mut values[skipped..]
            }
            _ => &mut self.logits,
        }
    }

    /// Appends the logits of the last `rows` rows.
    fn take_logits(&mut self, rows: usize) {
        let Some((given, out)) = &self.out else { return };
        let skipped = (given - rows) * self.loaded.wiring.vocab_size;
        match out {
            Logits::F32(out) => self.logits.extend_from_slice(&out.extract_tensor().1[skipped..]),
            Logits::F16(out) => {
                self.logits.extend(out.extract_tensor().1[skipped..].iter().map(|value| value.to_f32()));
            }
        }
    }
}

/// A pair that adds nothing.
fn zeros(rows: usize, cols: usize) -> Result<[Tensor<f32>; 2]> {
    let tensor = |shape: [usize; 2]| Tensor::from_array((shape, vec![0.0; shape[0] * shape[1]])).map_err(failed);
    Ok([tensor([1, cols])?, tensor([rows, 1])?])
}

/// Runs what is bound. [`Session::run_binding`] does the same and then asks for type, shape and allocator of every output, two
/// per layer, at each token.
fn run_bound(session: &mut Session, binding: &IoBinding) -> ort::Result<()> {
    let session = session.ptr_mut();
    // SAFETY: both are alive, and the binding is of this session. `RunWithBinding` must not run twice at once on a binding:
    // each sequence has its own, borrowed mutably by the step.
    ort::ortsys![@ort: unsafe RunWithBinding(session, ptr::null(), binding.ptr()) as Result]
}

impl Runner for OnnxRunner {
    fn len(&self) -> usize {
        self.len
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn cache_size_bytes(&self) -> usize {
        self.cache.size_bytes(self.len)
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn forward(&mut self, ids: &[u32], rows: LogitRows, cancel: &CancelToken) -> Result<&mut [f32]> {
        check_ids(ids, self.loaded.wiring.vocab_size)?;
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
        if rows == LogitRows::Last && !ids.is_empty() {
            return Ok(self.last_logits());
        }
        Ok(&mut self.logits)
    }

    fn write_state(&self, out: &mut Vec<u8>) -> Result<()> {
        self.cache.write(self.len, out);
        Ok(())
    }

    fn read_state(&mut self, len: usize, state: &[u8]) -> Result<()> {
        if len > self.capacity {
            return Err(Error::ContextFull { required: len, available: self.capacity });
        }
        self.cache.read(len, state, &mut self.binding)?;
        self.len = len;
        Ok(())
    }
}
