//! What this package's programs share: where models lie, running and measuring processes, the arms that a specialised
//! model is compared with, and tables.

pub mod arms;
pub mod models;
#[cfg(feature = "onnx")]
pub mod onnx;
pub mod process;
mod stand_in;
mod table;
mod text;

pub use stand_in::random_lora;
pub use table::Table;
pub use text::{repository_text, text_of_tokens};
