use super::config::Activation;
use crate::{Error, Result};

/// Model families that one [`Decoder`](super::Decoder) covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Llama 2/3, TinyLlama, SmolLM2 (`llama`).
    Llama,
    /// Gemma 1 (`gemma`).
    Gemma,
    /// Gemma 2 (`gemma2`).
    Gemma2,
    /// Gemma 3, text (`gemma3`).
    Gemma3,
    /// Qwen 2 and 2.5 (`qwen2`).
    Qwen2,
    /// Qwen 3, dense (`qwen3`).
    Qwen3,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 6] = [Self::Llama, Self::Gemma, Self::Gemma2, Self::Gemma3, Self::Qwen2, Self::Qwen3];

    /// `general.architecture` of GGUF files, also the prefix of their keys.
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The family with this `general.architecture`.
    ///
    /// # Errors
    /// [`Error::UnsupportedArchitecture`]
    pub fn from_architecture(architecture: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|family| family.architecture() == architecture)
            .ok_or_else(|| Error::UnsupportedArchitecture { architecture: architecture.chars().take(100).collect() })
    }

    /// `model.type` of onnxruntime-genai's configuration.
    #[cfg(feature = "onnx")]
    pub(super) const fn genai_type(self) -> &'static str {
        match self {
            Self::Gemma3 => "gemma3_text",
            other => other.architecture(),
        }
    }

    /// Whether this is Gemma 1, 2 or 3.
    pub const fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3)
    }

    /// Whether q and k are normed per head before the rotation.
    pub const fn has_qk_norm(self) -> bool {
        matches!(self, Self::Gemma3 | Self::Qwen3)
    }

    /// Whether attention's and the FFN's outputs are normed before the residual.
    pub const fn has_post_norms(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// Whether q, k and v must have a bias; elsewhere a file may have one.
    pub const fn requires_qkv_bias(self) -> bool {
        matches!(self, Self::Qwen2)
    }

    /// The gate's nonlinearity.
    pub const fn activation(self) -> Activation {
        if self.is_gemma() { Activation::GeluTanh } else { Activation::Silu }
    }
}
