//! Edgeweld's edge runtime: loads a small quantised language model, merges a *pack* (a long system
//! prompt turned into LoRA weights) into it, and generates without the prompt.
//!
//! ```no_run
//! use edgeweld::{chat::Message, generate::*};
//!
//! # fn main() -> edgeweld::Result<()> {
//! let engine = Engine::load("model.gguf", &LoadOptions { threads: Some(2), ..Default::default() })?;
//! let mut session = engine.session()?;
//! let mut show = |token: &Token| print!("{}", token.text);
//! let answer = session.chat(&[Message::user("What is the capital of France?")], &GenerateOptions::default(), &mut show)?;
//! println!("\n{:?}, {} tokens", answer.finish_reason, answer.generated_tokens);
//! # Ok(())
//! # }
//! ```
//!
//! # Logs
//!
//! Through the [`log`] facade; the app chooses a logger and a level. Nothing of a conversation is ever logged.
//!
//! | level | what |
//! |---|---|
//! | `error` | never: what fails is returned as an [`Error`] |
//! | `warn` | the work goes on, but not as asked: a damaged file in the cache was deleted, a model file does not name its pre-tokenizer, a thread could not be started |
//! | `info` | once per load, merge or download: the model, the kernels and threads in use, the template when the file has none, how a pack was merged and why |
//! | `debug` | once per turn: what answered, tokens and milliseconds |
//!
//! Progress is not logged but reported: [`Engine::load_with_progress`](generate::Engine::load_with_progress),
//! [`TokenListener::on_prefill`](generate::TokenListener::on_prefill).

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
mod huge_pages;

pub use cancel::CancelToken;
pub use digest::Digest;
pub use error::{Error, Result};
