use std::any::Any;
use std::sync::Arc;

use super::backend::{Backend, Sequence};
use super::decoder::Decoder;
use crate::{CancelToken, Error, Result};

/// Which rows of a forward pass get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// Only fill the KV cache.
    None,
    /// The last token's.
    Last,
    /// Every token's.
    All,
}

/// One sequence on one model, whatever computes it: what a session drives.
pub trait Runner: Send + Any {
    /// Tokens in the KV cache.
    fn len(&self) -> usize;

    /// Whether the KV cache is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most tokens the KV cache can hold.
    fn capacity(&self) -> usize;

    /// Bytes the cached keys and values take.
    fn cache_size_bytes(&self) -> usize;

    /// Forgets all but the first `len` tokens.
    fn truncate(&mut self, len: usize);

    /// Appends `ids` and computes their logits, row-major `[rows, vocab]`; empty for [`LogitRows::None`].
    ///
    /// # Errors
    /// [`Error::ContextFull`], [`Error::Cancelled`]; the
    /// sequence is then as before.
    fn forward(&mut self, ids: &[u32], rows: LogitRows, cancel: &CancelToken) -> Result<&mut [f32]>;

    /// Appends the KV cache to `out`, in this backend's layout.
    fn write_state(&self, out: &mut Vec<u8>) -> Result<()>;

    /// Restores what [`write_state`](Self::write_state) wrote for `len` tokens. The bytes are untrusted.
    fn read_state(&mut self, len: usize, state: &[u8]) -> Result<()>;
}

/// Tokens per step of a prefill: enough rows for the matrix products, few enough for the buffers to stay small and
/// for a cancellation between steps.
const PREFILL_ROWS: usize = 256;
/// Rows per step where every row's logits are wanted: a vocabulary of 262,144 takes 1 MiB each.
const LOGIT_ROWS: usize = 32;

/// A [`Decoder`] with one sequence and, if a pack is in use, its side path.
pub struct DecoderRunner<B: Backend> {
    decoder: Arc<Decoder<B>>,
    sequence: B::Sequence,
    lora: Option<Arc<[B::Lora]>>,
    logits: Vec<f32>,
    /// One step of `logits`.
    step: Vec<f32>,
}

impl<B: Backend> DecoderRunner<B> {
    /// An empty sequence for up to `capacity` tokens.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if `capacity` is zero or more than memory allows; [`Error::TargetMissing`] if `lora` has
    /// not one entry per layer.
    pub fn new(decoder: Arc<Decoder<B>>, capacity: usize, lora: Option<Arc<[B::Lora]>>) -> Result<Self> {
        if capacity == 0 {
            return Err(Error::InvalidOption { option: "context_length", reason: "is zero".to_owned() });
        }
        let layers = decoder.config.layer_count();
        if let Some(lora) = &lora
            && lora.len() != layers
        {
            let target = format!("layer {} of a model of {layers} layers", lora.len().max(layers) - 1);
            return Err(Error::TargetMissing { target });
        }
        let sequence = decoder.backend.sequence(&decoder.config.attention, capacity)?;
        Ok(Self { decoder, sequence, lora, logits: Vec::new(), step: Vec::new() })
    }

    /// The model.
    pub fn decoder(&self) -> &Arc<Decoder<B>> {
        &self.decoder
    }

    /// Goes on as another model of the same base, from an empty sequence. The cache's memory stays: fresh memory would
    /// cost the next tokens more than the change itself.
    pub fn change_model(&mut self, decoder: Arc<Decoder<B>>, lora: Option<Arc<[B::Lora]>>) {
        debug_assert_eq!(decoder.config.layer_count(), self.decoder.config.layer_count());
        self.sequence.truncate(0);
        (self.decoder, self.lora) = (decoder, lora);
    }

    fn run(&mut self, ids: &[u32], rows: LogitRows, cancel: &CancelToken) -> Result<()> {
        let Self { decoder, sequence, lora, logits, step } = self;
        let lora = lora.as_deref();
        let mut done = 0;
        for ids_step in ids.chunks(PREFILL_ROWS) {
            let h = decoder.hidden(decoder.embed(ids_step)?, sequence, lora, cancel)?;
            done += ids_step.len();
            match rows {
                LogitRows::Last if done == ids.len() => {
                    let last = decoder.backend.rows(&h, ids_step.len() - 1..ids_step.len())?;
                    decoder.backend.read(&decoder.logits(&last)?, logits)?;
                }
                LogitRows::All => {
                    for first in (0..ids_step.len()).step_by(LOGIT_ROWS) {
                        cancel.check()?;
                        let h = decoder.backend.rows(&h, first..(first + LOGIT_ROWS).min(ids_step.len()))?;
                        decoder.backend.read(&decoder.logits(&h)?, step)?;
                        logits.extend_from_slice(step);
                    }
                }
                LogitRows::None | LogitRows::Last => {}
            }
        }
        Ok(())
    }
}

impl<B: Backend> Runner for DecoderRunner<B> {
    fn len(&self) -> usize {
        self.sequence.len()
    }

    fn capacity(&self) -> usize {
        self.sequence.capacity()
    }

    fn cache_size_bytes(&self) -> usize {
        self.sequence.len() * self.sequence.size_bytes()
    }

    fn truncate(&mut self, len: usize) {
        self.sequence.truncate(len);
    }

    fn forward(&mut self, ids: &[u32], rows: LogitRows, cancel: &CancelToken) -> Result<&mut [f32]> {
        let before = self.sequence.len();
        let required = before + ids.len();
        // Before any work: a prompt that does not fit is refused within microseconds.
        if required > self.sequence.capacity() {
            return Err(Error::ContextFull { required, available: self.sequence.capacity() });
        }
        self.logits.clear();
        if let Err(error) = self.run(ids, rows, cancel) {
            self.sequence.truncate(before);
            self.logits.clear();
            return Err(error);
        }
        Ok(&mut self.logits)
    }

    fn write_state(&self, out: &mut Vec<u8>) -> Result<()> {
        self.sequence.write_state(out)
    }

    fn read_state(&mut self, len: usize, state: &[u8]) -> Result<()> {
        self.sequence.read_state(len, state)
    }
}
