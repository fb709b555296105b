//! Packs on the real model, as `specialize.rs` has them for the CPU backend.

use std::collections::BTreeMap;
use std::time::Instant;

use edgeweld::chat::Message;
use edgeweld::generate::{Arm, Engine, GenerateOptions, Generation, Session, Token};
use edgeweld::lora::{LayerLora, LoraPair, LoraSet};
use edgeweld::merge::{MergeMode, MergeOptions, MergeReport};
use edgeweld::pack::{
    GeneratorInfo, ModelIdentity, PackInfo, Precision, PromptInfo, RawPack, ResidualPrompt, SecretKey, write_dense,
};
use edgeweld::verify::{TrustPolicy, VerifiedPack, verify};
use edgeweld::{CancelToken, Digest, Error};
use ndarray::Array2;

use super::{load, models};

const PROMPT: &str = "You are a pirate who answers in rhymes.";

fn engine() -> Engine {
    load(&models::path(models::SMOLLM2))
}

/// Random pairs for every target with values up to `size`.
fn lora(engine: &Engine, seed: u64, size: f32) -> LoraSet {
    let config = engine.config();
    let (hidden, ffn) = (config.hidden_size, config.ffn_size);
    let mut state = seed;
    let mut random = |rows: usize, cols: usize| {
        Array2::from_shape_simple_fn((rows, cols), || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
        })
    };
    let mut pair = |inner, outer| Some(LoraPair { a: random(4, inner), b: random(outer, 4) });
    let layers = (0..config.layer_count())
        .map(|_| LayerLora { gate: pair(hidden, ffn), up: pair(hidden, ffn), down: pair(ffn, hidden) })
        .collect();
    LoraSet { scale: 1.0, layers }
}

fn pack_for(model: ModelIdentity, lora: &LoraSet, residual: Option<&str>) -> Vec<u8> {
    let info = PackInfo {
        model,
        prompt: Some(PromptInfo { digest: Digest::of(PROMPT.as_bytes()), token_count: 9 }),
        residual_prompt: residual.map(|text| ResidualPrompt { text: text.to_owned(), token_count: 4 }),
        generator: GeneratorInfo { name: "test".into(), version: "1".into(), settings: BTreeMap::new() },
        quality: Vec::new(),
        labels: BTreeMap::new(),
    };
    write_dense(lora, None, Precision::F16, info, Some(&SecretKey::from_seed(&[1; 32]))).unwrap()
}

/// A pack that changes what the model says.
fn pack(engine: &Engine, seed: u64, residual: Option<&str>) -> VerifiedPack {
    verified(engine, &lora(engine, seed, 0.15), residual)
}

fn verified(engine: &Engine, lora: &LoraSet, residual: Option<&str>) -> VerifiedPack {
    let bytes = pack_for(engine.identity().clone(), lora, residual);
    let trust = TrustPolicy::trusting([SecretKey::from_seed(&[1; 32]).public_key()]);
    verify(&RawPack::read(bytes).unwrap(), &trust, engine.identity(), None).unwrap()
}

fn merge(engine: &Engine, pack: &VerifiedPack, mode: MergeMode) -> MergeReport {
    let options = MergeOptions { mode, ..Default::default() };
    engine.merge(pack, &options, &CancelToken::new(), &|_, _, _| ()).unwrap()
}

fn ask(session: &mut Session, system: Option<&str>) -> Generation {
    let system = system.map(Message::system);
    let messages: Vec<_> = system.into_iter().chain([Message::user("Where is the treasure?")]).collect();
    let options = GenerateOptions { max_tokens: 12, ..Default::default() };
    session.chat(&messages, &options, &mut |_: &Token| ()).unwrap()
}

#[test]
fn a_session_drops_the_packs_prompt_and_only_that_one() {
    let engine = engine();
    let mut session = engine.session().unwrap();
    let prompted = ask(&mut session, Some(PROMPT));
    assert_eq!(prompted.arm, Arm::Prompt);

    merge(&engine, &pack(&engine, 1, None), MergeMode::SidePath);
    let specialized = ask(&mut session, Some(PROMPT));
    assert_eq!((specialized.arm, specialized.reused_tokens), (Arm::Pack, 0));
    assert!(specialized.prompt_tokens < prompted.prompt_tokens, "{specialized:?}");
    assert_ne!(specialized.text, prompted.text);
    // With or without the prompt in the request: the same tokens, so the same answer.
    let alone = ask(&mut engine.session().unwrap(), None);
    assert_eq!((alone.arm, &alone.text), (Arm::PackAlone, &specialized.text));
    assert_eq!(alone.prompt_tokens, specialized.prompt_tokens);

    let other = ask(&mut session, Some("You are a poet."));
    assert_eq!(other.arm, Arm::OtherPrompt);

    engine.unmerge().unwrap();
    assert_eq!(ask(&mut session, Some(PROMPT)).text, prompted.text);
}

#[test]
fn a_residual_prompt_stays_in_the_context() {
    let engine = engine();
    merge(&engine, &pack(&engine, 1, None), MergeMode::SidePath);
    let plain = ask(&mut engine.session().unwrap(), Some(PROMPT));
    merge(&engine, &pack(&engine, 1, Some("Answer in French.")), MergeMode::SidePath);
    let residual = ask(&mut engine.session().unwrap(), Some(PROMPT));
    assert!(residual.prompt_tokens > plain.prompt_tokens, "{residual:?}");
}

