use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use edgeweld::chat::Message;
use edgeweld::generate::{Engine, GenerateOptions, LoadOptions, Session, Token};
use edgeweld::gguf::GgufFile;
use edgeweld::lora::Target;
use edgeweld::merge::{MergeMode, MergeOptions, Rounding, requantize_unverified};
use edgeweld::pack::{GeneratorInfo, PackInfo, Precision, PromptInfo, RawPack, SecretKey, write_dense};
use edgeweld::quant::BlockType;
use edgeweld::verify::{TrustPolicy, VerifiedPack, verify};
use edgeweld::{CancelToken, Digest};
use edgeweld_tests::arms::median;
use edgeweld_tests::{Table, random_lora};

use super::{Options, deltas, name, percent};

const ROUNDS: usize = 7;

pub(super) fn run(options: &Options, model: &Path) -> Result<()> {
    let file = GgufFile::open(model)?;
    let engine = Engine::load(model, &LoadOptions { threads: Some(options.threads), ..LoadOptions::default() })?;
    let touched: Vec<&[u8]> = file
        .tensors()
        .filter(|tensor| {
            Target::ALL.iter().any(|target| tensor.name().ends_with(&deltas::tensor_name(0, *target)[5..]))
        })
        .map(|tensor| tensor.bytes())
        .collect();
    let touched_bytes: usize = touched.iter().map(|bytes| bytes.len()).sum();
    let mut in_use: Vec<Vec<u8>> = touched.iter().map(|bytes| bytes.to_vec()).collect();
    let (mut over, mut fresh) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        over.push(copy_ms(&touched, options.threads, &mut in_use));
        fresh.push(copy_ms(&touched, options.threads, &mut vec![Vec::new(); touched.len()]));
    }
    let (over, fresh) = (median(over), median(fresh));
    println!(
        "\n**{}**, {} threads: {:.1} MB of FFN weights, copied in {over:.1} ms over memory in use, in {fresh:.1} ms into fresh memory, as a merge must; the file has {:.1} MB\n",
        name(model),
        options.threads,
        touched_bytes as f64 / 1e6,
        file.size_bytes() as f64 / 1e6,
    );

    let head = [
        "delta",
        "way",
        "ms",
        "of the copy over memory in use",
        "into fresh memory",
        "MB of merged weights",
        "of the model",
    ];
    let mut table = Table::new(head);
    for norm in &options.norms {
        let lora = deltas::scaled(&file, engine.config(), options.rank, *norm, &Target::ALL)?;
        for (way, promote_to) in [("merge", None), ("promote", Some(BlockType::Q8_0))] {
            let (mut times, mut size) = (Vec::new(), 0);
            for _ in 0..ROUNDS {
                let cancel = CancelToken::new();
                let rounding = Rounding::Amplified;
                let done = requantize_unverified(&file, &lora, promote_to, rounding, options.threads, &cancel)?;
                times.push(done.elapsed.as_secs_f64() * 1e3);
                size = done.size_bytes();
            }
            let time = median(times);
            table.row([
                percent(*norm),
                way.to_owned(),
                format!("{time:.1}"),
                format!("{:.1}x", time / over),
                format!("{:.1}x", time / fresh),
                format!("{:.1}", size as f64 / 1e6),
                format!("{:.2}x", size as f64 / file.size_bytes() as f64),
            ]);
        }
    }
    println!("{table}");
    swap(options, &engine)
}

pub(super) fn swap_on_device(options: &Options, model: &Path) -> Result<()> {
    options.device.prepare(model)?;
    let load = LoadOptions { threads: Some(options.threads), ..LoadOptions::default() };
    swap(options, &options.device.load(model, load)?)
}

/// The touched weights read and written once, into `copies`: over what they hold, or into memory that the system has not
/// given out before where they are empty.
fn copy_ms(parts: &[&[u8]], threads: usize, copies: &mut [Vec<u8>]) -> f64 {
    let start = Instant::now();
    let share = parts.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (parts, copies) in parts.chunks(share).zip(copies.chunks_mut(share)) {
            scope.spawn(move || {
                for (part, copy) in parts.iter().zip(copies) {
                    copy.clear();
                    copy.extend_from_slice(part);
                }
            });
        }
    });
    start.elapsed().as_secs_f64() * 1e3
}

fn swap(options: &Options, engine: &Engine) -> Result<()> {
    let packs = [pack(engine, options.rank, 1)?, pack(engine, options.rank, 2)?];
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
        "Swap to another pack's side path: {swap:.2} ms, and the first token {extra:+.2} ms ({:.1} ms after a swap, {:.1} ms without one): {:.2} ms in all.",
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
            "Putting back a pack that was merged before: {:.1} µs, and a sequence on it {:.0} µs.",
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

fn pack(engine: &Engine, rank: usize, seed: u64) -> Result<VerifiedPack> {
    let secret = SecretKey::from_seed(&[9; 32]);
    let info = PackInfo {
        model: engine.identity().clone(),
        prompt: Some(PromptInfo { digest: Digest::of(b"prompt"), token_count: 1 }),
        residual_prompt: None,
        generator: GeneratorInfo { name: "random".into(), version: "1".into(), settings: BTreeMap::new() },
        quality: Vec::new(),
        labels: BTreeMap::new(),
    };
    let lora = random_lora(engine.config(), rank, 0.02, seed);
    let bytes = write_dense(&lora, None, Precision::F16, info, Some(&secret))?;
    Ok(verify(&RawPack::read(bytes)?, &TrustPolicy::trusting([secret.public_key()]), engine.identity(), None)?)
}
