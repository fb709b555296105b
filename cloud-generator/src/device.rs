//! Where the cloud LM runs.

use std::panic::catch_unwind;

use crate::{Error, Result};

/// A device by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Device {
    /// An NVIDIA GPU if this program was built with the feature `cuda` and finds one, else the CPU.
    #[default]
    Auto,
    /// The CPU, in f32.
    Cpu,
    /// The first NVIDIA GPU (feature `cuda`).
    Cuda,
}

impl Device {
    /// Opens the device; the log says where `Auto` ended.
    ///
    /// # Errors
    /// [`edgeweld::Error::DeviceUnavailable`] if CUDA was demanded and is not there.
    pub fn open(self) -> Result<candle_core::Device> {
        match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Cuda => cuda(),
            Self::Auto => match cuda() {
                Ok(device) => {
                    log::info!("the cloud LM runs on CUDA");
                    Ok(device)
                }
                Err(error) => {
                    log::info!("the cloud LM runs on the CPU: {error}");
                    Ok(candle_core::Device::Cpu)
                }
            },
        }
    }
}

// candle never falls back by itself: it returns an error, and its driver panics where libcuda is missing.
fn cuda() -> Result<candle_core::Device> {
    let unavailable = |reason: String| Error::Edge(edgeweld::Error::DeviceUnavailable { device: "cuda", reason });
    match catch_unwind(|| candle_core::Device::new_cuda(0)) {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(error)) => Err(unavailable(error.to_string())),
        Err(_) => Err(unavailable("no NVIDIA driver on this system".to_owned())),
    }
}
