//! Edgeweld's edge runtime: loads a small quantised language model, merges a *pack* (a long system
//! prompt turned into LoRA weights) into it, and generates without the prompt.

pub mod chat;
#[cfg(feature = "download")]
pub mod download;
pub mod generate;
pub mod gguf;
pub mod kernels;
pub mod lora;
pub mod merge;
pub mod model;
pub mod pack;
pub mod quant;
pub mod sample;
pub mod threads;
pub mod tokenizer;
pub mod verify;

mod atomic_file;
mod cancel;
mod digest;
mod error;

pub use cancel::CancelToken;
pub use digest::Digest;
pub use error::{Error, Result};
