use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::random::Random;
use super::*;
use crate::Error;

fn sampler(options: SamplerOptions) -> Sampler {
    Sampler::new(options).unwrap()
}

/// All filters off.
fn open() -> SamplerOptions {
    SamplerOptions { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerOptions::default() }
}

/// How often each of `N` tokens is drawn in 20,000 draws.
fn frequencies<const N: usize>(options: SamplerOptions, logits: [f32; N]) -> [f64; N] {
    let mut sampler = sampler(options);
    let mut counts = [0.0; N];
    for _ in 0..20_000 {
        counts[sampler.sample(&mut logits.clone(), &[], None).unwrap().id as usize] += 1.0 / 20_000.0;
    }
    counts
}

#[track_caller]
fn assert_near<const N: usize>(actual: [f64; N], expected: [f64; N]) {
    for (actual, expected) in actual.iter().zip(expected) {
        // Four standard deviations of 20,000 draws at probability 1/2.
        assert!((actual - expected).abs() < 0.015, "{actual} instead of {expected}");
    }
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let mut greedy = sampler(SamplerOptions::default());
    let mut id = |logits: &[f32]| greedy.sample(&mut logits.to_vec(), &[], None).map(|sampled| sampled.id);
    assert_eq!(id(&[1.0, 3.0, 3.0, 2.0]).unwrap(), 1);
    assert_eq!(id(&[f32::NAN, -1.0, f32::NEG_INFINITY, f32::NAN]).unwrap(), 1);
    assert_eq!(id(&[0.0, f32::INFINITY, f32::INFINITY]).unwrap(), 1);
    let mut long = vec![-5.0; 1003];
    (long[500], long[1002]) = (1.0, 1.0f32.next_up());
    assert_eq!(id(&long).unwrap(), 1002);
    for logits in [&[][..], &[f32::NAN, f32::NEG_INFINITY]] {
        assert!(matches!(id(logits), Err(Error::NoToken)));
    }
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.0, 1f32.exp2().ln(), 4f32.ln(), f32::NEG_INFINITY, f32::NAN]; // 1 : 2 : 4
    assert_near(frequencies(open(), logits), [1.0 / 7.0, 2.0 / 7.0, 4.0 / 7.0, 0.0, 0.0]);
    let cold = SamplerOptions { temperature: 0.5, ..open() };
    assert_near(frequencies(cold, logits), [1.0 / 21.0, 4.0 / 21.0, 16.0 / 21.0, 0.0, 0.0]);
}

#[test]
fn filters_keep_what_they_promise() {
    let logits = [0.1f32, 0.4, 0.3, 0.2].map(f32::ln);
    let top_k = SamplerOptions { top_k: 2, ..open() };
    assert_near(frequencies(top_k, logits), [0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]);
    // The smallest set with at least 0.5.
    let top_p = SamplerOptions { top_p: 0.5, ..open() };
    assert_near(frequencies(top_p, logits), [0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]);
    let min_p = SamplerOptions { min_p: 0.45, ..open() };
    assert_near(frequencies(min_p, logits), [0.0, 4.0 / 9.0, 3.0 / 9.0, 2.0 / 9.0]);
    // Filters look at probabilities before temperature.
    let hot = SamplerOptions { top_p: 0.5, temperature: 100.0, ..open() };
    assert_near(frequencies(hot, logits), [0.0, 0.5, 0.5, 0.0]);
}

#[test]
fn repetition_penalty_covers_the_window_only() {
    let options = SamplerOptions { repetition_penalty: 2.0, repetition_window: 2, ..SamplerOptions::default() };
    let mut sampler = sampler(options);
    let mut logits = [3.0, 2.0, -1.0, 2.5];
    let sampled = sampler.sample(&mut logits, &[3, 0, 2, 0, 77][..4], None).unwrap();
    assert_eq!((sampled.id, logits), (3, [1.5, 2.0, -2.0, 2.5]));
    let mut logits = [1.0, 0.5];
    assert_eq!(sampler.sample(&mut logits, &[0, 999_999], None).unwrap().id, 0, "a tie goes to the first");
}

