//! The server side of Edgeweld: from a system prompt to the pack that specialises an edge model.
//!
//! ```text
//! prompt ─▶ cloud_lm ─▶ router ─▶ expert pool ─▶ publish ─▶ serve
//!   &str     MetaTokens   Gates      LoraSet     pack bytes   HTTP
//! ```
//!
//! [`method`] is the paper's mathematics, [`grad`] the differentiable backend of [`edgeweld::model::Decoder`],
//! [`generator`] the stages up to the LoRA; [`publish`] writes packs and [`serve`] hands them out.

pub mod data;
pub mod device;
pub mod edge_model;
mod error;
pub mod eval;
pub mod export;
pub mod files;
pub mod generator;
pub mod grad;
pub mod method;
pub mod publish;
pub mod refine;
pub mod serve;
pub mod train;

pub use error::{Error, Result};
