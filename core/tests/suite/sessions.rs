//! Sessions on the real models. The test program gives `load`.

use std::time::{Duration, Instant};

use edgeweld::chat::Message;
use edgeweld::generate::{Engine, FinishReason, GenerateOptions, Generation, LoadOptions, Token, TokenListener};
use edgeweld::sample::SamplerOptions;
use edgeweld::{CancelToken, Error};

use super::{load, models};

fn engine(file: &str) -> Engine {
    load(&models::path(file), LoadOptions::default())
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
fn both_models_know_the_capital_of_france() {
    for file in [models::SMOLLM2, models::GEMMA3] {
        let mut session = engine(file).session().unwrap();
        let question = [Message::user("What is the capital of France?")];
        let answer = session.chat(&question, &at_most(20), &mut quiet).unwrap();
        assert!(answer.text.trim().starts_with("The capital of France is Paris."), "{file}: {answer:?}");
    }
}

#[test]
fn second_turn_reuses_the_cache_and_answers_as_a_fresh_session() {
    let engine = smollm2();
    let mut session = engine.session().unwrap();
    let mut messages = vec![Message::user("Name a colour.")];
    let first = session.chat(&messages, &at_most(20), &mut quiet).unwrap();
    messages.extend([Message::assistant(first.text), Message::user("Name another one.")]);
    let second = session.chat(&messages, &at_most(12), &mut quiet).unwrap();
    assert!(second.reused_tokens >= first.prompt_tokens, "{second:?}");
    let fresh = engine.session().unwrap().chat(&messages, &at_most(12), &mut quiet).unwrap();
    assert_eq!((fresh.reused_tokens, fresh.text), (0, second.text));
}

#[test]
fn restored_prefix_answers_as_the_session_that_saved_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefix");
    let engine = smollm2();
    let messages = [Message::system("You are a pirate. ".repeat(20)), Message::user("Hello!")];
    let mut session = engine.session().unwrap();
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
    let short = LoadOptions { context_length: Some(40), ..Default::default() };
    let short = load(&models::path(models::SMOLLM2), short);
    let refused = short.session().unwrap().load_prefix(&path);
    assert!(matches!(refused, Err(Error::ContextFull { required: 41.., available: 40 })), "{refused:?}");
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

/// Cancels at a token or at a prefill step, and counts what comes after.
struct Canceller {
    cancel: CancelToken,
    at_token: usize,
    at_prefill: usize,
    tokens: usize,
    prefilled: usize,
}

impl TokenListener for Canceller {
    fn on_token(&mut self, _: &Token) {
        self.tokens += 1;
        if self.tokens == self.at_token {
            self.cancel.cancel();
        }
    }

    fn on_prefill(&mut self, done: usize, _: usize) {
        self.prefilled = done;
        if done >= self.at_prefill {
            self.cancel.cancel();
        }
    }
}

fn cancelled(at_token: usize, at_prefill: usize, prompt: &str) -> (Generation, Canceller, usize) {
    let mut session = smollm2().session().unwrap();
    let cancel = CancelToken::new();
    let options = GenerateOptions { cancel: cancel.clone(), ..at_most(50) };
    let mut listener = Canceller { cancel, at_token, at_prefill, tokens: 0, prefilled: 0 };
    let answer = session.complete(prompt, &options, &mut listener).unwrap();
    (answer, listener, session.cached_tokens())
}

#[test]
fn no_token_follows_the_one_at_which_a_turn_is_cancelled() {
    let (answer, listener, _) = cancelled(3, usize::MAX, "Count: one, two, three,");
    assert_eq!((answer.finish_reason, answer.generated_tokens, listener.tokens), (FinishReason::Cancelled, 3, 3));
    assert!(!answer.text.is_empty(), "what was said stays");
}

#[test]
fn no_prefill_step_follows_the_one_at_which_a_turn_is_cancelled() {
    let (answer, listener, cached) = cancelled(usize::MAX, 256, &"word ".repeat(1_200));
    assert_eq!((answer.finish_reason, answer.generated_tokens, listener.tokens), (FinishReason::Cancelled, 0, 0));
    assert!(answer.prompt_tokens > 1_000);
    // The step that was done stays cached for the next turn.
    assert_eq!((listener.prefilled, cached), (256, 256));
}

#[test]
fn a_full_context_ends_the_answer_and_the_session_goes_on() {
    let options = LoadOptions { context_length: Some(24), ..Default::default() };
    let mut session = load(&models::path(models::SMOLLM2), options).session().unwrap();
    let prompt = "One, two, three, four, five,";
    let answer = session.complete(prompt, &at_most(100), &mut quiet).unwrap();
    assert_eq!(answer.finish_reason, FinishReason::Length);
    // The last token needs no place of its own: nothing follows it.
    assert_eq!((session.cached_tokens(), answer.prompt_tokens + answer.generated_tokens), (24, 25));
    let again = session.complete(prompt, &at_most(100), &mut quiet).unwrap();
    assert_eq!((again.text, again.reused_tokens), (answer.text, answer.prompt_tokens - 1));
}

#[test]
fn sessions_on_several_threads_answer_as_they_would_alone() {
    let engine = smollm2();
    let prompts = ["The capital of France is", "Water boils at", "def fibonacci(n):", "Once upon a time"];
    let answer = |prompt: &str| engine.session().unwrap().complete(prompt, &at_most(16), &mut quiet).unwrap().text;
    let alone = prompts.map(answer);
    let together = std::thread::scope(|scope| {
        let threads = prompts.map(|prompt| scope.spawn(move || answer(prompt)));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(together, alone);
}

#[test]
fn the_sampler_reports_logprobs_on_request() {
    let mut session = smollm2().session().unwrap();
    let options = GenerateOptions { sampler: SamplerOptions { logprobs: Some(3), ..Default::default() }, ..at_most(2) };
    let mut seen = Vec::new();
    session.complete("The capital of France is", &options, &mut |token: &Token| seen.push(token.clone())).unwrap();
    for token in &seen {
        assert_eq!(token.top_logprobs.len(), 3);
        assert_eq!(token.top_logprobs[0], (token.id, token.logprob.unwrap()), "greedy takes the likeliest");
        assert!(token.top_logprobs.is_sorted_by(|a, b| a.1 >= b.1) && token.top_logprobs[0].1 <= 0.0);
    }
    let mut plain = None;
    session.complete("Hello", &at_most(1), &mut |token: &Token| plain = Some(token.clone())).unwrap();
    let plain = plain.unwrap();
    assert_eq!((plain.logprob, plain.top_logprobs), (None, vec![]));
}

#[test]
#[cfg(feature = "constrain")]
fn constrained_answers_are_what_the_schema_and_the_expression_say() {
    use edgeweld::sample::Constraint;
    let mut session = smollm2().session().unwrap();
    let mut answer = |constraint, question: &str| {
        let options = GenerateOptions { constraint: Some(constraint), ..at_most(60) };
        let answer = session.chat(&[Message::user(question)], &options, &mut quiet).unwrap();
        assert_eq!(answer.finish_reason, FinishReason::EndOfTurn, "{answer:?}");
        answer.text
    };
    let schema = r#"{"type": "object", "properties": {"city": {"type": "string", "maxLength": 30}},
        "required": ["city"], "additionalProperties": false}"#;
    let json = answer(Constraint::json_schema(schema), "What is the capital of France? Answer as JSON.");
    assert_eq!(json, "{\"city\": \"Paris\"}");
    let yes_or_no = answer(Constraint::regex("yes|no"), "Is Paris in France?");
    assert!(["yes", "no"].contains(&&*yes_or_no), "{yes_or_no}");
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
