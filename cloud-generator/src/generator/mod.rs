//! A generator: its configuration, its trained parameters, and the forward pass from prompts to gates and LoRAs.

mod config;
mod forward;
mod init;
mod lm;
mod parameters;
mod reading;
mod store;

pub use config::{GeneratorConfig, Reading, Routing};
pub use forward::{Generator, PromptGates};
pub use lm::{LanguageModel, user_turn};
pub use parameters::Parameters;
pub use reading::PromptState;
pub use store::GeneratorInfo;
