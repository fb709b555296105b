//! Training a generator: both language models are frozen, the meta embeddings, router, pool and cloud LoRA learn.

mod adamw;
mod checkpoint;
mod config;
mod curves;
mod items;
mod learner;
mod sampler;
mod trainer;

pub use adamw::AdamW;
pub use config::{Schedule, TrainConfig, Weighting};
pub use curves::curves;
pub use items::fits;
pub use learner::Learner;
pub use sampler::{Input, Sample, Sampler, Step};
pub use trainer::{LearnerReport, StepReport, Trainer};
