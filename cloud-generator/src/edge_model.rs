//! The edge model as a device runs it: quantised weights, fast kernels, a KV cache that is used again.

use std::path::Path;
use std::sync::Arc;

use edgeweld::CancelToken;
use edgeweld::chat::{ChatTemplate, Message, RenderOptions};
use edgeweld::gguf::GgufFile;
use edgeweld::lora::LoraSet;
use edgeweld::model::{Backend, Cpu, CpuLora, CpuOptions, Decoder, DecoderRunner, LogitRows, Runner};
use edgeweld::pack::ModelIdentity;
use edgeweld::tokenizer::Tokenizer;

use crate::Result;

/// An edge model on the CPU backend.
pub struct EdgeModel {
    /// The model.
    pub decoder: Arc<Decoder<Cpu>>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub template: ChatTemplate,
    /// What packs for it must name.
    pub identity: ModelIdentity,
}

/// One sequence on an [`EdgeModel`]. What a text shares with the one before it is not computed again.
pub struct Reader {
    runner: DecoderRunner<Cpu>,
    cached: Vec<u32>,
    vocab_size: usize,
}

impl EdgeModel {
    /// Loads a GGUF file; `threads: None` takes one per performance core.
    pub fn load(path: &Path, threads: Option<usize>) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let backend = Arc::new(Cpu::new(&CpuOptions { threads, ..CpuOptions::default() })?);
        let decoder = Arc::new(Decoder::load(&file, backend, &CancelToken::default(), &mut |_, _| {})?);
        let tokenizer = Tokenizer::from_gguf(file.metadata())?;
        let template = ChatTemplate::from_gguf(file.metadata(), &tokenizer)?;
        let identity = ModelIdentity::of(&file, &tokenizer)?;
        Ok(Self { decoder, tokenizer, template, identity })
    }

    /// A LoRA as a side path of this model.
    pub fn side_path(&self, lora: &LoraSet) -> Result<Arc<[CpuLora]>> {
        let layers = lora.layers.iter().map(|layer| self.decoder.backend.lora(layer, lora.scale));
        Ok(layers.collect::<edgeweld::Result<_>>()?)
    }

    /// An empty sequence for texts of up to `capacity` tokens.
    pub fn reader(&self, capacity: usize, lora: Option<Arc<[CpuLora]>>) -> Result<Reader> {
        let runner = DecoderRunner::new(self.decoder.clone(), capacity, lora)?;
        Ok(Reader { runner, cached: Vec::new(), vocab_size: self.decoder.config.vocab_size })
    }

    /// `messages` up to where the model answers. The template's own default system message is left out, as a device
    /// does after a prompt is dropped.
    pub fn encode(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let options = RenderOptions { default_system: false, ..RenderOptions::default() };
        Ok(self.template.encode(&self.tokenizer, messages, &options)?)
    }

    /// A user's turn up to where the model answers, after nothing: what a specialised model sees.
    pub fn turn(&self, query: &str) -> Result<Vec<u32>> {
        self.encode(&[Message::user(query)])
    }

    /// The tokens of `answer` after [`turn`](Self::turn), the one that ends the turn included if the template writes one.
    /// `None` if the template does not write answers where it asks for them.
    pub fn answer(&self, query: &str, answer: &str) -> Result<Option<Vec<u32>>> {
        let options = RenderOptions { add_generation_prompt: false, default_system: false, ..RenderOptions::default() };
        let messages = [Message::user(query), Message::assistant(answer)];
        let ids = self.template.encode(&self.tokenizer, &messages, &options)?;
        let answer = ids.strip_prefix(self.turn(query)?.as_slice());
        Ok(answer.map(|ids| {
            let end = ids.iter().position(|id| self.tokenizer.is_end(*id));
            ids[..end.map_or(ids.len(), |end| end + 1)].to_vec()
        }))
    }
}

impl Reader {
    /// Logits after the last token of `ids`: `[vocab]`.
    ///
    /// # Errors
    /// [`edgeweld::Error::ContextFull`], [`edgeweld::Error::Cancelled`].
    pub fn next(&mut self, ids: &[u32], cancel: &CancelToken) -> Result<&mut [f32]> {
        self.seek(ids, ids.len().saturating_sub(1), cancel)?;
        let rest = ids[self.cached.len()..].to_vec();
        self.cached.extend(&rest);
        Ok(self.runner.forward(&rest, LogitRows::Last, cancel)?)
    }

    /// Logits that predict `ids[first..]`, one row each: `[ids.len() - first, vocab]`. `first` is at least 1.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn predictions(&mut self, ids: &[u32], first: usize, cancel: &CancelToken) -> Result<&mut [f32]> {
        self.seek(ids, first - 1, cancel)?;
        let before = self.cached.len();
        // Where the shared part is shorter than `first - 1`, what is between needs no logits.
        if before < first - 1 {
            self.runner.forward(&ids[before..first - 1], LogitRows::None, cancel)?;
            self.cached.extend(&ids[before..first - 1]);
        }
        let rest = &ids[first - 1..ids.len() - 1];
        self.cached.extend(rest);
        Ok(self.runner.forward(rest, LogitRows::All, cancel)?)
    }

    /// Values per row of logits.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    // Cuts the cache to what it shares with the first `limit` tokens of `ids`.
    fn seek(&mut self, ids: &[u32], limit: usize, cancel: &CancelToken) -> Result<()> {
        cancel.check()?;
        let shared = self.cached.iter().zip(&ids[..limit]).take_while(|(a, b)| a == b).count();
        self.cached.truncate(shared);
        self.runner.truncate(shared);
        Ok(())
    }
}
