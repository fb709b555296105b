use std::sync::Arc;

use edgeweld::{generate, model};

use crate::live::Live;
use crate::task::Running;
use crate::{OnnxOptions, ProviderOutcome, SdkError, Session, TaskHandle};

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Device {
    /// This library's own kernels on the CPU: small and fast on every phone.
    Cpu,
    /// The system's Apple GPU, in a library built with it.
    Metal,
    /// ONNX Runtime on a folder with an exported model, in a library built with it; `LoadOptions.onnx` says how.
    Onnx,
}

/// How sessions keep their keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum KvType {
    /// Two bytes each.
    F16,
    /// A byte each and a scale for every 32, 53% of the memory; on the CPU.
    Q8,
}

/// How a model is loaded.
#[derive(Clone, Debug, Default, PartialEq, uniffi::Record)]
pub struct LoadOptions {
    /// What computes; the CPU by default.
    #[uniffi(default = None)]
    pub device: Option<Device>,
    /// Threads that compute; one per performance core by default.
    #[uniffi(default = None)]
    pub threads: Option<u32>,
    /// How sessions keep their keys and values; in f16 by default.
    #[uniffi(default = None)]
    pub kv_type: Option<KvType>,
    /// Context of a session in tokens; by default the model's own, up to 4,096.
    #[uniffi(default = None)]
    pub context_length: Option<u32>,
    /// Path of a Hugging Face `tokenizer.json` to use instead of the model file's own tokenizer.
    #[uniffi(default = None)]
    pub tokenizer_json: Option<String>,
    /// How ONNX Runtime is used, if it is the device.
    #[uniffi(default = None)]
    pub onnx: Option<OnnxOptions>,
}

/// Is told how loading goes, on the thread that called.
#[uniffi::export(foreign)]
pub trait LoadListener: Send + Sync {
    /// This many layers are loaded. An exception ends the call and arrives at the caller.
    fn on_load(&self, done_layers: u64, total_layers: u64) -> Result<(), SdkError>;
}

/// What a loaded model is. The digests are what a server needs to choose the right pack.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct ModelInfo {
    /// Architecture, such as `llama`.
    pub architecture: String,
    /// Main block type of the weights, such as `Q4_1`.
    pub quantization: String,
    /// Digest of the model file, `sha256:…`.
    pub base_digest: String,
    /// Digest of the tokenizer.
    pub tokenizer_digest: String,
    /// Decoder layers.
    pub layer_count: u32,
    /// Tokens that the model knows.
    pub vocab_size: u32,
    /// Context of a session, in tokens.
    pub context_length: u32,
}

/// A loaded model, for any number of sessions. It may be used from any thread. Its memory is freed when it and all its
/// sessions are closed.
#[derive(uniffi::Object)]
pub struct Engine {
    pub(crate) inner: generate::Engine,
    _live: Live,
}

#[uniffi::export]
impl Engine {
    /// Loads the GGUF file at a path, or the folder of an exported model for ONNX Runtime. Blocks for up to a second;
    /// weights are memory-mapped, so the files must stay.
    #[uniffi::constructor(default(listener = None, task = None, options))]
    pub fn load_blocking(
        path: String,
        options: LoadOptions,
        listener: Option<Arc<dyn LoadListener>>,
        task: Option<Arc<TaskHandle>>,
    ) -> Result<Arc<Self>, SdkError> {
        let running = Running::new(task);
        let options = generate::LoadOptions {
            device: match options.device {
                None | Some(Device::Cpu) => generate::Device::Cpu,
                Some(Device::Metal) => generate::Device::Metal,
                Some(Device::Onnx) => generate::Device::Onnx,
            },
            threads: options.threads.map(|threads| threads as usize),
            kv_type: match options.kv_type {
                None | Some(KvType::F16) => model::KvType::F16,
                Some(KvType::Q8) => model::KvType::Q8,
            },
            context_length: options.context_length.map(|length| length as usize),
            tokenizer_json: options.tokenizer_json.map(Into::into),
            onnx: options.onnx.unwrap_or_default().into(),
            cancel: running.cancel().clone(),
        };
        let mut failure = None;
        let result = generate::Engine::load_with_progress(path, &options, &mut |done, total| {
            if let (Some(listener), None) = (&listener, &failure)
                && let Err(error) = listener.on_load(done as u64, total as u64)
            {
                failure = Some(error);
                running.cancel().cancel();
            }
        });
        match failure {
            Some(failure) => Err(failure),
            None => Ok(Arc::new(Self { inner: result?, _live: Live::new() })),
        }
    }

    /// A new conversation.
    pub fn session(&self) -> Result<Arc<Session>, SdkError> {
        Ok(Session::new(self.inner.session()?))
    }

    /// What the model is. The first call reads the whole file once, to digest it.
    pub fn info(&self) -> Result<ModelInfo, SdkError> {
        let (identity, shape) = (self.inner.identity(), self.inner.shape());
        Ok(ModelInfo {
            architecture: identity.architecture.clone(),
            quantization: identity.quantization.clone(),
            base_digest: identity.base.to_string(),
            tokenizer_digest: identity.tokenizer.to_string(),
            layer_count: shape.layer_count as u32,
            vocab_size: shape.vocab_size as u32,
            context_length: self.inner.context_length() as u32,
        })
    }

    /// What became of each preferred execution provider of ONNX Runtime; empty on other devices.
    pub fn providers(&self) -> Result<Vec<ProviderOutcome>, SdkError> {
        Ok(self.inner.providers())
    }

    /// Tokens that a text has in this model.
    pub fn count_tokens(&self, text: String) -> Result<u64, SdkError> {
        Ok(self.inner.tokenizer().encode(&text, Default::default())?.len() as u64)
    }
}
