//! Refining a pack: the edge model with the prompt in its context teaches the one without it (context distillation).
//!
//! ```text
//! queries ─▶ Teacher ─▶ answers with top-k probabilities ─▶ Student ─▶ LoraSet
//!              with the prompt                  KL          without the prompt
//! ```
//!
//! The teacher runs once, on the fast CPU backend, and everything it says is kept. The student is the same model on the
//! differentiable backend with a LoRA that starts from zero or from a generator's. Queries are split three ways: `train`
//! is learnt from, `dev` decides when to stop, `test` is only measured, and goes into the pack's manifest.
//!
//! Queries that have answers need no teacher: the answers are learnt, which can do more than the prompted model does.

mod answer;
mod fidelity;
mod options;
mod queries;
mod run;
mod state;
mod student;
mod teacher;

pub use answer::{Answer, Distribution};
pub use fidelity::{Fidelity, measure};
pub use options::RefineOptions;
pub use queries::{Query, Split, assign_splits, from_prompt, read_queries};
pub use run::{Progress, Refined, refine};
pub use student::Student;
pub use teacher::Teacher;
