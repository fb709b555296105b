//! One scenario for every language. [`Stage`] is what it plays on: a real model, packs for it, and a server on the
//! loopback interface that cuts connections. [`scenario`] is the Rust version; what it saw is what the versions in
//! `python/`, `kotlin/` and `swift/` must see too.

mod packs;
pub mod scenario;
mod server;
mod stage;

pub use stage::{Facts, Stage};
