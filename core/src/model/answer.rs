use std::ops::Range;
use std::sync::Arc;

use super::backend::Backend;
use super::decoder::Decoder;
use crate::{CancelToken, Result};

/// A model's logits for every token of a text, of which only a few rows are in memory at once.
pub trait Answer {
    /// Computes the logits of `rows`, row-major `[rows, vocab]`, replacing `out`'s contents. Rows are asked for in
    /// order, any number of times from the start.
    ///
    /// # Errors
    /// Those of the backend.
    fn logits(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()>;
}

/// Keeps the last hidden states, from which logits are cheap.
pub(super) struct HiddenAnswer<B: Backend> {
    decoder: Arc<Decoder<B>>,
    hidden: B::Tensor,
}

impl<B: Backend> HiddenAnswer<B> {
    pub(super) fn new(
        decoder: &Arc<Decoder<B>>,
        lora: Option<&Arc<[B::Lora]>>,
        ids: &[u32],
        cancel: &CancelToken,
    ) -> Result<Self> {
        let mut sequence = decoder.backend.sequence(&decoder.config.attention, ids.len())?;
        let hidden = decoder.hidden(decoder.embed(ids)?, &mut sequence, lora.map(|lora| &lora[..]), cancel)?;
        Ok(Self { decoder: decoder.clone(), hidden })
    }
}

impl<B: Backend> Answer for HiddenAnswer<B> {
    fn logits(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let hidden = self.decoder.backend.rows(&self.hidden, rows)?;
        self.decoder.backend.read(&self.decoder.logits(&hidden)?, out)
    }
}
