//! Evaluation: how well an edge model does tasks, by arm.
//!
//! An *arm* is a way to tell the model its task: not at all, a prompt in its context, examples in its context, the pack
//! that a generator made of the prompt, the pack of *another* task's prompt (the control that shows whether a pack carries its
//! own), or one multi-task LoRA for everything. Items with choices are answered by log-likelihood with the semantics
//! of lm-evaluation-harness; open ones by greedy text, scored by exact match and ROUGE-L.

mod arm;
mod format;
mod html;
mod report;
mod run;
mod score;
mod statistics;
mod task;

pub use arm::Arm;
pub use format::{Format, Request};
pub use html::html;
pub use report::{ArmSummary, Difference, Report, Section, TaskSummary};
pub use run::{EvalOptions, EvalProgress, Evaluation, Outcome, Packs, evaluate};
pub use score::{Score, rank, rouge_l};
pub use statistics::{Estimate, macro_mean, paired};
pub use task::{EvalTask, select};
