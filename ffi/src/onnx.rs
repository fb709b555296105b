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

/// An execution provider of ONNX Runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
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
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct ProviderOutcome {
    /// The provider.
    pub provider: Provider,
    /// Why it is not in use; absent if it is.
    pub refusal: Option<String>,
}

#[cfg(feature = "onnx")]
mod convert {
    use edgeweld::model;

    use super::{OnnxOptions, Provider, ProviderOutcome};

    impl From<Provider> for model::Provider {
        fn from(provider: Provider) -> Self {
            match provider {
                Provider::Cpu => Self::Cpu,
                Provider::Xnnpack => Self::Xnnpack,
                Provider::Nnapi => Self::Nnapi,
                Provider::Qnn => Self::Qnn,
                Provider::CoreMl => Self::CoreMl,
                Provider::Cuda => Self::Cuda,
            }
        }
    }

    impl From<OnnxOptions> for model::OnnxOptions {
        fn from(options: OnnxOptions) -> Self {
            Self {
                library: options.library.map(Into::into),
                providers: options.providers.into_iter().map(Into::into).collect(),
            }
        }
    }

    pub(crate) fn outcomes(engine: &edgeweld::generate::Engine) -> Vec<ProviderOutcome> {
        const ALL: [Provider; 6] =
            [Provider::Cpu, Provider::Xnnpack, Provider::Nnapi, Provider::Qnn, Provider::CoreMl, Provider::Cuda];
        let outcome = |outcome: model::ProviderOutcome| {
            let provider = ALL.into_iter().find(|provider| model::Provider::from(*provider) == outcome.provider)?;
            Some(ProviderOutcome { provider, refusal: outcome.refusal })
        };
        engine.providers().into_iter().filter_map(outcome).collect()
    }
}
#[cfg(feature = "onnx")]
pub(crate) use convert::outcomes;

/// A library built without ONNX Runtime's backend loads no engine that has any.
#[cfg(not(feature = "onnx"))]
pub(crate) fn outcomes(_: &edgeweld::generate::Engine) -> Vec<ProviderOutcome> {
    Vec::new()
}
