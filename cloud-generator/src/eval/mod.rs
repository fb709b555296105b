//! Evaluation: how well an edge model does tasks, by arm.
//!
//! An *arm* is a way to tell the model its task: not at all, a prompt in its context, examples in its context, the pack
//! that a generator made of the prompt, the pack of *another* task's prompt (the control that shows whether a pack carries its
//! own), one multi-task LoRA or token-routed experts for everything, or a LoRA that its examples alone decide. Items with choices are answered by log-likelihood with the semantics
//! of lm-evaluation-harness; open ones by greedy text, scored by exact match and ROUGE-L.

mod arm;
mod format;
mod html;
mod lorahub;
mod packs;
mod refining;
mod report;
mod run;
mod score;
mod statistics;
mod task;
mod token_routed;

pub use arm::Arm;
pub use format::{Format, Request};
pub use html::html;
pub use lorahub::lorahub;
pub use packs::{PackSources, Packs};
pub use refining::RefineSource;
pub use report::{ArmSummary, Difference, Report, Section, TaskSummary};
pub use run::{EvalOptions, EvalProgress, Evaluation, Outcome, evaluate};
pub use score::{Score, log_likelihoods, rank, rouge_l};
pub use statistics::{Estimate, balanced, macro_mean, paired};
pub use task::{EvalTask, select};
pub use token_routed::TokenRouted;
