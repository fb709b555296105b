use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use super::answer::{Answer, HiddenAnswer};
use super::config::{Activation, AttentionParams};
use super::decoder::Decoder;
use super::onnx_options::ProviderOutcome;
use super::runner::{DecoderRunner, Runner};
use crate::lora::{LayerLora, LoraSet};
use crate::quant::QMatrix;
use crate::{CancelToken, Result};

/// The operators a [`Decoder`](super::Decoder) is written in.
///
/// Implementations: `Cpu` (our kernels), `Candle` (GPUs, and the dequantised reference), and the cloud
/// generator's differentiable one. Operators are coarse on purpose: what shares an input is one call, so that a
/// backend can quantise activations once and fuse.
pub trait Backend: Sized + Send + Sync + 'static {
    /// Activations, logically row-major `[rows, cols]`, one row per token.
    type Tensor;
    /// A projection's weight `[out, in]`, or the embedding table `[vocab, hidden]`. Clones share it.
    type Matrix: Clone + Send + Sync;
    /// A norm's weight or a bias. Clones share it.
    type Vector: Clone + Send + Sync;
    /// The side path of one layer's FFN, ready to run.
    type Lora: Send + Sync;
    /// One sequence: its KV cache and the number of tokens in it.
    type Sequence: Sequence;

    /// Takes a weight as the file stores it.
    fn matrix(&self, source: QMatrix) -> Result<Self::Matrix>;

    /// Takes a norm's weight or a bias.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector>;

    /// Prepares one layer's side path: `y += scale · b·(a·x)` for each target that has a pair.
    fn lora(&self, layer: &LayerLora, scale: f32) -> Result<Self::Lora>;

    /// The side path of every layer. A backend may read the pairs where they are.
    fn side_path(&self, lora: &Arc<LoraSet>) -> Result<Arc<[Self::Lora]>> {
        lora.layers.iter().map(|layer| self.lora(layer, lora.scale)).collect()
    }

    /// An empty sequence for up to `capacity` tokens.
    fn sequence(&self, layers: &[AttentionParams], capacity: usize) -> Result<Self::Sequence>;

    /// Rows `ids` of `table`, times `scale`: `[ids.len(), hidden]`.
    fn embed(&self, table: &Self::Matrix, ids: &[u32], scale: f32) -> Result<Self::Tensor>;

    /// `x / sqrt(mean(x²) + epsilon) · weight`, row by row.
    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Vector, epsilon: f32) -> Result<Self::Tensor>;

    /// `y_i = W_i · x + bias_i` for projections that share their input.
    fn project<const N: usize>(
        &self,
        x: &Self::Tensor,
        weights: [&Self::Matrix; N],
        biases: [Option<&Self::Vector>; N],
    ) -> Result<[Self::Tensor; N]>;

    /// Norms (if any) and rotates `q` and `k` per head, appends `k` and `v` to the layer's cache after the
    /// sequence's [`len`](Sequence::len) tokens, and attends causally: `[rows, head_count · head_dim]`.
    fn attend(
        &self,
        layer: usize,
        qkv: [Self::Tensor; 3],
        q_norm: Option<&Self::Vector>,
        k_norm: Option<&Self::Vector>,
        params: &AttentionParams,
        sequence: &mut Self::Sequence,
    ) -> Result<Self::Tensor>;

    /// `activation(gate · x) ⊙ (up · x)`, each with its side path: `[rows, ffn]`.
    fn ffn_in(
        &self,
        x: &Self::Tensor,
        gate: &Self::Matrix,
        up: &Self::Matrix,
        activation: Activation,
        lora: Option<&Self::Lora>,
    ) -> Result<Self::Tensor>;

    /// `down · x` with its side path: `[rows, hidden]`.
    fn ffn_out(&self, x: &Self::Tensor, down: &Self::Matrix, lora: Option<&Self::Lora>) -> Result<Self::Tensor>;

    /// `x + y`.
    fn add(&self, x: Self::Tensor, y: &Self::Tensor) -> Result<Self::Tensor>;

    /// `cap · tanh(x / cap)`.
    fn softcap(&self, x: Self::Tensor, cap: f32) -> Result<Self::Tensor>;

    /// The given rows of `x`.
    fn rows(&self, x: &Self::Tensor, rows: Range<usize>) -> Result<Self::Tensor>;

    /// Number of rows of `x`.
    fn row_count(&self, x: &Self::Tensor) -> usize;

    /// Copies `x` to `out`, replacing its contents, row-major.
    fn read(&self, x: &Self::Tensor, out: &mut Vec<f32>) -> Result<()>;

    /// A sequence of `decoder` for up to `capacity` tokens. A backend that runs the decoder as a whole has its own.
    ///
    /// # Errors
    /// As [`DecoderRunner::new`].
    fn runner(
        decoder: &Arc<Decoder<Self>>,
        capacity: usize,
        lora: Option<Arc<[Self::Lora]>>,
    ) -> Result<Box<dyn Runner>> {
        Ok(Box::new(DecoderRunner::new(decoder.clone(), capacity, lora)?))
    }

    /// Makes a runner of the same base go on as `decoder` with the side path `lora`, empty; `false` if it is of another kind.
    fn put_into(decoder: &Arc<Decoder<Self>>, lora: Option<Arc<[Self::Lora]>>, runner: &mut dyn Runner) -> bool {
        match (runner as &mut dyn Any).downcast_mut::<DecoderRunner<Self>>() {
            Some(runner) if Arc::ptr_eq(&runner.decoder().backend, &decoder.backend) => {
                runner.change_model(decoder.clone(), lora);
                true
            }
            _ => false,
        }
    }

    /// What became of each preferred execution provider, of a backend that has any.
    fn providers(_: &Arc<Decoder<Self>>) -> Vec<ProviderOutcome> {
        Vec::new()
    }

    /// What `decoder` answers to every token of `ids`, read a few rows at a time.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled); those of the backend.
    fn answer(
        decoder: &Arc<Decoder<Self>>,
        lora: Option<&Arc<[Self::Lora]>>,
        ids: &[u32],
        cancel: &CancelToken,
    ) -> Result<Box<dyn Answer>> {
        Ok(Box::new(HiddenAnswer::new(decoder, lora, ids, cancel)?))
    }
}

/// One sequence's place in the KV cache.
pub trait Sequence: Send {
    /// Tokens whose keys and values are in the cache.
    fn len(&self) -> usize;

    /// Whether the cache is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most tokens it can hold.
    fn capacity(&self) -> usize;

    /// Bytes of keys and values per cached token at present, all layers.
    fn size_bytes(&self) -> usize;

    /// Counts `rows` appended tokens as cached, after every layer saw them.
    fn advance(&mut self, rows: usize);

    /// Forgets all but the first `len` tokens.
    fn truncate(&mut self, len: usize);

    /// Appends the cached keys and values to `out`, in the backend's own layout.
    fn write_state(&self, out: &mut Vec<u8>) -> Result<()>;

    /// Restores what [`write_state`](Self::write_state) wrote for `len` tokens; the bytes are untrusted.
    fn read_state(&mut self, len: usize, state: &[u8]) -> Result<()>;
}
