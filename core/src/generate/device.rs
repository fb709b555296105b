use std::sync::Arc;

use super::model::Model;
#[cfg(not(feature = "candle"))]
use crate::Error;
use crate::gguf::GgufFile;
use crate::model::{Cpu, CpuOptions, Decoder, LoadProgress};
use crate::{CancelToken, Result};

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
}

impl Device {
    /// `cpu`, `exact`, `metal` or `cuda`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Exact => "exact",
            Self::Metal => "metal",
            Self::Cuda { .. } => "cuda",
        }
    }

    /// Loads the model of `file` onto this device.
    pub(super) fn load(
        self,
        file: &GgufFile,
        threads: Option<usize>,
        cancel: &CancelToken,
        progress: LoadProgress<'_>,
    ) -> Result<Box<dyn Model>> {
        #[cfg(feature = "candle")]
        use crate::model::{Candle, Device as CandleDevice};
        #[cfg(feature = "candle")]
        let candle = match self {
            Self::Cpu => None,
            Self::Exact => Some(CandleDevice::Cpu),
            Self::Metal => Some(CandleDevice::Metal),
            Self::Cuda { index } => Some(CandleDevice::Cuda { index }),
        };
        #[cfg(feature = "candle")]
        if let Some(device) = candle {
            let backend = Arc::new(Candle::new(device)?);
            return Ok(Box::new(Arc::new(Decoder::load(file, backend, cancel, progress)?)));
        }
        #[cfg(not(feature = "candle"))]
        if self != Self::Cpu {
            let reason = "built without feature `candle`".to_owned();
            return Err(Error::DeviceUnavailable { device: self.name(), reason });
        }
        let backend = Arc::new(Cpu::new(&CpuOptions { threads })?);
        Ok(Box::new(Arc::new(Decoder::load(file, backend, cancel, progress)?)))
    }
}