#[test]
fn logprobs_are_of_the_raw_logits() {
    let options = SamplerOptions { logprobs: Some(2), repetition_penalty: 4.0, ..SamplerOptions::default() };
    let mut logits = [4f32.ln(), 2f32.ln(), 1f32.ln(), f32::NAN, 1f32.ln()];
    let mask = TokenMask::only([0, 2]);
    let sampled = sampler(options).sample(&mut logits, &[0], Some(&mask)).unwrap();
    let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-6, "{a} instead of {b}");
    assert_eq!((sampled.id, sampled.top[0].0, sampled.top[1].0, sampled.top.len()), (0, 0, 1, 2));
    near(sampled.logprob.unwrap(), 0.5f32.ln());
    near(sampled.top[1].1, 0.25f32.ln());
}

#[test]
fn masks_exclude_and_can_exclude_everything() {
    let mut logits: Vec<f32> = (0..100).map(|id| id as f32).collect();
    let sampled = sampler(open()).sample(&mut logits, &[], Some(&TokenMask::only([3, 64]))).unwrap();
    assert!([3, 64].contains(&sampled.id));
    assert_eq!(logits.iter().filter(|logit| logit.is_finite()).count(), 2);
    assert!(matches!(sampler(open()).sample(&mut logits, &[], Some(&TokenMask::only([7]))), Err(Error::NoToken)));
    assert!(!TokenMask::only([1]).allows(1000));
}

