use std::sync::Arc;

use super::config::{AttentionParams, Config, Rope};
use super::family::Family;
use crate::gguf::{GgufFile, Metadata};
use crate::{Error, Result};

// Caps on what a file may ask for, well above any model of these families. Every later allocation is sized by
// these numbers or by tensors that are really in the file.
const LAYERS_MAX: u64 = 1024;
/// Two norms, and the matrices q, k, v, o, gate, up and down.
const LAYER_TENSORS_MIN: usize = 9;
const HIDDEN_MAX: u64 = 1 << 16;
const FFN_MAX: u64 = 1 << 20;
const HEADS_MAX: u64 = 1024;
const HEAD_DIM_MAX: u64 = 1024;
const VOCAB_MAX: u64 = 1 << 22;
const CONTEXT_MAX: u64 = 1 << 24;

/// llama.cpp's rope base where a file has none.
const ROPE_BASE: f32 = 10_000.0;

impl Config {
    /// Reads and checks the configuration of a model file.
    ///
    /// # Errors
    /// [`Error::UnsupportedArchitecture`], [`Error::InvalidMetadata`] for a key that is missing, of another type, out
    /// of range, or asks for something no supported family has (experts, partial rotation, yarn scaling),
    /// [`Error::LimitExceeded`], [`Error::MissingTensor`] or [`Error::ShapeMismatch`] for the tensors that carry
    /// configuration (`token_embd.weight`, `rope_freqs.weight`).
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let metadata = file.metadata();
        let family = Family::from_architecture(metadata.str("general.architecture")?)?;
        let keys = Keys { metadata, architecture: family.architecture() };

        let layer_count = keys.count("block_count", LAYERS_MAX)?;
        let tensor_count = file.tensors().len();
        if layer_count * LAYER_TENSORS_MIN > tensor_count {
            let reason = format!("{layer_count} layers in a file of {tensor_count} tensors");
            return Err(keys.invalid("block_count", reason));
        }
        let hidden_size = keys.count("embedding_length", HIDDEN_MAX)?;
        if keys.opt_u32("expert_count")?.is_some_and(|count| count > 0) {
            return Err(keys.invalid("expert_count", "mixtures of experts are not supported"));
        }
        let norm_epsilon = keys.f32("attention.layer_norm_rms_epsilon")?;
        if !(norm_epsilon > 0.0 && norm_epsilon < 1.0) {
            return Err(keys.invalid("attention.layer_norm_rms_epsilon", format!("{norm_epsilon} is out of range")));
        }
        let heads = Heads::read(&keys, hidden_size)?;
        let ropes = Ropes::read(&keys, file, family, heads.dim)?;
        let windows = windows(&keys, family, layer_count)?;
        let scale = attention_scale(family, layer_count, hidden_size, &heads);
        let (softcap, logit_softcap) = softcaps(&keys, family)?;

        let attention = windows.into_iter().map(|window| AttentionParams {
            head_count: heads.count,
            kv_head_count: heads.kv_count,
            head_dim: heads.dim,
            scale,
            softcap,
            window,
            rope: if window.is_some() { ropes.local.clone() } else { ropes.global.clone() },
            norm_epsilon,
        });
        Ok(Self {
            family,
            hidden_size,
            ffn_size: keys.count("feed_forward_length", FFN_MAX)?,
            vocab_size: vocab_size(file)?,
            context_length: keys.count("context_length", CONTEXT_MAX)?,
            norm_epsilon,
            embedding_scale: if family.is_gemma() { (hidden_size as f32).sqrt() } else { 1.0 },
            activation: family.activation(),
            logit_softcap,
            attention: attention.collect(),
        })
    }
}

