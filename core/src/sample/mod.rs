//! Logits to the next token.
//!
//! ```text
//! logits ─▶ log-probabilities (on request, of the raw logits)
//!        ─▶ repetition penalty ─▶ constraint's mask
//!        ─▶ temperature 0: the likeliest token
//!        ─▶ else top-k ─▶ top-p ─▶ min-p ─▶ temperature ─▶ draw
//! ```
//!
//! Top-p and min-p look at the probabilities before temperature, so raising the temperature flattens the choice
//! among the tokens that are kept and does not let in the unlikely ones.

#[cfg(feature = "constrain")]
mod constraint;
mod mask;
mod options;
mod random;
mod sampler;

#[cfg(feature = "constrain")]
pub use constraint::{Constraint, ConstraintCompiler, ConstraintState};
pub use mask::TokenMask;
pub use options::SamplerOptions;
pub use sampler::{Sampled, Sampler};

#[cfg(test)]
mod tests;
