use std::sync::Arc;

use super::family::Family;

/// The gate's nonlinearity in the FFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)` (Llama, Qwen).
    Silu,
    /// The tanh approximation of GELU (Gemma).
    GeluTanh,
}

/// Rotary position embedding of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians per position for each rotated pair, `[head_dim / 2]`; scaling factors are already applied.
    pub inverse_frequencies: Vec<f32>,
    /// Pairs are `(2i, 2i+1)` (GGUF's `llama`) instead of `(i, i + head_dim/2)`.
    pub interleaved: bool,
}

impl Rope {
    /// `base^(-2i / head_dim) / scale` radians per position.
    pub fn new(base: f32, scale: f32, head_dim: usize, interleaved: bool) -> Self {
        let frequency = |i: usize| f64::from(base).powf(-((2 * i) as f64) / head_dim as f64) / f64::from(scale);
        Self { inverse_frequencies: (0..head_dim / 2).map(|i| frequency(i) as f32).collect(), interleaved }
    }
}

/// Attention of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionParams {
    /// Query heads.
    pub head_count: usize,
    /// Key/value heads; each serves `head_count / kv_head_count` query heads.
    pub kv_head_count: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Factor on `q·k`.
    pub scale: f32,
    /// `cap · tanh(score / cap)` on the scores (Gemma 2).
    pub softcap: Option<f32>,
    /// A position sees itself and this many minus one before it; `None` sees all.
    pub window: Option<usize>,
    /// Position embedding, shared between layers.
    pub rope: Arc<Rope>,
    /// Epsilon of the q and k norms.
    pub norm_epsilon: f32,
}

/// What the decoder needs to know about a model; read from GGUF metadata by [`Config::from_gguf`].
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Model family.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the FFN.
    pub ffn_size: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Longest context the model was trained for, in tokens.
    pub context_length: usize,
    /// Epsilon of the RMS norms.
    pub norm_epsilon: f32,
    /// Factor on the token embeddings (Gemma: `sqrt(hidden_size)`).
    pub embedding_scale: f32,
    /// The gate's nonlinearity.
    pub activation: Activation,
    /// `cap · tanh(logit / cap)` on the logits (Gemma 2).
    pub logit_softcap: Option<f32>,
    /// One entry per layer.
    pub attention: Vec<AttentionParams>,
}

impl Config {
    /// Number of decoder layers.
    pub fn layer_count(&self) -> usize {
        self.attention.len()
    }

    /// What every model has, whatever computes it.
    pub fn shape(&self) -> ModelShape {
        let (layer_count, vocab_size) = (self.layer_count(), self.vocab_size);
        ModelShape { layer_count, vocab_size, context_length: self.context_length }
    }
}

/// Sizes of a model that are known whatever it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Decoder layers.
    pub layer_count: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Longest context, in tokens.
    pub context_length: usize,
}
