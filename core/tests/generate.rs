//! Sessions on the CPU backend, and what tells them from other devices'.

mod models;
#[path = "suite/sessions.rs"]
mod sessions;

use std::path::Path;

use edgeweld::Error;
#[cfg(feature = "candle")]
use edgeweld::generate::Device;
use edgeweld::generate::{Engine, GenerateOptions, LoadOptions, Token};
use edgeweld::model::KvType;

fn load(model: &Path, options: LoadOptions) -> Engine {
    Engine::load(model, &LoadOptions { threads: Some(2), ..options }).unwrap()
}

#[test]
fn an_8_bit_kv_cache_is_saved_and_restored_and_not_taken_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefix");
    let model = models::path(models::SMOLLM2);
    let engine = load(&model, LoadOptions { kv_type: KvType::Q8, ..Default::default() });
    let some = GenerateOptions { max_tokens: 8, ..Default::default() };
    let mut session = engine.session().unwrap();
    let answer = session.complete("The capital of France is", &some, &mut |_: &Token| ()).unwrap();
    assert!(answer.text.starts_with(" Paris"), "{}", answer.text);
    session.save_prefix(&path).unwrap();

    let mut restored = engine.session().unwrap();
    assert_eq!(restored.load_prefix(&path).unwrap(), session.cached_tokens());
    let again = restored.complete("The capital of France is", &some, &mut |_: &Token| ()).unwrap();
    assert_eq!((again.reused_tokens, again.text), (again.prompt_tokens - 1, answer.text));

    let mut half = load(&model, LoadOptions::default()).session().unwrap();
    let refused = half.load_prefix(&path);
    assert!(matches!(refused, Err(Error::PrefixMismatch { field: "KV cache", .. })), "{refused:?}");
    half.complete("The capital of France is", &some, &mut |_: &Token| ()).unwrap();
    let share = session.cache_size_bytes() as f64 / half.cache_size_bytes() as f64;
    assert!((0.5..0.56).contains(&share), "an 8-bit cache takes {share} of an f16 one");
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
    let exact = LoadOptions { device: Device::Exact, kv_type: KvType::Q8, ..Default::default() };
    let refused = Engine::load(&model, &exact).err();
    assert!(matches!(refused, Some(Error::InvalidOption { option: "kv_type", .. })), "{refused:?}");
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
