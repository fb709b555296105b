//! Prompts to packs in the library.

use edgeweld::pack::{Content, RawPack};
use edgeweld::verify::{verify, verify_pool};
use edgeweld::{CancelToken, Digest, Error as EdgeError};
use edgeweld_cloud::Error;
use edgeweld_cloud::publish::{PackRequest, Payload, Publisher, PublisherOptions};

use crate::tiny::{PROMPT, PROMPT_TOKENS_MAX, Tiny, request, secret, trust};

/// Rows of a batch are multiplied in other blocks than those of one prompt, which rounds otherwise.
const ROUNDING: f32 = 1e-5;

#[test]
fn a_batch_of_prompts_in_one_pass_gives_what_single_passes_give() {
    let tiny = Tiny::new();
    let publisher = tiny.publisher();
    let prompts = ["say yes or no.", "x", "answer in one word and nothing else.", "say yes or no. twice"];
    let requests = prompts.map(|prompt| request(prompt, Payload::Dense));
    let batch = publisher.publish(&requests, &CancelToken::new()).unwrap().packs;
    assert_eq!(batch.len(), prompts.len());
    let mut distinct = 0;
    for (request, packed) in requests.iter().zip(&batch) {
        let single = publisher.publish(std::slice::from_ref(request), &CancelToken::new()).unwrap().packs.remove(0);
        let difference = (&single.gates.weights - &packed.gates.weights).mapv(f32::abs);
        assert!(difference.iter().all(|difference| *difference < ROUNDING), "{}", request.system_prompt);
        distinct += usize::from(single.gates.weights != batch[0].gates.weights);
    }
    assert!(distinct >= 2, "other prompts have other gates");
}

#[test]
fn a_gemma_reads_for_a_llama_and_the_device_accepts_both_payloads() {
    let tiny = Tiny::new();
    let publisher = tiny.publisher();
    let model = publisher.edge().clone();
    assert_eq!(model.architecture, "llama");
    let requests = [Payload::Dense, Payload::Gates].map(|payload| request(PROMPT, payload));
    let packs = publisher.publish(&requests, &CancelToken::new()).unwrap().packs;
    let pool = RawPack::read(publisher.pool_file().unwrap().to_vec()).unwrap();
    let pool = verify_pool(&pool, &trust(), &model).unwrap();
    let [dense, gates] = [0, 1].map(|index| {
        let raw = RawPack::read(packs[index].bytes.clone()).unwrap();
        verify(&raw, &trust(), &model, Some(&pool)).unwrap()
    });
    assert!(matches!(gates.manifest().content, Content::Gates { pool: digest, .. } if digest == pool.digest()));
    let prompt = dense.manifest().prompt.clone().unwrap();
    assert_eq!((prompt.digest, prompt.token_count), (Digest::of(PROMPT.as_bytes()), 14));
    assert_eq!(dense.manifest().labels["title"], "a test");
    // Dense values are rounded to f16 after mixing, pooled ones before.
    let f16 = 2e-3;
    for (dense, gates) in dense.lora().layers.iter().zip(&gates.lora().layers) {
        let (dense, gates) = (dense.gate.as_ref().unwrap(), gates.gate.as_ref().unwrap());
        assert!((&dense.b - &gates.b).iter().all(|difference| difference.abs() < f16));
        assert!(dense.b.iter().any(|value| value.abs() > 0.01), "the LoRA is not zero");
    }
}

#[test]
fn the_same_request_gives_the_same_bytes() {
    let tiny = Tiny::new();
    let made = || {
        let publisher = tiny.publisher();
        let request = request(PROMPT, Payload::Dense);
        let pack = publisher.publish(std::slice::from_ref(&request), &CancelToken::new()).unwrap().packs.remove(0);
        (publisher.request_digest(&request), pack.bytes)
    };
    assert!(made() == made());
}

#[test]
fn every_part_of_a_request_changes_its_name() {
    let tiny = Tiny::new();
    let publisher = tiny.publisher();
    let base = request(PROMPT, Payload::Dense);
    let others = [
        PackRequest { system_prompt: "say no or yes.".into(), ..base.clone() },
        PackRequest { payload: Payload::Gates, ..base.clone() },
        PackRequest { residual_prompt: Some("be brief".into()), ..base.clone() },
        PackRequest { labels: Default::default(), ..base.clone() },
    ];
    let name = publisher.request_digest(&base);
    assert!(others.iter().all(|other| publisher.request_digest(other) != name));
}

#[test]
fn rejects_prompts_that_are_empty_or_too_long() {
    let tiny = Tiny::new();
    let publisher = tiny.publisher();
    let check = |text: &str| publisher.check(&request(text, Payload::Dense));
    assert!(matches!(check(" \n"), Err(Error::EmptyPrompt)));
    let longest = "a".repeat(PROMPT_TOKENS_MAX - 1);
    assert_eq!(check(&longest).unwrap().len(), PROMPT_TOKENS_MAX, "a begin-of-text token comes first");
    let limit = PROMPT_TOKENS_MAX;
    assert!(
        matches!(check(&(longest + "a")), Err(Error::PromptTooLong { actual, limit: l }) if (actual, l) == (limit + 1, limit))
    );
    let residual = PackRequest { residual_prompt: Some("a".repeat(65)), ..request(PROMPT, Payload::Dense) };
    assert!(matches!(publisher.check(&residual), Err(Error::ResidualPromptTooLong { actual: 65, limit: 64 })));
}

#[test]
fn rejects_models_that_the_generator_was_not_made_for() {
    let tiny = Tiny::new();
    let (generator, cloud, edge) = (tiny.generator(), tiny.cloud(), tiny.cloud());
    let options = PublisherOptions { generator, cloud, edge, signer: Some(secret()), device: Default::default() };
    let error = Publisher::load(options).err().unwrap();
    assert!(matches!(&error, Error::InvalidFile { reason, .. } if reason.contains("edge model")), "{error}");
}

#[test]
fn a_cancelled_pass_ends_by_name() {
    let tiny = Tiny::new();
    let cancel = CancelToken::new();
    cancel.cancel();
    let error = tiny.publisher().publish(&[request(PROMPT, Payload::Dense)], &cancel).err().unwrap();
    assert!(matches!(error, Error::Edge(EdgeError::Cancelled)), "{error}");
}
