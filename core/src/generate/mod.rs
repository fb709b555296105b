//! Text from a model: [`Engine`] loads it, [`Session`] holds a conversation.
//!
//! ```no_run
//! use edgeweld::chat::Message;
//! use edgeweld::generate::{Engine, GenerateOptions, LoadOptions, Token};
//!
//! # fn main() -> edgeweld::Result<()> {
//! let engine = Engine::load("model.gguf", &LoadOptions::default())?;
//! let mut session = engine.session()?;
//! let mut print = |token: &Token| print!("{}", token.text);
//! let answer = session.chat(&[Message::user("What is Rust?")], &GenerateOptions::default(), &mut print)?;
//! println!("\n{} tokens, {:.0} tokens/s", answer.generated_tokens, answer.decode_tokens_per_second);
//! # Ok(())
//! # }
//! ```

mod answer;
mod arm;
mod choose;
mod device;
mod engine;
#[cfg(feature = "onnx")]
mod genai;
mod model;
mod open;
mod options;
mod prefix;
mod session;
mod specialize;
mod stop;

pub use arm::Arm;
pub use device::Device;
pub use engine::{Engine, LoadOptions};
pub use options::{FinishReason, GenerateOptions, Generation, Token, TokenListener};
pub use session::Session;
pub use specialize::{Combination, MergedPack};
