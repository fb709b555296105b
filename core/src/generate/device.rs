use std::path::Path;
use std::sync::Arc;

use super::engine::LoadOptions;
use super::model::Model;
use crate::gguf::GgufFile;
#[cfg(feature = "onnx")]
use crate::model::Onnx;
use crate::model::{Cpu, CpuOptions, Decoder, LoadProgress};
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
    /// ONNX Runtime (feature `onnx`), on a folder that `export_onnx` wrote; `LoadOptions::onnx` says how.
    Onnx,
}

/// A model on its device.
pub(super) struct Loaded {
    pub(super) model: Box<dyn Model>,
    /// The same model, for what only ONNX Runtime has.
    #[cfg(feature = "onnx")]
    pub(super) onnx: Option<Arc<Decoder<Onnx>>>,
}

impl From<Box<dyn Model>> for Loaded {
    fn from(model: Box<dyn Model>) -> Self {
        Self {
            model,
            #[cfg(feature = "onnx")]
            onnx: None,
        }
    }
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
    ) -> Result<Loaded> {
        let (threads, cancel) = (options.threads, &options.cancel);
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
            let backend = Arc::new(Candle::new(device)?);
            let model: Box<dyn Model> = Box::new(Arc::new(Decoder::load(file, backend, cancel, progress)?));
            return Ok(model.into());
        }
        #[cfg(feature = "onnx")]
        if self == Self::Onnx {
            let backend = Arc::new(Onnx::open(path, file, &options.onnx, threads)?);
            let mut decoder = Decoder::load(file, backend.clone(), cancel, progress)?;
            let longest = backend.context_length().unwrap_or(usize::MAX);
            decoder.config.context_length = decoder.config.context_length.min(longest);
            let decoder = Arc::new(decoder);
            backend.prepare(&decoder)?;
            return Ok(Loaded { model: Box::new(decoder.clone()), onnx: Some(decoder) });
        }
        let _ = path;
        if self != Self::Cpu {
            let feature = if self == Self::Onnx { "onnx" } else { "candle" };
            let reason = format!("built without feature `{feature}`");
            return Err(Error::DeviceUnavailable { device: self.name(), reason });
        }
        let backend = Arc::new(Cpu::new(&CpuOptions { threads })?);
        let model: Box<dyn Model> = Box::new(Arc::new(Decoder::load(file, backend, cancel, progress)?));
        Ok(model.into())
    }
}
