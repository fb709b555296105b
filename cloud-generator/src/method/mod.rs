//! The method's mathematics (LoRA-Gen, Eq. 3 and 6–9) on candle tensors, differentiable, in f32 or f64.
//!
//! Meta tokens `[rows, cloud_hidden]` become router logits `[rows, expert]`, gates `[rows, expert]`, and with the
//! [`ExpertPool`] the LoRA of each row, where a row is one layer of one prompt.

mod gates;
mod pool;
mod router;

pub use gates::{Gates, gumbel_noise, load_balance};
pub use pool::{Composition, ExpertPool, PoolShape};
pub use router::{BatchNorm, BatchStatistics, Router};
