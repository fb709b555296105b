//! The CPU backend against reference figures.

#[path = "suite/golden.rs"]
mod golden;
mod models;

use std::path::Path;

use edgeweld::generate::{Engine, LoadOptions};

fn load(model: &Path, options: LoadOptions) -> Engine {
    Engine::load(model, &options).unwrap()
}
