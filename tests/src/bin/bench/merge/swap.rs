use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use edgeweld::chat::Message;
use edgeweld::generate::{Engine, GenerateOptions, LoadOptions, Session, Token};
use edgeweld::merge::{MergeMode, MergeOptions};
use edgeweld::pack::{
    Composition, ExpertPair, ExpertPool, Gates, GeneratorInfo, PackInfo, Precision, PromptInfo, RawPack, SecretKey,
    write_gates, write_pool,
};
use edgeweld::verify::{TrustPolicy, VerifiedPack, verify, verify_pool};
use edgeweld::{CancelToken, Digest};
use edgeweld_tests::arms::median;
use ndarray::{Array2, Array3};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Options, ROUNDS};

/// The paper's pool: experts, and those of them that a layer uses.
const EXPERTS: usize = 8;
const ACTIVE: usize = 2;

pub(super) fn run(options: &Options, model: &Path) -> Result<()> {
    options.device.prepare(model)?;
    let load = LoadOptions { threads: Some(options.threads), ..LoadOptions::default() };
    measure(options, &options.device.load(model, load)?)
}

/// Alternates between two gates packs of one pool.
pub(super) fn measure(options: &Options, engine: &Engine) -> Result<()> {
    let (packs, verify_ms) = gates_packs(engine, options.rank)?;
    let side_path = MergeOptions { mode: MergeMode::SidePath, ..MergeOptions::default() };
    let mut session = engine.session()?;
    let (mut swaps, mut after, mut steady) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..2 * ROUNDS {
        let start = Instant::now();
        engine.merge(&packs[round % 2], &side_path, &CancelToken::new(), &|_, _, _| ())?;
        swaps.push(start.elapsed().as_secs_f64() * 1e3);
        after.push(first_token_ms(&mut session)?);
        session.clear();
        steady.push(first_token_ms(&mut session)?);
    }
    let extra: Vec<f64> = after.iter().zip(&steady).map(|(after, steady)| after - steady).collect();
    let (swap, extra) = (median(swaps), median(extra));
    println!(
        "Swap to another gates pack's side path: {swap:.2} ms, and the first token {extra:+.2} ms ({:.1} ms after a swap, {:.1} ms without one): {:.2} ms in all. Verifying the pack and mixing its pairs before: {verify_ms:.1} ms.",
        median(after),
        median(steady),
        swap + extra,
    );
    engine.merge(&packs[0], &side_path, &CancelToken::new(), &|_, _, _| ())?;
    let kept = engine.pack();
    if let Some(kept) = kept {
        engine.unmerge()?;
        let start = Instant::now();
        engine.swap(&kept)?;
        let swapped = start.elapsed();
        engine.runner()?;
        println!(
            "Putting back a pack that was merged before: {:.1} µs, and a new sequence on it {:.0} µs.",
            swapped.as_secs_f64() * 1e6,
            (start.elapsed() - swapped).as_secs_f64() * 1e6,
        );
    }
    Ok(())
}

fn first_token_ms(session: &mut Session) -> Result<f64> {
    let one = GenerateOptions { max_tokens: 1, ..GenerateOptions::default() };
    let messages = [Message::user("What is the tallest mountain on the island of Borneo?")];
    Ok(session.chat(&messages, &one, &mut |_: &Token| ())?.time_to_first_token_ms)
}

/// Two packs of one pool of random experts, and the median milliseconds that verifying one takes.
fn gates_packs(engine: &Engine, rank: usize) -> Result<(Vec<VerifiedPack>, f64)> {
    let config = engine.config().context("a GGUF model")?;
    let mut random = SmallRng::seed_from_u64(1);
    let mut experts = |out: usize, input: usize| {
        let mut array = |shape| Array3::from_shape_simple_fn(shape, || random.random_range(-0.02..0.02));
        Some(ExpertPair { a: array((EXPERTS, rank, input)), b: array((EXPERTS, out, rank)) })
    };
    let (hidden, ffn) = (config.hidden_size, config.ffn_size);
    let (gate, up, down) = (experts(ffn, hidden), experts(ffn, hidden), experts(hidden, ffn));
    let pool = ExpertPool { alpha: rank as f32, gate, up, down };
    let secret = SecretKey::from_seed(&[9; 32]);
    let trust = TrustPolicy::trusting([secret.public_key()]);
    let info = |prompt| PackInfo {
        model: engine.identity().clone(),
        prompt,
        residual_prompt: None,
        generator: GeneratorInfo { name: "random".into(), version: "1".into(), settings: BTreeMap::new() },
        quality: Vec::new(),
        labels: BTreeMap::new(),
    };
    let layers = config.layer_count();
    let file = write_pool(&pool, layers, Precision::F16, info(None), Some(&secret))?;
    let digest = Digest::of(&file);
    let verified_pool = verify_pool(&RawPack::read(file)?, &trust, engine.identity())?;
    let mut times = Vec::new();
    let mut pack = |first: usize| -> Result<VerifiedPack> {
        let active = |layer: usize, expert: usize| (expert + EXPERTS - (layer + first) % EXPERTS) % EXPERTS < ACTIVE;
        let weights =
            Array2::from_shape_fn(
                (layers, EXPERTS),
                |(layer, expert)| {
                    if active(layer, expert) { 1.0 / ACTIVE as f32 } else { 0.0 }
                },
            );
        let prompt = Some(PromptInfo { digest: Digest::of(b"prompt"), token_count: 1 });
        let mix = Composition::Average;
        let file = RawPack::read(write_gates(&Gates { weights }, mix, &pool, digest, info(prompt), Some(&secret))?)?;
        for _ in 0..ROUNDS - 1 {
            let start = Instant::now();
            verify(&file, &trust, engine.identity(), Some(&verified_pool))?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(verify(&file, &trust, engine.identity(), Some(&verified_pool))?)
    };
    let packs = vec![pack(0)?, pack(3)?];
    Ok((packs, median(times)))
}
