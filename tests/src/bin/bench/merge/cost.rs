use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use edgeweld::CancelToken;
use edgeweld::generate::{Engine, LoadOptions};
use edgeweld::gguf::GgufFile;
use edgeweld::lora::Target;
use edgeweld::merge::{Rounding, requantize_unverified};
use edgeweld::quant::BlockType;
use edgeweld_tests::Table;
use edgeweld_tests::arms::median;

use super::{Options, ROUNDS, deltas, name, percent, swap};

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
        let lora = deltas::scaled(&file, engine.config().expect("a GGUF model"), options.rank, *norm, &Target::ALL)?;
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
    swap::measure(options, &engine)
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
