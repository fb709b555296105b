//! Training a generator: both language models are frozen, the meta embeddings, router, pool and cloud LoRA learn.

mod adamw;
mod checkpoint;
mod config;
mod sampler;
mod trainer;

pub use adamw::AdamW;
pub use config::{TrainConfig, Weighting};
pub use sampler::{Sampler, Step};
pub use trainer::{StepReport, Trainer};
