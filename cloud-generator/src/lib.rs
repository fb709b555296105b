//! The server side of Edgeweld: from a system prompt to the pack that specialises an edge model.
//!
//! ```text
//! prompt ─▶ cloud_lm ─▶ router ─▶ expert pool ─▶ pack
//!   &str     MetaTokens   Gates      LoraSet
//! ```
//!
//! [`method`] is the paper's mathematics, [`grad`] the differentiable backend of [`edgeweld::model::Decoder`].

pub mod data;
pub mod edge_model;
mod error;
pub mod generator;
pub mod grad;
pub mod method;
pub mod refine;
pub mod train;

pub use error::{Error, Result};
