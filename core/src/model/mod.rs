//! The edge model: configuration, the decoder, and the backends that compute it.

mod answer;
mod backend;
#[cfg(feature = "candle")]
mod candle;
mod config;
mod cpu;
mod decoder;
mod family;
mod find;
mod graph_defect;
mod load;
#[cfg(feature = "onnx")]
mod onnx;
mod onnx_options;
mod read_config;
mod runner;
mod share;

pub use answer::Answer;
pub use backend::{Backend, Sequence};
#[cfg(feature = "candle")]
pub use candle::{Candle, CandleLora, CandleMatrix, CandleSequence, Device};
pub use config::{Activation, AttentionParams, Config, ModelShape, Rope};
pub use cpu::{Cpu, CpuLora, CpuOptions, CpuSequence, KvType};
pub use decoder::{Decoder, Layer, Linear};
pub use family::Family;
pub use find::{find_file, name_fits};
pub use graph_defect::GraphDefect;
pub use load::LoadProgress;
#[cfg(feature = "onnx")]
pub use onnx::{Activations, ExportOptions, Exported, GenaiModel, Onnx, OnnxLora, Positions, Value, export_onnx};
pub use onnx_options::{OnnxOptions, Provider, ProviderOutcome};
pub use runner::{DecoderRunner, LogitRows, Runner};
