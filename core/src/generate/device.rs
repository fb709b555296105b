use std::path::Path;
use std::sync::Arc;

use super::engine::LoadOptions;
use super::model::{FromFile, Model};
use crate::gguf::GgufFile;
#[cfg(feature = "onnx")]
use crate::model::Onnx;
use crate::model::{Cpu, CpuOptions, Decoder, KvType, LoadProgress};
use crate::{Error, Result};

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// This library's own kernels: weights stay quantised, activations are 16-bit in the products.
    #[default]
    Cpu,
    /// The CPU with dequantised f32 weights and f32 activations (feature `candle`): slow and large, for comparison.
    Exact,
    /// The system's Apple GPU (feature `metal`).
    Metal,
    /// An NVIDIA GPU (feature `cuda`).
    Cuda {
        /// The GPU's number, from 0.
        index: usize,
    },
    /// ONNX Runtime (feature `onnx`), on a folder that `export_onnx` wrote, or one of onnxruntime-genai's that another program
    /// made; `LoadOptions::onnx` says how.
    Onnx,
}

impl Device {
    /// `cpu`, `exact`, `metal`, `cuda` or `onnx`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Exact => "exact",
            Self::Metal => "metal",
            Self::Cuda { .. } => "cuda",
            Self::Onnx => "onnx",
        }
    }

    /// Loads the model of `file` onto this device. `path` is the file, or the folder it lies in.
    pub(super) fn load(
        self,
        path: &Path,
        file: &GgufFile,
        options: &LoadOptions,
        progress: LoadProgress<'_>,
    ) -> Result<Box<dyn Model>> {
        let (threads, kv_type, cancel) = (options.threads, options.kv_type, &options.cancel);
        if self != Self::Cpu && kv_type != KvType::default() {
            let reason = format!("device {} has no {} KV cache", self.name(), kv_type.name());
            return Err(Error::InvalidOption { option: "kv_type", reason });
        }
        #[cfg(feature = "candle")]
        use crate::model::{Candle, Device as CandleDevice};
        #[cfg(feature = "candle")]
        let candle = match self {
            Self::Cpu | Self::Onnx => None,
            Self::Exact => Some(CandleDevice::Cpu),
            Self::Metal => Some(CandleDevice::Metal),
            Self::Cuda { index } => Some(CandleDevice::Cuda { index }),
        };
        #[cfg(feature = "candle")]
        if let Some(device) = candle {
            let decoder = Decoder::load(file, Arc::new(Candle::new(device)?), cancel, progress)?;
            return Ok(Box::new(FromFile { decoder: Arc::new(decoder), file: file.clone() }));
        }
        #[cfg(feature = "onnx")]
        if self == Self::Onnx {
            let backend = Arc::new(Onnx::open(path, file, &options.onnx, threads)?);
            let mut decoder = Decoder::load(file, backend.clone(), cancel, progress)?;
            let longest = backend.context_length().unwrap_or(usize::MAX);
            decoder.config.context_length = decoder.config.context_length.min(longest);
            let decoder = Arc::new(decoder);
            backend.prepare(&decoder)?;
            return Ok(Box::new(FromFile { decoder, file: file.clone() }));
        }
        let _ = path;
        if self != Self::Cpu {
            let feature = if self == Self::Onnx { "onnx" } else { "candle" };
            let reason = format!("built without feature `{feature}`");
            return Err(Error::DeviceUnavailable { device: self.name(), reason });
        }
        let cpu = Cpu::new(&CpuOptions { threads, kv_type })?;
        let decoder = Decoder::load(file, Arc::new(cpu), cancel, progress)?;
        Ok(Box::new(FromFile { decoder: Arc::new(decoder), file: file.clone() }))
    }
}
