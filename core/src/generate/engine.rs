use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};

use super::device::Device;
use super::model::Model;
use super::open::{self, Opened};
use super::session::Session;
use super::specialize::MergedPack;
use crate::chat::ChatTemplate;
use crate::model::{Config, KvType, ModelShape, OnnxOptions, ProviderOutcome, Runner};
use crate::pack::ModelIdentity;
#[cfg(feature = "constrain")]
use crate::sample::{Constraint, ConstraintCompiler, ConstraintState};
use crate::tokenizer::Tokenizer;
use crate::{CancelToken, Error, Result};

/// How a model is loaded.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// What computes.
    pub device: Device,
    /// Threads that compute, the caller's included; `None` takes one per performance core.
    pub threads: Option<usize>,
    /// How sessions keep their keys and values; [`Device::Cpu`] knows 8 bits too.
    pub kv_type: KvType,
    /// Context of a session in tokens; `None` takes the model's own, up to 4,096.
    pub context_length: Option<usize>,
    /// A Hugging Face `tokenizer.json` to use instead of the model's own tokenizer.
    pub tokenizer_json: Option<PathBuf>,
    /// How [`Device::Onnx`] is used.
    pub onnx: OnnxOptions,
    /// Stops loading from another thread.
    pub cancel: CancelToken,
}

/// Longest context that is taken without being asked for, in tokens: its KV cache is memory of the app.
const DEFAULT_CONTEXT_MAX: usize = 4_096;

/// A loaded model, ready for any number of sessions. Clones share it; it may be used from any thread.
#[derive(Clone)]
pub struct Engine(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) model: Box<dyn Model>,
    /// The pack in the model; sessions look here at each turn.
    pub(super) pack: RwLock<Option<Arc<MergedPack>>>,
    pub(super) tokenizer: Tokenizer,
    pub(super) template: ChatTemplate,
    pub(super) device: Device,
    pub(super) kv_type: KvType,
    context_length: usize,
    identity: OnceLock<ModelIdentity>,
    #[cfg(feature = "constrain")]
    constraints: OnceLock<ConstraintCompiler>,
}

impl Engine {
    /// Loads the GGUF file at `path`; the folder that `export_onnx` wrote; or, on [`Device::Onnx`], a folder of
    /// onnxruntime-genai (`genai_config.json`, graph, `tokenizer.json`) as it is.
    ///
    /// # Errors
    /// Of [`Device::Onnx`], [`Error::LibraryMissing`], [`Error::LibraryTooOld`] and [`Error::InvalidGraph`];
    /// [`Error::Io`]; the errors of [`GgufFile::open`](crate::gguf::GgufFile::open),
    /// [`Decoder::load`](crate::model::Decoder::load), the tokenizer and the chat template; [`Error::InvalidOption`];
    /// [`Error::Cancelled`].
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        Self::load_with_progress(path, options, &mut |_, _| {})
    }

    /// As [`load`](Self::load), telling `progress` the layers loaded and the layers in all.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with_progress(
        path: impl AsRef<Path>,
        options: &LoadOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let Opened { model, tokenizer, template, pack } = open::open(path.as_ref(), options, progress)?;
        let ModelShape { vocab_size, context_length: longest, .. } = model.shape();
        if tokenizer.vocab_size() > vocab_size {
            let reason = format!("{} tokens, the model has {vocab_size}", tokenizer.vocab_size());
            return Err(Error::InvalidTokenizer { reason });
        }
        let context_length = options.context_length.unwrap_or(longest.min(DEFAULT_CONTEXT_MAX));
        if !(1..=longest).contains(&context_length) {
            let reason = format!("{context_length} is not between 1 and the model's {longest}");
            return Err(Error::InvalidOption { option: "context_length", reason });
        }
        Ok(Self(Arc::new(Inner {
            model,
            pack: RwLock::new(pack.map(Arc::new)),
            tokenizer,
            template,
            device: options.device,
            kv_type: options.kv_type,
            context_length,
            identity: OnceLock::new(),
            #[cfg(feature = "constrain")]
            constraints: OnceLock::new(),
        })))
    }

    /// A conversation with an empty KV cache.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if memory does not allow the context.
    pub fn session(&self) -> Result<Session> {
        Session::new(self.clone())
    }

    /// The model as a [`Runner`], for callers that work with tokens and logits: with the pack that is in it, if any.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if memory does not allow the context.
    pub fn runner(&self) -> Result<Box<dyn Runner>> {
        self.runner_with(self.pack().as_deref())
    }

    /// An empty sequence on the base model, or with `pack` in it.
    pub(super) fn runner_with(&self, pack: Option<&MergedPack>) -> Result<Box<dyn Runner>> {
        match pack.and_then(|pack| pack.model.as_ref()) {
            Some(specialized) => specialized.runner(self.0.context_length),
            None => self.0.model.runner(self.0.context_length),
        }
    }

    /// Makes a runner of this engine go on as the base model, or as the one with `pack` in it, empty.
    pub(super) fn change_runner(&self, runner: &mut Box<dyn Runner>, pack: Option<&MergedPack>) -> Result<()> {
        let changed = match pack.and_then(|pack| pack.model.as_ref()) {
            Some(specialized) => specialized.put_into(&mut **runner),
            None => self.0.model.put_into(&mut **runner),
        };
        if !changed {
            *runner = self.runner_with(pack)?;
        }
        Ok(())
    }

    /// Layers, vocabulary and longest context of the model.
    pub fn shape(&self) -> ModelShape {
        self.0.model.shape()
    }

    /// What the model is in full: sizes, attention, rotation. `None` of a graph that another program made: what it computes
    /// is not known.
    pub fn config(&self) -> Option<&Config> {
        self.0.model.config()
    }

    /// What became of each preferred execution provider of ONNX Runtime, in the order of preference; empty on other
    /// devices.
    pub fn providers(&self) -> Vec<ProviderOutcome> {
        self.0.model.providers()
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// The chat template in use.
    pub fn template(&self) -> &ChatTemplate {
        &self.0.template
    }

    /// Context of a session, in tokens.
    pub fn context_length(&self) -> usize {
        self.0.context_length
    }

    /// What a pack or saved prefix must match. The first call reads the whole file once to digest it.
    pub fn identity(&self) -> &ModelIdentity {
        self.0.identity.get_or_init(|| self.0.model.identity(&self.0.tokenizer, &self.0.template))
    }

    /// Compiles a constraint; the tokenizer's trie is built once, at the first.
    #[cfg(feature = "constrain")]
    pub(super) fn compile(&self, constraint: &Constraint) -> Result<ConstraintState> {
        let compiler = match self.0.constraints.get() {
            Some(compiler) => compiler,
            None => {
                let compiler = ConstraintCompiler::new(self.tokenizer())?;
                self.0.constraints.get_or_init(|| compiler)
            }
        };
        compiler.compile(constraint)
    }
}