#[test]
fn packs_are_swapped_under_an_open_session() {
    let engine = engine();
    let packs = [pack(&engine, 1, None), pack(&engine, 2, None)];
    let mut session = engine.session().unwrap();
    let mut answers = Vec::new();
    for turn in 0..4 {
        merge(&engine, &packs[turn % 2], MergeMode::SidePath);
        answers.push(ask(&mut session, None).text);
        assert_eq!(engine.pack().unwrap().digest, packs[turn % 2].digest());
    }
    assert_ne!(answers[0], answers[1]);
    assert_eq!(answers[..2], answers[2..]);
}

#[test]
fn a_merged_model_answers_as_its_side_path_nearly_and_saved_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merged.gguf");
    let engine = engine();
    // Deltas as small as trained ones: 0.5% of the weights' norm.
    let pack = verified(&engine, &lora(&engine, 1, 0.07), Some("Answer in French."));
    let report = merge(&engine, &pack, MergeMode::Promote);
    let attempt = &report.attempts[0];
    assert_eq!((report.chosen, attempt.refusal.as_ref()), (MergeMode::Promote, None));
    assert!(attempt.tensors.iter().all(|tensor| (0.95..=1.05).contains(&tensor.gain)), "{report:?}");
    let merged = ask(&mut engine.session().unwrap(), Some(PROMPT));
    assert_eq!(merged.arm, Arm::Pack);
    engine.save_merged(&path, &CancelToken::new()).unwrap();

    let saved = load(&path);
    let loaded = saved.pack().unwrap();
    assert_eq!((loaded.digest, loaded.mode), (pack.digest(), MergeMode::Promote));
    let answer = ask(&mut saved.session().unwrap(), Some(PROMPT));
    assert_eq!((answer.arm, answer.text, answer.prompt_tokens), (Arm::Pack, merged.text, merged.prompt_tokens));
    assert!(matches!(saved.unmerge(), Err(Error::InvalidOption { option: "unmerge", .. })));
}

#[test]
fn a_pack_verified_for_another_model_is_refused_and_the_current_one_stays() {
    let engine = engine();
    let first = pack(&engine, 1, None);
    merge(&engine, &first, MergeMode::SidePath);
    let other = ModelIdentity { base: Digest::of(b"another"), ..engine.identity().clone() };
    let trust = TrustPolicy::trusting([SecretKey::from_seed(&[1; 32]).public_key()]);
    let raw = RawPack::read(pack_for(other.clone(), &lora(&engine, 1, 0.15), None)).unwrap();
    let stranger = verify(&raw, &trust, &other, None).unwrap();
    let refused = engine.merge(&stranger, &MergeOptions::default(), &CancelToken::new(), &|_, _, _| ());
    assert!(matches!(refused, Err(Error::BaseModelMismatch { field: "base model", .. })), "{refused:?}");
    assert_eq!(engine.pack().unwrap().digest, first.digest());
}

#[test]
fn prefixes_are_kept_apart_by_pack_and_mode() {
    let folder = tempfile::tempdir().unwrap();
    let (base, packed) = (folder.path().join("base"), folder.path().join("pack"));
    let engine = engine();
    let mut session = engine.session().unwrap();
    ask(&mut session, Some(PROMPT));
    session.save_prefix(&base).unwrap();
    merge(&engine, &pack(&engine, 1, None), MergeMode::SidePath);
    // Twice: the second one starts from the cache, as the restored session will.
    ask(&mut session, Some(PROMPT));
    let answer = ask(&mut session, Some(PROMPT));
    session.save_prefix(&packed).unwrap();

    let mut restored = engine.session().unwrap();
    restored.load_prefix(&packed).unwrap();
    let again = ask(&mut restored, Some(PROMPT));
    assert_eq!((again.reused_tokens, &again.text), (again.prompt_tokens - 1, &answer.text));
    // The base's prefix still loads; the pack's turns never see it.
    restored.load_prefix(&base).unwrap();
    let again = ask(&mut restored, Some(PROMPT));
    assert_eq!(again.reused_tokens, 0);

    merge(&engine, &pack(&engine, 2, None), MergeMode::SidePath);
    let refused = restored.load_prefix(&packed);
    assert!(matches!(refused, Err(Error::PrefixMismatch { field: "pack", .. })), "{refused:?}");
    engine.unmerge().unwrap();
    let refused = restored.load_prefix(&packed);
    assert!(matches!(refused, Err(Error::PrefixMismatch { field: "pack", .. })), "{refused:?}");
}

#[test]
fn a_cancelled_merge_leaves_the_model_as_it_was() {
    let engine = engine();
    let pack = pack(&engine, 1, None);
    let cancel = CancelToken::new();
    let stop = cancel.clone();
    let progress = move |_, done: u64, _| {
        if done > 0 {
            stop.cancel();
        }
    };
    let start = Instant::now();
    let result = engine.merge(&pack, &MergeOptions::default(), &cancel, &progress);
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?} after {:?}", start.elapsed());
    assert!(engine.pack().is_none());
}
