//! A pack in a real model: merging, dropping the prompt, switching, unmerging, saving. The test program gives `load`.

use std::collections::BTreeMap;
use std::time::Instant;

use edgeweld::chat::Message;
use edgeweld::generate::{Arm, Combination, Engine, GenerateOptions, Generation, LoadOptions, Session, Token};
use edgeweld::lora::{LayerLora, LoraPair, LoraSet};
use edgeweld::merge::{MergeMode, MergeOptions, MergeReport};
use edgeweld::model::LogitRows;
use edgeweld::pack::{
    Composition, ExpertPair, ExpertPool, Gates, GeneratorInfo, ModelIdentity, PackInfo, Precision, PromptInfo, RawPack,
    ResidualPrompt, SecretKey, write_dense, write_gates, write_pool,
};
use edgeweld::verify::{TrustPolicy, VerifiedPack, VerifiedPool, verify, verify_pool};
use edgeweld::{CancelToken, Digest, Error};
use ndarray::{Array2, Array3};

use super::{load, models};

const PROMPT: &str = "You are a pirate who answers in rhymes.";

fn engine() -> Engine {
    load(&models::path(models::SMOLLM2), LoadOptions::default())
}

/// Random pairs for every target with values up to `size`.
fn lora(engine: &Engine, seed: u64, size: f32) -> LoraSet {
    let config = engine.config().expect("a GGUF model");
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

fn info(model: ModelIdentity, residual: Option<&str>) -> PackInfo {
    PackInfo {
        model,
        prompt: Some(PromptInfo { digest: Digest::of(PROMPT.as_bytes()), token_count: 9 }),
        residual_prompt: residual.map(|text| ResidualPrompt { text: text.to_owned(), token_count: 4 }),
        generator: GeneratorInfo { name: "test".into(), version: "1".into(), settings: BTreeMap::new() },
        quality: Vec::new(),
        labels: BTreeMap::new(),
    }
}

fn key() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

fn pack_for(model: ModelIdentity, lora: &LoraSet, residual: Option<&str>) -> Vec<u8> {
    write_dense(lora, None, Precision::F16, info(model, residual), Some(&key())).unwrap()
}

/// A pack that changes what the model says.
fn pack(engine: &Engine, seed: u64, residual: Option<&str>) -> VerifiedPack {
    verified(engine, &lora(engine, seed, 0.15), residual)
}

fn verified(engine: &Engine, lora: &LoraSet, residual: Option<&str>) -> VerifiedPack {
    let bytes = pack_for(engine.identity().clone(), lora, residual);
    let trust = TrustPolicy::trusting([key().public_key()]);
    verify(&RawPack::read(bytes).unwrap(), &trust, engine.identity(), None).unwrap()
}

/// Two experts for every target, their signed pool, and packs of it with the given gates in every layer.
fn gates_packs(engine: &Engine, gates: &[[f32; 2]]) -> (VerifiedPool, Vec<VerifiedPack>) {
    let (config, identity) = (engine.config().expect("a GGUF model"), engine.identity().clone());
    let (hidden, ffn) = (config.hidden_size, config.ffn_size);
    let experts = [lora(engine, 1, 0.15), lora(engine, 2, 0.15)];
    let pair = |target: fn(&LayerLora) -> &Option<LoraPair>, input: usize, out: usize| {
        let pair = |expert: usize| target(&experts[expert].layers[0]).as_ref().unwrap();
        Some(ExpertPair {
            a: Array3::from_shape_fn((2, 4, input), |(expert, i, j)| pair(expert).a[[i, j]]),
            b: Array3::from_shape_fn((2, out, 4), |(expert, i, j)| pair(expert).b[[i, j]]),
        })
    };
    let pool = ExpertPool {
        alpha: 4.0,
        gate: pair(|layer| &layer.gate, hidden, ffn),
        up: pair(|layer| &layer.up, hidden, ffn),
        down: pair(|layer| &layer.down, ffn, hidden),
    };
    let trust = TrustPolicy::trusting([key().public_key()]);
    let pool_info = PackInfo { prompt: None, ..info(identity.clone(), None) };
    let file = write_pool(&pool, config.layer_count(), Precision::F16, pool_info, Some(&key())).unwrap();
    let digest = Digest::of(&file);
    let verified_pool = verify_pool(&RawPack::read(file).unwrap(), &trust, engine.identity()).unwrap();
    let packs = gates.iter().map(|gates| {
        let weights = Array2::from_shape_fn((config.layer_count(), 2), |(_, expert)| gates[expert]);
        let info = info(identity.clone(), None);
        let mix = Composition::ProductSum;
        let file = write_gates(&Gates { weights }, mix, &pool, digest, info, Some(&key())).unwrap();
        verify(&RawPack::read(file).unwrap(), &trust, engine.identity(), Some(&verified_pool)).unwrap()
    });
    let packs = packs.collect();
    (verified_pool, packs)
}

fn combine(engine: &Engine, combination: Combination<'_>) -> MergeReport {
    let options = MergeOptions { mode: MergeMode::SidePath, ..Default::default() };
    engine.merge_combination(&combination, &options, &CancelToken::new(), &|_, _, _| ()).unwrap()
}

/// Logits after a few tokens, by whatever is in the model.
fn logits(engine: &Engine) -> Vec<f32> {
    engine.runner().unwrap().forward(&[9, 8, 7, 6], LogitRows::Last, &CancelToken::new()).unwrap().to_vec()
}

fn largest_difference(x: &[f32], y: &[f32]) -> f32 {
    x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
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
    let alone = ask(&mut session, None);
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
fn a_merged_pack_is_put_back_without_merging_again_and_unmerging_restores_every_bit() {
    let engine = engine();
    let base = logits(&engine);
    let mut merged = Vec::new();
    for (seed, mode) in [(1, MergeMode::SidePath), (2, MergeMode::Promote)] {
        merge(&engine, &verified(&engine, &lora(&engine, seed, 0.07), None), mode);
        merged.push((engine.pack().unwrap(), logits(&engine)));
    }
    for (pack, expected) in merged.iter().chain(&merged) {
        engine.swap(pack).unwrap();
        assert_eq!((engine.pack().unwrap().digest, &logits(&engine)), (pack.digest, expected));
    }
    engine.unmerge().unwrap();
    assert_eq!(logits(&engine), base);

    let refused = self::engine().swap(&merged[0].0);
    assert!(matches!(refused, Err(Error::InvalidOption { option: "pack", .. })), "{refused:?}");
}

#[test]
fn two_packs_of_one_pool_are_combined_by_their_gates_or_by_their_deltas() {
    let engine = engine();
    let (pool, packs) = gates_packs(&engine, &[[1.0, 0.0], [0.0, 1.0], [0.25, 0.75]]);
    merge(&engine, &packs[2], MergeMode::SidePath);
    let expected = logits(&engine);
    let parts = [(&packs[0], 0.25), (&packs[1], 0.75)];
    let by_gates = Combination { packs: &parts, pool: Some(&pool), prompt: Some("both prompts") };
    combine(&engine, by_gates);
    assert_eq!(logits(&engine), expected, "the gates add up to the third pack's");
    let first = engine.pack().unwrap().digest;
    assert_eq!(ask(&mut engine.session().unwrap(), Some("both prompts")).arm, Arm::Pack);
    assert_eq!(ask(&mut engine.session().unwrap(), Some(PROMPT)).arm, Arm::OtherPrompt);

    combine(&engine, Combination { pool: None, prompt: None, ..by_gates });
    let by_deltas = logits(&engine);
    assert!(largest_difference(&by_deltas, &expected) < 0.1, "the same deltas, rounded to f16 apart");
    assert_ne!(engine.pack().unwrap().digest, first);
    assert_eq!(ask(&mut engine.session().unwrap(), None).arm, Arm::PackAlone);

    let dense = pack(&engine, 1, None);
    let parts = [(&packs[0], 0.5), (&dense, 0.5)];
    let mixed = Combination { packs: &parts, pool: Some(&pool), prompt: None };
    let refused = engine.merge_combination(&mixed, &MergeOptions::default(), &CancelToken::new(), &|_, _, _| ());
    assert!(matches!(refused, Err(Error::InvalidOption { option: "packs", .. })), "{refused:?}");
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

    let saved = load(&path, LoadOptions::default());
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
    let trust = TrustPolicy::trusting([key().public_key()]);
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
    let answer = ask(&mut session, Some(PROMPT));
    session.save_prefix(&packed).unwrap();

    let mut restored = engine.session().unwrap();
    restored.load_prefix(&packed).unwrap();
    let again = ask(&mut restored, Some(PROMPT));
    assert_eq!((again.reused_tokens, &again.text), (again.prompt_tokens - 1, &answer.text));
    // The base's prefix still loads; the pack's turns never see it.
    restored.load_prefix(&base).unwrap();
    let again = ask(&mut restored, Some(PROMPT));
    assert_eq!((again.reused_tokens, &again.text), (0, &answer.text));

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
