use edgeweld::model;
pub use edgeweld::model::{Provider, ProviderOutcome};

/// How ONNX Runtime is used. Its shared library is Microsoft's and comes with the app: in the package
/// `com.microsoft.onnxruntime:onnxruntime-android` or `onnxruntime` on the JVM, `onnxruntime-c` on Apple's systems, the
/// Python package `onnxruntime`.
#[derive(Clone, Debug, Default, PartialEq, uniffi::Record)]
pub struct OnnxOptions {
    /// Path of the shared library, 1.22 or newer; by default its usual name where the system looks, which on Android
    /// includes the app's own libraries. A process loads one library: the first load decides.
    #[uniffi(default = None)]
    pub library: Option<String>,
    /// Preferred execution providers, best first. Those that are missing or cannot run the model are passed over; the
    /// CPU takes what is left.
    #[uniffi(default = [])]
    pub providers: Vec<Provider>,
}

impl From<OnnxOptions> for model::OnnxOptions {
    fn from(options: OnnxOptions) -> Self {
        Self { library: options.library.map(Into::into), providers: options.providers }
    }
}

/// An execution provider of ONNX Runtime.
#[uniffi::remote(Enum)]
pub enum Provider {
    /// ONNX Runtime's own CPU kernels.
    Cpu,
    /// XNNPACK: CPUs of phones.
    Xnnpack,
    /// Android's NNAPI.
    Nnapi,
    /// Qualcomm's NPUs.
    Qnn,
    /// Apple's Core ML.
    CoreMl,
    /// NVIDIA's GPUs.
    Cuda,
}

/// What became of one preferred execution provider.
#[uniffi::remote(Record)]
pub struct ProviderOutcome {
    /// The provider.
    pub provider: Provider,
    /// Why it is not in use; absent if it is.
    pub refusal: Option<String>,
}
