use std::sync::Arc;

use super::backend::{Backend, Sequence};
use super::config::Config;
use crate::{CancelToken, Error, Result};

/// A projection: weight and, in some families, a bias.
pub struct Linear<B: Backend> {
    /// `[out, in]`
    pub weight: B::Matrix,
    /// `[out]` (Qwen 2: q, k and v)
    pub bias: Option<B::Vector>,
}

/// One decoder layer. Norms that a family lacks are `None`.
pub struct Layer<B: Backend> {
    /// Before attention.
    pub attn_norm: B::Vector,
    /// Query projection.
    pub q: Linear<B>,
    /// Key projection.
    pub k: Linear<B>,
    /// Value projection.
    pub v: Linear<B>,
    /// Output projection.
    pub o: Linear<B>,
    /// Per head, before the rotation (Gemma 3, Qwen 3).
    pub q_norm: Option<B::Vector>,
    /// Per head, before the rotation (Gemma 3, Qwen 3).
    pub k_norm: Option<B::Vector>,
    /// After attention, before the residual (Gemma 2 and 3).
    pub post_attn_norm: Option<B::Vector>,
    /// Before the FFN.
    pub ffn_norm: B::Vector,
    /// FFN gate projection, `[ffn, hidden]`.
    pub gate: B::Matrix,
    /// FFN up projection, `[ffn, hidden]`.
    pub up: B::Matrix,
    /// FFN down projection, `[hidden, ffn]`.
    pub down: B::Matrix,
    /// After the FFN, before the residual (Gemma 2 and 3).
    pub post_ffn_norm: Option<B::Vector>,
}

/// The one decoder-only transformer that covers every family, computed by a [`Backend`].
///
/// It is immutable: a merged model is another decoder that shares all weights but the merged ones, and a side
/// path is an argument of [`hidden`](Self::hidden). So any number of sessions can use it at once.
pub struct Decoder<B: Backend> {
    /// What computes.
    pub backend: Arc<B>,
    /// What the model is.
    pub config: Config,
    /// Token embeddings, `[vocab, hidden]`.
    pub embedding: B::Matrix,
    /// The layers; a merged model shares the unmerged layers' weights.
    pub layers: Vec<Layer<B>>,
    /// Before the head.
    pub output_norm: B::Vector,
    /// `[vocab, hidden]`; the embedding table itself in models with tied weights.
    pub head: B::Matrix,
}

impl<B: Backend> Decoder<B> {
    /// Token embeddings, scaled: `[ids.len(), hidden]`.
    pub fn embed(&self, ids: &[u32]) -> Result<B::Tensor> {
        self.backend.embed(&self.embedding, ids, self.config.embedding_scale)
    }

    /// Runs all layers on `h` (`[rows, hidden]`), which continues `sequence`, and counts its rows as cached.
    ///
    /// `lora` is the side path, one entry per layer.
    ///
    /// # Errors
    /// [`Error::ContextFull`] if the rows do not fit; [`Error::Cancelled`] within one layer of the cancellation,
    /// with `sequence` as it was.
    pub fn hidden(
        &self,
        mut h: B::Tensor,
        sequence: &mut B::Sequence,
        lora: Option<&[B::Lora]>,
        cancel: &CancelToken,
    ) -> Result<B::Tensor> {
        let rows = self.backend.row_count(&h);
        let required = sequence.len() + rows;
        if required > sequence.capacity() {
            return Err(Error::ContextFull { required, available: sequence.capacity() });
        }
        for (index, layer) in self.layers.iter().enumerate() {
            cancel.check()?;
            h = self.layer(index, layer, h, sequence, lora.map(|lora| &lora[index]))?;
        }
        sequence.advance(rows);
        Ok(h)
    }

    /// Logits of every row of `h`, as [`hidden`](Self::hidden) returns it: `[rows, vocab]`.
    pub fn logits(&self, h: &B::Tensor) -> Result<B::Tensor> {
        let x = self.output_norm(h)?;
        let [logits] = self.backend.project(&x, [&self.head], [None])?;
        match self.config.logit_softcap {
            Some(cap) => self.backend.softcap(logits, cap),
            None => Ok(logits),
        }
    }

    /// The final norm of every row of `h`: what the head, and a generator's router, read.
    pub fn output_norm(&self, h: &B::Tensor) -> Result<B::Tensor> {
        self.backend.rms_norm(h, &self.output_norm, self.config.norm_epsilon)
    }

    // h += attention(norm(h)); h += ffn(norm(h))
    fn layer(
        &self,
        index: usize,
        layer: &Layer<B>,
        h: B::Tensor,
        sequence: &mut B::Sequence,
        lora: Option<&B::Lora>,
    ) -> Result<B::Tensor> {
        let backend = &*self.backend;
        let epsilon = self.config.norm_epsilon;

        let x = backend.rms_norm(&h, &layer.attn_norm, epsilon)?;
        let qkv = backend.project(
            &x,
            [&layer.q.weight, &layer.k.weight, &layer.v.weight],
            [layer.q.bias.as_ref(), layer.k.bias.as_ref(), layer.v.bias.as_ref()],
        )?;
        let params = &self.config.attention[index];
        let x = backend.attend(index, qkv, layer.q_norm.as_ref(), layer.k_norm.as_ref(), params, sequence)?;
        let [mut y] = backend.project(&x, [&layer.o.weight], [layer.o.bias.as_ref()])?;
        if let Some(norm) = &layer.post_attn_norm {
            y = backend.rms_norm(&y, norm, epsilon)?;
        }
        let h = backend.add(h, &y)?;

        let x = backend.rms_norm(&h, &layer.ffn_norm, epsilon)?;
        let x = backend.ffn_in(&x, &layer.gate, &layer.up, self.config.activation, lora)?;
        let mut y = backend.ffn_out(&x, &layer.down, lora)?;
        if let Some(norm) = &layer.post_ffn_norm {
            y = backend.rms_norm(&y, norm, epsilon)?;
        }
        backend.add(h, &y)
    }
}
