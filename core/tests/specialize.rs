//! Packs on the CPU backend.

mod models;
#[path = "suite/packs.rs"]
mod packs;

use std::path::Path;

use edgeweld::generate::{Engine, LoadOptions};

fn load(model: &Path, options: LoadOptions) -> Engine {
    Engine::load(model, &LoadOptions { threads: Some(2), ..options }).unwrap()
}
