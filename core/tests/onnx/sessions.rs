//! Sessions on the real models, as `generate.rs` has them for the CPU backend.

use std::time::{Duration, Instant};

use edgeweld::chat::Message;
use edgeweld::generate::{Engine, FinishReason, GenerateOptions, Token};
use edgeweld::sample::SamplerOptions;
use edgeweld::{CancelToken, Error};

use super::{load, models};

fn engine(file: &str) -> Engine {
    load(&models::path(file))
}

fn smollm2() -> Engine {
    engine(models::SMOLLM2)
}

fn quiet(_: &Token) {}

fn at_most(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ..Default::default() }
}

#[test]
fn smollm2_completes_as_the_reference_does() {
    let mut shown = String::new();
    let mut show = |token: &Token| shown += &token.text;
    let answer = smollm2().session().unwrap().complete("The capital of France is", &at_most(2), &mut show).unwrap();
    assert_eq!(answer.text, " Paris.");
    assert_eq!(shown, answer.text);
}

#[test]
fn gemma_completes_as_the_reference_does() {
    let mut session = engine(models::GEMMA3).session().unwrap();
    let answer = session.complete("The capital of France is", &at_most(8), &mut quiet).unwrap();
    // The greedy text of `transformers` on the same weights.
    assert_eq!(answer.text, " the capital of the country of France.");
}

#[test]
fn second_turn_reuses_the_cache() {
    let engine = smollm2();
    let mut session = engine.session().unwrap();
    let mut messages = vec![Message::user("Name a colour.")];
    let first = session.chat(&messages, &at_most(20), &mut quiet).unwrap();
    messages.extend([Message::assistant(first.text), Message::user("Name another one.")]);
    let second = session.chat(&messages, &at_most(12), &mut quiet).unwrap();
    assert!(second.reused_tokens >= first.prompt_tokens, "{second:?}");
    let fresh = engine.session().unwrap().chat(&messages, &at_most(12), &mut quiet).unwrap();
    // Its text may differ: rounding is another for one row than for many, and 8-bit activations amplify it.
    assert_eq!(fresh.reused_tokens, 0);
}

#[test]
fn restored_prefix_answers_as_the_session_that_saved_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefix");
    let engine = smollm2();
    let messages = [Message::system("You are a pirate. ".repeat(20)), Message::user("Hello!")];
    let mut session = engine.session().unwrap();
    // Twice: the second one starts from the cache, as the restored session will.
    session.chat(&messages, &at_most(10), &mut quiet).unwrap();
    let answer = session.chat(&messages, &at_most(10), &mut quiet).unwrap();
    session.save_prefix(&path).unwrap();

    let mut restored = engine.session().unwrap();
    assert_eq!(restored.load_prefix(&path).unwrap(), session.cached_tokens());
    let again = restored.chat(&messages, &at_most(10), &mut quiet).unwrap();
    assert_eq!(again.reused_tokens, again.prompt_tokens - 1);
    assert_eq!(again.text, answer.text);

    let other = self::engine(models::GEMMA3);
    let refused = other.session().unwrap().load_prefix(&path);
    assert!(matches!(refused, Err(Error::PrefixMismatch { field: "base model", .. })), "{refused:?}");
}

#[test]
fn cancel_ends_prefill_and_decode_soon_and_leaves_the_session_usable() {
    let mut session = smollm2().session().unwrap();
    let long = [Message::user("word ".repeat(3_000))];
    for messages in [&long[..], &[Message::user("Count to one thousand.")]] {
        let cancel = CancelToken::new();
        let options = GenerateOptions { max_tokens: 2_000, cancel: cancel.clone(), ..Default::default() };
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(400));
            cancel.cancel();
            Instant::now()
        });
        let answer = session.chat(messages, &options, &mut quiet).unwrap();
        let latency = canceller.join().unwrap().elapsed();
        assert_eq!(answer.finish_reason, FinishReason::Cancelled);
        assert!(latency < Duration::from_secs(2), "{latency:?}");
    }
    let answer = session.chat(&[Message::user("Say hi.")], &at_most(5), &mut quiet).unwrap();
    assert!(answer.generated_tokens > 0);
}

#[test]
fn stop_string_ends_the_answer_before_it() {
    let mut session = smollm2().session().unwrap();
    let messages = [Message::user("Name a fruit.")];
    let options = GenerateOptions { stop: vec!["e".to_owned()], ..at_most(40) };
    let mut shown = String::new();
    let answer = session.chat(&messages, &options, &mut |token: &Token| shown += &token.text).unwrap();
    assert_eq!(answer.finish_reason, FinishReason::StopString);
    assert!(!answer.text.contains('e') && shown == answer.text, "{answer:?}");
}

#[test]
fn equal_seeds_reproduce_a_sampled_answer() {
    let engine = smollm2();
    let answer = |seed| {
        let sampler = SamplerOptions { temperature: 1.0, seed, ..Default::default() };
        let options = GenerateOptions { sampler, ..at_most(24) };
        engine.session().unwrap().chat(&[Message::user("Tell a story.")], &options, &mut quiet).unwrap().text
    };
    assert_eq!(answer(1), answer(1));
    assert_ne!(answer(1), answer(2));
}

#[test]
fn prompt_longer_than_the_context_is_refused_with_both_counts() {
    let mut session = smollm2().session().unwrap();
    let result = session.complete(&"word ".repeat(9_000), &at_most(1), &mut quiet);
    assert!(
        matches!(result, Err(Error::ContextFull { required, available: 2_048..=4_096 }) if required > 9_000),
        "{result:?}"
    );
}
