//! What an app asks of ONNX Runtime. These types are there also in a build without it, so that the bindings have one surface.

use std::path::PathBuf;

/// How ONNX Runtime is used.
#[derive(Clone, Debug, Default)]
pub struct OnnxOptions {
    /// ONNX Runtime's shared library, 1.22 or newer; `None` looks for its usual name where the system looks. A process
    /// loads one library: the first load decides.
    pub library: Option<PathBuf>,
    /// Preferred execution providers, best first. Those that are missing or cannot run the model are passed over; the
    /// CPU takes what is left.
    pub providers: Vec<Provider>,
}

/// An execution provider of ONNX Runtime. The CPU is always there and takes what the others leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

impl Provider {
    /// ONNX Runtime's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPUExecutionProvider",
            Self::Xnnpack => "XnnpackExecutionProvider",
            Self::Nnapi => "NnapiExecutionProvider",
            Self::Qnn => "QNNExecutionProvider",
            Self::CoreMl => "CoreMLExecutionProvider",
            Self::Cuda => "CUDAExecutionProvider",
        }
    }
}

/// What became of one preferred provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderOutcome {
    /// The provider.
    pub provider: Provider,
    /// Why it is not in use; `None` if it is.
    pub refusal: Option<String>,
}
