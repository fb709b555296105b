use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Error, Result};

/// Where the candle backend computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The CPU, in dequantised f32.
    #[default]
    Cpu,
    /// The system's Apple GPU (feature `metal`).
    Metal,
    /// An NVIDIA GPU (feature `cuda`).
    Cuda {
        /// The GPU's number, from 0.
        index: usize,
    },
}

impl Device {
    /// `cpu`, `metal` or `cuda`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Metal => "metal",
            Self::Cuda { .. } => "cuda",
        }
    }

    pub(super) fn open(self) -> Result<candle_core::Device> {
        let unavailable = |reason: String| Error::DeviceUnavailable { device: self.name(), reason };
        let open = || match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Metal => candle_core::Device::new_metal(0),
            Self::Cuda { index } => candle_core::Device::new_cuda(index),
        };
        // candle panics where no Metal device is listed or libcuda is missing.
        match catch_unwind(AssertUnwindSafe(open)) {
            Ok(Ok(device)) => Ok(device),
            Ok(Err(error)) => Err(unavailable(error.to_string())),
            Err(_) => Err(unavailable("no such device on this system".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(not(feature = "metal"))]
    fn a_device_whose_feature_is_not_compiled_in_is_unavailable_by_name() {
        let error = Device::Metal.open().unwrap_err();
        assert!(matches!(error, Error::DeviceUnavailable { device: "metal", .. }), "{error}");
    }
}