/// A family's metadata: names are without the architecture's prefix.
struct Keys<'a> {
    metadata: Metadata<'a>,
    architecture: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn invalid(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::InvalidMetadata { key: self.key(name), reason: reason.into() }
    }

    fn f32(&self, name: &str) -> Result<f32> {
        self.metadata.f32(&self.key(name))
    }

    fn opt_f32(&self, name: &str) -> Result<Option<f32>> {
        self.metadata.opt_f32(&self.key(name))
    }

    /// A number that divides: finite and above zero.
    fn opt_positive(&self, name: &str) -> Result<Option<f32>> {
        match self.opt_f32(name)? {
            Some(value) if !(value.is_finite() && value > 0.0) => {
                Err(self.invalid(name, format!("{value} is not a positive number")))
            }
            value => Ok(value),
        }
    }

    fn opt_u32(&self, name: &str) -> Result<Option<u32>> {
        self.metadata.opt_u32(&self.key(name))
    }

    /// A count of at least one.
    fn opt_count(&self, name: &'static str, limit: u64) -> Result<Option<usize>> {
        match self.opt_u32(name)?.map(u64::from) {
            Some(0) => Err(self.invalid(name, "is zero")),
            Some(actual) if actual > limit => Err(Error::LimitExceeded { what: name, actual, limit }),
            count => Ok(count.map(|count| count as usize)),
        }
    }

    fn count(&self, name: &'static str, limit: u64) -> Result<usize> {
        self.opt_count(name, limit)?.ok_or_else(|| self.invalid(name, "missing"))
    }
}

struct Heads {
    count: usize,
    kv_count: usize,
    dim: usize,
}

impl Heads {
    fn read(keys: &Keys<'_>, hidden_size: usize) -> Result<Self> {
        let count = keys.count("attention.head_count", HEADS_MAX)?;
        let kv_count = keys.opt_count("attention.head_count_kv", HEADS_MAX)?.unwrap_or(count);
        if !count.is_multiple_of(kv_count) {
            return Err(keys.invalid("attention.head_count_kv", format!("{kv_count} does not divide {count} heads")));
        }
        let dim = match keys.opt_count("attention.key_length", HEAD_DIM_MAX)? {
            Some(dim) => dim,
            None if hidden_size.is_multiple_of(count) => hidden_size / count,
            None => {
                let reason = format!("{count} does not divide the hidden size {hidden_size}");
                return Err(keys.invalid("attention.head_count", reason));
            }
        };
        if dim > HEAD_DIM_MAX as usize || !dim.is_multiple_of(2) {
            return Err(
                keys.invalid("attention.key_length", format!("{dim} is not an even width up to {HEAD_DIM_MAX}"))
            );
        }
        for (name, meaning) in [("attention.value_length", "values"), ("rope.dimension_count", "rotated dimensions")] {
            if let Some(other) = keys.opt_count(name, HEAD_DIM_MAX)?
                && other != dim
            {
                return Err(keys.invalid(name, format!("{other} {meaning} in heads of {dim} are not supported")));
            }
        }
        Ok(Self { count, kv_count, dim })
    }
}

/// Rotation of layers that see all positions, and of those with a window.
struct Ropes {
    global: Arc<Rope>,
    local: Arc<Rope>,
}

impl Ropes {
    fn read(keys: &Keys<'_>, file: &GgufFile, family: Family, head_dim: usize) -> Result<Self> {
        let interleaved = family == Family::Llama;
        let base = keys.opt_positive("rope.freq_base")?.unwrap_or(ROPE_BASE);
        let scale = linear_scale(keys)?;
        let mut global = Rope::new(base, scale, head_dim, interleaved);
        // Llama 3's scaling: one divisor per pair, computed by the converter.
        if file.opt_tensor("rope_freqs.weight").is_some() {
            let factors = file.vector("rope_freqs.weight")?;
            if factors.len() != head_dim / 2 {
                return Err(Error::ShapeMismatch {
                    tensor: "rope_freqs.weight".to_owned(),
                    expected: vec![head_dim / 2],
                    actual: vec![factors.len()],
                });
            }
            if let Some(factor) = factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
                let reason = format!("{factor} is not a positive number");
                return Err(Error::InvalidMetadata { key: "rope_freqs.weight".to_owned(), reason });
            }
            for (frequency, factor) in global.inverse_frequencies.iter_mut().zip(factors) {
                *frequency /= factor;
            }
        }
        let global = Arc::new(global);
        let local = match (family, keys.opt_positive("rope.freq_base_swa")?) {
            // Gemma 3's local layers were trained with the default base, and never scaled.
            (Family::Gemma3, base) => Arc::new(Rope::new(base.unwrap_or(ROPE_BASE), 1.0, head_dim, interleaved)),
            (_, Some(base)) => Arc::new(Rope::new(base, scale, head_dim, interleaved)),
            (_, None) => global.clone(),
        };
        Ok(Self { global, local })
    }
}