#[test]
fn equal_seeds_repeat_and_others_differ() {
    let logits: Vec<f32> = (0..1000).map(|id| (id as f32 * 0.37).sin()).collect();
    let run = |seed| {
        let mut sampler = sampler(SamplerOptions { seed, ..open() });
        (0..20).map(|_| sampler.sample(&mut logits.clone(), &[], None).unwrap().id).collect::<Vec<_>>()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
    assert_eq!(run(1)[..4], [808, 748, 97, 746], "the same on every platform and version");
}

#[test]
fn rejects_options_outside_their_ranges() {
    let default = SamplerOptions::default;
    for (wrong, name) in [
        (SamplerOptions { temperature: -1.0, ..default() }, "temperature"),
        (SamplerOptions { temperature: f32::NAN, ..default() }, "temperature"),
        (SamplerOptions { top_p: 0.0, ..default() }, "top_p"),
        (SamplerOptions { top_p: 1.1, ..default() }, "top_p"),
        (SamplerOptions { min_p: -0.1, ..default() }, "min_p"),
        (SamplerOptions { repetition_penalty: 0.0, ..default() }, "repetition_penalty"),
        (SamplerOptions { logprobs: Some(1001), ..default() }, "logprobs"),
    ] {
        match Sampler::new(wrong) {
            Err(Error::InvalidOption { option, .. }) => assert_eq!(option, name),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_large_vocabulary_takes_milliseconds_at_most() {
    let mut random = Random::new(3);
    let logits: Vec<f32> = (0..262_144).map(|_| random.unit() as f32 * 30.0).collect();
    let default = SamplerOptions { temperature: 0.8, ..SamplerOptions::default() };
    for options in [SamplerOptions::default(), default.clone(), SamplerOptions { top_k: 0, ..default }, open()] {
        let mut sampler = sampler(options);
        let mut times: Vec<Duration> = (0..5)
            .map(|_| {
                let mut logits = logits.clone();
                let start = Instant::now();
                sampler.sample(&mut logits, &[], None).unwrap();
                start.elapsed()
            })
            .collect();
        times.sort();
        println!("{:?}: {:?}", sampler.options(), times[2]);
        // What is promised is far less; this only finds an accidental full sort or worse on a busy machine.
        assert!(times[0] < Duration::from_secs(1), "{times:?}");
    }
}

proptest! {
    #[test]
    fn any_logits_give_an_allowed_token(
        logits in prop::collection::vec(prop_oneof![-50f32..50.0, Just(f32::NAN), Just(f32::NEG_INFINITY), Just(f32::INFINITY), any::<f32>()], 1..300),
        top_k in 0usize..400, top_p in 0.01f32..=1.0, min_p in 0f32..=1.0, temperature in 0f32..=100.0, seed in any::<u64>(),
    ) {
        let usable = |id: usize| logits[id] > f32::NEG_INFINITY;
        let options = SamplerOptions { temperature, top_k, top_p, min_p, seed, logprobs: Some(5), ..SamplerOptions::default() };
        match sampler(options).sample(&mut logits.clone(), &[], None) {
            Ok(sampled) => prop_assert!(usable(sampled.id as usize)),
            Err(Error::NoToken) => prop_assert!(!(0..logits.len()).any(usable)),
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}

#[cfg(feature = "constrain")]
mod constrained {
    use std::sync::LazyLock;

    use super::*;
    use crate::tokenizer::Tokenizer;
    use crate::tokenizer::tests::{gemma, smollm2};

    static SMOLLM2: LazyLock<ConstraintCompiler> = LazyLock::new(|| ConstraintCompiler::new(&smollm2()).unwrap());

    /// Text that random logits make under `constraint`, and whether it was ended.
    fn random_text(
        compiler: &ConstraintCompiler,
        tokenizer: &Tokenizer,
        constraint: &Constraint,
        seed: u64,
    ) -> (String, bool) {
        let mut state = compiler.compile(constraint).unwrap();
        let mut random = Random::new(seed);
        let mut sampler = sampler(SamplerOptions { seed, ..open() });
        let mut ids = Vec::new();
        for _ in 0..400 {
            // Ends and closing quotes are likely, so that texts end.
            let likely = |id: u32| {
                tokenizer.is_end(id) || matches!(tokenizer.token_bytes(id), Some(b"\"" | b"}" | b"\"}" | b"]"))
            };
            let mut logits: Vec<f32> = (0..tokenizer.vocab_size() as u32)
                .map(|id| random.unit() as f32 * 4.0 + if likely(id) { 12.0 } else { 0.0 })
                .collect();
            let id = sampler.sample(&mut logits, &ids, Some(&state.mask().unwrap())).unwrap().id;
            if tokenizer.is_end(id) {
                assert!(state.is_accepting());
                return (tokenizer.decode(&ids), true);
            }
            state.accept(id).unwrap();
            ids.push(id);
            if state.is_finished() {
                return (tokenizer.decode(&ids), true);
            }
        }
        (tokenizer.decode(&ids), false)
    }

    const SCHEMA: &str = r#"{"type": "object", "properties": {"city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["°C", "°F"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "unit", "days"], "additionalProperties": false}"#;

    #[test]
    fn random_logits_still_make_json_of_the_schema() {
        let tokenizer = smollm2();
        for seed in 0..5 {
            let (text, ended) = random_text(&SMOLLM2, &tokenizer, &Constraint::json_schema(SCHEMA), seed);
            assert!(ended, "{text}");
            let value: serde_json::Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(value["city"].is_string() && ["°C", "°F"].contains(&value["unit"].as_str().unwrap()), "{text}");
            assert!((1..=9).contains(&value["days"].as_i64().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_regex_holds_on_a_large_vocabulary_too() {
        let tokenizer = gemma();
        let compiler = ConstraintCompiler::new(&tokenizer).unwrap();
        let (text, ended) = random_text(&compiler, &tokenizer, &Constraint::regex("(yes|no), [0-9]{3}"), 1);
        assert!(ended);
        let digits = text.strip_prefix("yes, ").or(text.strip_prefix("no, ")).unwrap_or_else(|| panic!("{text}"));
        assert!(digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
    }

    #[test]
    fn a_finished_constraint_allows_only_ends() {
        let tokenizer = smollm2();
        let mut state = SMOLLM2.compile(&Constraint::Lark("start: \"yes\" | \"no\"".into())).unwrap();
        assert!(!state.is_accepting() && !state.is_finished());
        let yes = tokenizer.encode("yes", Default::default()).unwrap();
        assert!(state.mask().unwrap().allows(yes[0]));
        yes.iter().for_each(|&id| state.accept(id).unwrap());
        assert!(state.is_finished());
        let mask = state.mask().unwrap();
        let allowed: Vec<u32> = (0..tokenizer.vocab_size() as u32).filter(|&id| mask.allows(id)).collect();
        assert_eq!(allowed, tokenizer.end_tokens());
    }

    #[test]
    fn rejects_constraints_that_cannot_be_used() {
        let huge = " ".repeat(2 << 20);
        for wrong in [
            Constraint::json_schema("{"),
            Constraint::json_schema(r#"{"type": "nonesuch"}"#),
            Constraint::regex("(a"),
            Constraint::Lark("start: nonesuch".into()),
            Constraint::json_schema(&huge),
            Constraint::regex("(?=a)b"),
        ] {
            let start = Instant::now();
            let refused = SMOLLM2.compile(&wrong);
            assert!(matches!(refused, Err(Error::Constraint { .. })), "{wrong:.100?}: {refused:?}");
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        }
        let mut state = SMOLLM2.compile(&Constraint::regex("a+")).unwrap();
        let b = smollm2().encode("b", Default::default()).unwrap()[0];
        assert!(matches!(state.accept(b), Err(Error::Constraint { .. })));
    }
}
