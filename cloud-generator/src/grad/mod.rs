//! The differentiable backend: one [`edgeweld::model::Decoder`] serves as frozen cloud LM and frozen edge model.
//!
//! Weights are frozen, so their operators return the gradient of the input only. On the CPU each operator is a
//! fused custom op with its own backward; elsewhere (CUDA) the twins in [`primitive`] run, which are also the
//! tests' reference. Sequences of one batch are packed row after row without padding ([`Batch`]).

mod attention;
mod backend;
mod batch;
mod exp;
mod glu;
mod head;
mod linear;
mod matmul;
mod norm;
pub mod primitive;
mod rope;
#[cfg(test)]
mod tests;
mod token_experts;

pub use backend::{Grad, GradMatrix, LayerTheta, MatrixLora};
pub use batch::{Batch, Prefix};
pub use head::{SparseTarget, head_loss};
pub use linear::{Dropout, GroupedLora};
pub use token_experts::TokenExperts;