fn linear_scale(keys: &Keys<'_>) -> Result<f32> {
    let kind = keys.metadata.opt_str(&keys.key("rope.scaling.type"))?;
    // Files older than `rope.scaling.*` have `rope.scale_linear`; zero means "not scaled" in both.
    let factor = match keys.opt_f32("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.opt_f32("rope.scale_linear")?,
    };
    match kind {
        Some("none") => Ok(1.0),
        None | Some("linear") => match factor {
            None | Some(0.0) => Ok(1.0),
            Some(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
            Some(factor) => Err(keys.invalid("rope.scaling.factor", format!("{factor} is not a positive number"))),
        },
        Some(other) => {
            let other: String = other.chars().take(100).collect();
            Err(keys.invalid("rope.scaling.type", format!("{other:?} is not supported")))
        }
    }
}

/// Each layer's window. Gemma 2 alternates local and global layers, Gemma 3 has five local ones, then a global.
fn windows(keys: &Keys<'_>, family: Family, layer_count: usize) -> Result<Vec<Option<usize>>> {
    let (default_window, default_pattern) = match family {
        Family::Gemma2 => (Some(4096), 2),
        Family::Gemma3 => (None, 6),
        _ => return Ok(vec![None; layer_count]),
    };
    let name = "attention.sliding_window";
    let window = match keys.opt_u32(name)? {
        Some(0) => None,
        Some(_) => keys.opt_count(name, CONTEXT_MAX)?,
        None => default_window,
    };
    let Some(window) = window else { return Ok(vec![None; layer_count]) };

    let name = "attention.sliding_window_pattern";
    let metadata = keys.metadata;
    if let Ok(Some(local)) = metadata.opt_bools(&keys.key(name)) {
        if local.len() != layer_count {
            return Err(keys.invalid(name, format!("has {} entries for {layer_count} layers", local.len())));
        }
        return Ok(local.into_iter().map(|local| local.then_some(window)).collect());
    }
    let pattern = keys.opt_u32(name)?.unwrap_or(default_pattern) as usize;
    let is_local = |layer: usize| pattern == 0 || layer % pattern < pattern - 1;
    Ok((0..layer_count).map(|layer| is_local(layer).then_some(window)).collect())
}

fn attention_scale(family: Family, layer_count: usize, hidden_size: usize, heads: &Heads) -> f32 {
    // The 27B models of Gemma 2 and 3 divide by hidden / heads instead of the head's width; GGUF has no key for it.
    let width = match (family, layer_count) {
        (Family::Gemma2, 46) | (Family::Gemma3, 62) => hidden_size / heads.count,
        _ => heads.dim,
    };
    1.0 / (width as f32).sqrt()
}

fn softcaps(keys: &Keys<'_>, family: Family) -> Result<(Option<f32>, Option<f32>)> {
    let read = |name| match keys.opt_f32(name) {
        Ok(Some(0.0)) => Ok(None),
        _ => keys.opt_positive(name),
    };
    let logits = "final_logit_softcapping";
    match family {
        // The defaults that every Gemma 2 was trained with.
        Family::Gemma2 => {
            Ok((Some(read("attn_logit_softcapping")?.unwrap_or(50.0)), Some(read(logits)?.unwrap_or(30.0))))
        }
        Family::Gemma3 => Ok((None, read(logits)?)),
        _ => Ok((None, None)),
    }
}

fn vocab_size(file: &GgufFile) -> Result<usize> {
    let rows = file.matrix("token_embd.weight")?.rows() as u64;
    match rows {
        0 => Err(Error::ShapeMismatch { tensor: "token_embd.weight".into(), expected: vec![1], actual: vec![0] }),
        rows if rows > VOCAB_MAX => Err(Error::LimitExceeded { what: "vocabulary", actual: rows, limit: VOCAB_MAX }),
        rows => Ok(rows as usize),
    }
}
