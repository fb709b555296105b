//! A generator: its configuration, its trained parameters, and the forward pass from prompts to gates and LoRAs.

mod config;
mod forward;
mod lm;
mod parameters;
mod store;

pub use config::GeneratorConfig;
pub use forward::{Generator, PromptGates};
pub use lm::{LanguageModel, user_turn};
pub use parameters::Parameters;
pub use store::GeneratorInfo;
