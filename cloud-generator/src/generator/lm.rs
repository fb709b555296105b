use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Tensor};
use edgeweld::gguf::GgufFile;
use edgeweld::model::{Backend, Cpu, CpuOptions, Decoder};
use edgeweld::pack::ModelIdentity;
use edgeweld::tokenizer::{EncodeOptions, Tokenizer};
use edgeweld::{CancelToken, Digest};

use crate::Result;
use crate::grad::{Batch, Grad};

/// A frozen language model on the differentiable backend, with its tokenizer.
pub struct LanguageModel {
    /// The model.
    pub decoder: Decoder<Grad>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Digest of its file.
    pub digest: Digest,
    /// What packs for it must name.
    pub identity: ModelIdentity,
    file: GgufFile,
    // The same weights on the edge runtime's kernels, from the first call of `states` on.
    inference: OnceLock<Decoder<Cpu>>,
}

impl LanguageModel {
    /// Loads a GGUF file; weights are dequantised when first used.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let backend = Arc::new(Grad::new(device.clone()));
        let decoder = Decoder::load(&file, backend, &CancelToken::default(), &mut |_, _| {})?;
        let tokenizer = Tokenizer::from_gguf(file.metadata())?;
        let identity = ModelIdentity::of(&file, &tokenizer)?;
        Ok(Self { decoder, tokenizer, digest: identity.base, identity, file, inference: OnceLock::new() })
    }

    /// The states of `ids` after the first `layer_count` layers, without gradients: `[ids, hidden]`.
    ///
    /// On the CPU they are those of the edge runtime, to the bit: its kernels are several times faster than gradients
    /// allow. The first call loads the model for them.
    pub fn states(&self, ids: &[u32], layer_count: usize, cancel: &CancelToken) -> Result<Tensor> {
        if !self.decoder.backend.device().is_cpu() {
            let lower = cut(&self.decoder, 0..layer_count);
            let mut batch = Batch::packed(&[ids.len()], vec![None]);
            return Ok(lower.hidden(lower.embed(ids)?, &mut batch, None, cancel)?.detach());
        }
        let lower = cut(self.inference()?, 0..layer_count);
        let mut sequence = lower.backend.sequence(&lower.config.attention, ids.len())?;
        let states = lower.hidden(lower.embed(ids)?, &mut sequence, None, cancel)?;
        let mut values = Vec::new();
        lower.backend.read(&states, &mut values)?;
        Ok(Tensor::from_vec(values, (ids.len(), lower.config.hidden_size), &Device::Cpu)?)
    }

    fn inference(&self) -> Result<&Decoder<Cpu>> {
        if let Some(decoder) = self.inference.get() {
            return Ok(decoder);
        }
        let cpu = Cpu::new(&CpuOptions { threads: Some(rayon::current_num_threads()), ..CpuOptions::default() })?;
        let decoder = Decoder::load(&self.file, Arc::new(cpu), &CancelToken::default(), &mut |_, _| {})?;
        Ok(self.inference.get_or_init(|| decoder))
    }

    /// The decoder cut to `layers`; it shares their weights.
    pub fn layers(&self, layers: Range<usize>) -> Decoder<Grad> {
        cut(&self.decoder, layers)
    }

    /// Token ids of plain text, with BOS where the model wants it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode(text, EncodeOptions { add_special: true, parse_special: false })?;
        let end = ids.len() - usize::from(self.tokenizer.adds_eos() && ids.last().copied() == self.tokenizer.eos());
        Ok(ids[..end].to_vec())
    }
}

fn cut<B: Backend>(decoder: &Decoder<B>, layers: Range<usize>) -> Decoder<B> {
    let mut decoder = decoder.clone();
    decoder.layers = decoder.layers[layers.clone()].to_vec();
    decoder.config.attention = decoder.config.attention[layers].to_vec();
    decoder
}

/// What the edge model sees of a user's turn once the prompt is dropped, up to where it answers: the ChatML turn
/// without any system message (SmolLM2's template would put a default one in). Models without ChatML tokens get
/// the bare text and a line break.
pub fn user_turn(tokenizer: &Tokenizer, system: Option<&str>, input: &str) -> Result<Vec<u32>> {
    let (start, end) = (tokenizer.special_token("<|im_start|>"), tokenizer.special_token("<|im_end|>"));
    let plain = |text: &str| tokenizer.encode(text, EncodeOptions { add_special: false, parse_special: false });
    let (Some(start), Some(end)) = (start, end) else {
        let system = system.map(|system| format!("{system}\n\n")).unwrap_or_default();
        let text = format!("{system}{input}\n");
        return Ok(tokenizer.encode(&text, EncodeOptions { add_special: true, parse_special: false })?);
    };
    let mut ids = Vec::new();
    for (role, text) in system.map(|system| ("system", system)).into_iter().chain([("user", input)]) {
        ids.push(start);
        ids.extend(plain(&format!("{role}\n{text}"))?);
        ids.push(end);
        ids.extend(plain("\n")?);
    }
    ids.push(start);
    ids.extend(plain("assistant\n")?);
    Ok(ids)
}
