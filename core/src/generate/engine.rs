use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};

use super::device::Device;
use super::model::Model;
use super::session::Session;
use super::specialize::MergedPack;
use crate::chat::ChatTemplate;
use crate::gguf::GgufFile;
use crate::merge::SavedPack;
use crate::model::{Config, OnnxOptions, ProviderOutcome, Runner};
#[cfg(feature = "onnx")]
use crate::model::{Decoder, Onnx};
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
    /// Context of a session in tokens; `None` takes the model's own, up to 4,096.
    pub context_length: Option<usize>,
    /// A Hugging Face `tokenizer.json` to use instead of the file's own tokenizer.
    pub tokenizer_json: Option<PathBuf>,
    /// How [`Device::Onnx`] is used.
    pub onnx: OnnxOptions,
    /// Stops loading from another thread.
    pub cancel: CancelToken,
}

/// Longest context that is taken without being asked for, in tokens: its KV cache is memory of the app.
const DEFAULT_CONTEXT_MAX: usize = 4_096;
/// The model file in a folder.
const MODEL_FILE: &str = "model.gguf";

/// A loaded model, ready for any number of sessions. Clones share it; it may be used from any thread.
#[derive(Clone)]
pub struct Engine(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) file: GgufFile,
    pub(super) model: Box<dyn Model>,
    #[cfg(feature = "onnx")]
    onnx: Option<Arc<Decoder<Onnx>>>,
    /// The pack in the model; sessions look here at each turn.
    pub(super) pack: RwLock<Option<Arc<MergedPack>>>,
    pub(super) tokenizer: Tokenizer,
    pub(super) template: ChatTemplate,
    pub(super) device: Device,
    context_length: usize,
    identity: OnceLock<ModelIdentity>,
    #[cfg(feature = "constrain")]
    constraints: OnceLock<ConstraintCompiler>,
}

impl Engine {
    /// Loads the GGUF file at `path`, or the folder that `export_onnx` wrote.
    ///
    /// # Errors
    /// Of [`Device::Onnx`], [`Error::LibraryMissing`], [`Error::LibraryTooOld`] and [`Error::InvalidGraph`];
    /// [`Error::Io`]; the errors of [`GgufFile::open`], [`Decoder::load`](crate::model::Decoder::load) and the tokenizer;
    /// [`Error::InvalidOption`]; [`Error::Cancelled`].
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
        let path = path.as_ref();
        // An exported folder holds the model file it was made from.
        let file = GgufFile::open(if path.is_dir() { path.join(MODEL_FILE) } else { path.to_owned() })?;
        let loaded = options.device.load(path, &file, options, progress)?;
        let model = loaded.model;
        let tokenizer = match &options.tokenizer_json {
            Some(path) => Tokenizer::from_json(path)?,
            None => Tokenizer::from_gguf(file.metadata())?,
        };
        if tokenizer.vocab_size() > model.config().vocab_size {
            let reason = format!("{} tokens, the model has {}", tokenizer.vocab_size(), model.config().vocab_size);
            return Err(Error::InvalidTokenizer { reason });
        }
        let template = ChatTemplate::from_gguf(file.metadata(), &tokenizer)?;
        let trained = model.config().context_length;
        let context_length = options.context_length.unwrap_or(trained.min(DEFAULT_CONTEXT_MAX));
        if !(1..=trained).contains(&context_length) {
            let reason = format!("{context_length} is not between 1 and the model's {trained}");
            return Err(Error::InvalidOption { option: "context_length", reason });
        }
        let pack = SavedPack::read(file.metadata())?;
        let pack = pack.map(|(saved, mode)| Arc::new(MergedPack::from_saved(saved, mode)));
        Ok(Self(Arc::new(Inner {
            file,
            model,
            #[cfg(feature = "onnx")]
            onnx: loaded.onnx,
            pack: RwLock::new(pack),
            tokenizer,
            template,
            device: options.device,
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

    /// What the model is: layers, sizes, attention.
    pub fn config(&self) -> &Config {
        self.0.model.config()
    }

    /// What became of each preferred execution provider of ONNX Runtime, in the order of preference; empty on other
    /// devices.
    pub fn providers(&self) -> Vec<ProviderOutcome> {
        #[cfg(feature = "onnx")]
        if let Some(decoder) = &self.0.onnx {
            return decoder.backend.providers(decoder);
        }
        Vec::new()
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
        self.0.identity.get_or_init(|| {
            ModelIdentity::of(&self.0.file, &self.0.tokenizer).expect("a loaded model has an architecture and an FFN")
        })
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
