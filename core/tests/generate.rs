//! Sessions on the CPU backend, and what tells them from other devices'.

mod models;
#[path = "suite/sessions.rs"]
mod sessions;

use std::path::Path;

#[cfg(feature = "candle")]
use edgeweld::Error;
#[cfg(feature = "candle")]
use edgeweld::generate::{Device, GenerateOptions, Token};
use edgeweld::generate::{Engine, LoadOptions};

fn load(model: &Path, options: LoadOptions) -> Engine {
    Engine::load(model, &LoadOptions { threads: Some(2), ..options }).unwrap()
}

#[test]
#[cfg(feature = "candle")]
fn a_prefix_of_another_device_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefix");
    let model = models::path(models::SMOLLM2);
    let mut session = load(&model, LoadOptions::default()).session().unwrap();
    let one = GenerateOptions { max_tokens: 1, ..Default::default() };
    session.complete("Hello", &one, &mut |_: &Token| ()).unwrap();
    session.save_prefix(&path).unwrap();
    let exact = LoadOptions { device: Device::Exact, ..Default::default() };
    let refused = load(&model, exact).session().unwrap().load_prefix(&path);
    assert!(matches!(refused, Err(Error::PrefixMismatch { field: "device", .. })), "{refused:?}");
}

#[test]
#[cfg(feature = "candle")]
fn the_exact_device_agrees_with_the_kernels() {
    let exact = LoadOptions { device: Device::Exact, ..Default::default() };
    let mut session = load(&models::path(models::SMOLLM2), exact).session().unwrap();
    let two = GenerateOptions { max_tokens: 2, ..Default::default() };
    let answer = session.complete("The capital of France is", &two, &mut |_: &Token| ()).unwrap();
    assert_eq!(answer.text, " Paris.");
}
