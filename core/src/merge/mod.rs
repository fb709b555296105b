//! Putting a pack into quantised weights, and proving that it arrived.
//!
//! Adding a small delta to 4-bit weights and rounding to nearest gives the base back: the delta is lost in silence.
//! So every way in measures what survived. See [`MergeMode`] for the ways, [`MergeReport`] for the proof.

mod combine;
mod options;
mod proof;
mod report;
mod requantize;
mod round;
mod save;
mod specialize;
#[cfg(test)]
mod tests;

pub use combine::{combine_gates, combine_loras};
pub use options::{MergeMode, MergeOptions, Rounding};
pub use proof::PROBE_TEXTS;
pub use report::{Attempt, MergeReport, ProbeReport, Refusal, TensorReport};
pub use requantize::{MergedTensor, Requantized, requantize_unverified};
pub use save::{BASE_KEY, MODE_KEY, PACK_KEY, PROMPT_KEY, RESIDUAL_PROMPT_KEY, SavedPack, save_merged};
#[cfg(feature = "onnx")]
pub(crate) use specialize::side_path_report;
pub use specialize::{MergeProgress, MergeStage, Specialization, merge, merge_unverified, with_weights};
