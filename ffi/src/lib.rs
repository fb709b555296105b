//! Edgeweld's surface for Kotlin, Swift and Python. It converts types and calls the `edgeweld` crate; it decides nothing.
//!
//! Functions whose name ends in `_blocking` work for longer than a frame: call them from a background thread, or use
//! the wrappers of each language, which do (`Flow`, `AsyncThrowingStream`, generators). Listeners are called on the
//! thread that called.
//!
//! A panic in Rust arrives as an exception. The engine stays usable; a session in which it happened is closed, and
//! says so.

mod direct_listener;
mod engine;
mod error;
mod generate;
mod live;
mod log_listener;
mod merge;
mod message;
mod onnx;
mod pack;
mod session;
mod task;

pub use engine::{Device, Engine, KvType, LoadListener, LoadOptions, ModelInfo};
pub use error::{PackRefusal, SdkError};
pub use generate::{
    Arm, Constraint, FinishReason, GenerateOptions, Generation, SamplerOptions, Token, TokenListener, TokenLogprob,
};
pub use live::live_object_count;
pub use log_listener::{LogLevel, LogListener, set_log_listener};
pub use merge::{MergeListener, MergeMode, MergeOptions, MergeProgress, MergeReport, MergeStage, MergedPack};
pub use message::{Message, Role, ToolCall};
pub use onnx::{OnnxOptions, Provider, ProviderOutcome};
pub use pack::{
    DownloadListener, DownloadOptions, DownloadProgress, Measurement, PackInfo, PackStore, StoreOptions, VerifiedPack,
};
pub use session::Session;
pub use task::TaskHandle;

uniffi::setup_scaffolding!();
