use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use edgeweld::CancelToken;
use edgeweld::chat::Message;
use edgeweld_cloud::device::Device;
use edgeweld_cloud::edge_model::EdgeModel;
use edgeweld_cloud::files::write_atomically;
use edgeweld_cloud::publish::{PackRequest, Payload, Publisher, PublisherOptions};
use edgeweld_cloud::{Error, Result};

use super::keygen::read_secret;
use super::models::Models;
use super::picture::heat_map;

/// Make the pack of each prompt in one forward pass.
#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// Generator folder.
    #[arg(long)]
    generator: PathBuf,
    /// Cloud LM, by name or path.
    #[arg(long)]
    cloud: String,
    /// Edge model, by name or path.
    #[arg(long)]
    edge: String,
    #[command(flatten)]
    models: Models,
    /// Where the cloud LM runs.
    #[arg(long, value_enum, default_value = "auto")]
    device: Device,
    /// Text file of the system prompt; repeat to make several packs in one pass.
    #[arg(long, required = true)]
    prompt_file: Vec<PathBuf>,
    /// Text file of a short prompt that stays in the context of every pack (at most 64 tokens).
    #[arg(long)]
    residual_prompt_file: Option<PathBuf>,
    /// Secret key file; without one the pack is unsigned, and devices refuse it by default.
    #[arg(long)]
    sign: Option<PathBuf>,
    /// What the pack carries.
    #[arg(long, value_enum, default_value = "dense")]
    payload: Payload,
    /// Where the pool file goes; needed with `--payload gates`.
    #[arg(long)]
    pool_out: Option<PathBuf>,
    /// Also time this many rounds of making the packs, each followed by a prefill of every prompt by the edge model on
    /// the CPU: what a request without a pack and without a saved prefix costs.
    #[arg(long, value_name = "ROUNDS", value_parser = clap::value_parser!(u16).range(1..))]
    time_prefill: Option<u16>,
    /// Pack file, one per prompt file in the same order.
    #[arg(short, long = "output", required = true)]
    output: Vec<PathBuf>,
}

pub(crate) fn run(args: GenerateArgs, cancel: &CancelToken) -> Result<()> {
    if args.output.len() != args.prompt_file.len() {
        let reason = format!("{} files for {} prompts", args.output.len(), args.prompt_file.len());
        return Err(Error::InvalidOption { option: "--output", reason });
    }
    if args.payload == Payload::Gates && args.pool_out.is_none() {
        let reason = "a gates pack needs the pool file: say where to write it".into();
        return Err(Error::InvalidOption { option: "--pool-out", reason });
    }
    let read = |path: &PathBuf| std::fs::read_to_string(path).map_err(Error::io(path));
    let residual_prompt = args.residual_prompt_file.as_ref().map(read).transpose()?;
    let requests = args.prompt_file.iter().map(|path| {
        let residual_prompt = residual_prompt.as_ref().map(|text| text.trim().to_owned());
        let (payload, labels) = (args.payload, BTreeMap::new());
        Ok(PackRequest { system_prompt: read(path)?, payload, residual_prompt, labels })
    });
    let requests = requests.collect::<Result<Vec<_>>>()?;
    let signer = args.sign.as_deref().map(read_secret).transpose()?;
    if signer.is_none() {
        eprintln!("warning: without --sign the packs are unsigned, and devices refuse them by default");
    }

    let start = Instant::now();
    let (cloud, edge) = (args.models.find(&args.cloud)?, args.models.find(&args.edge)?);
    let generator = args.generator;
    let options = PublisherOptions { generator, cloud, edge: edge.clone(), signer, device: args.device };
    let publisher = Publisher::load(options)?;
    let load_time = start.elapsed();
    let made = publisher.publish(&requests, cancel)?;
    let (count, forward, write) = (requests.len(), made.forward_time, made.write_time);
    println!(
        "{}: loaded in {load_time:.2?}; read {count} prompts in one pass of {forward:.2?}; wrote packs in {write:.2?}",
        publisher.info().name
    );
    if let Some(path) = &args.pool_out {
        let bytes = publisher.pool_file()?;
        write_atomically(path, bytes)?;
        println!("{}: pool of {} bytes, devices fetch it once", path.display(), bytes.len());
    }
    for (pack, path) in made.packs.iter().zip(&args.output) {
        write_atomically(path, &pack.bytes)?;
        println!("{}: {} bytes for a prompt of {} tokens", path.display(), pack.bytes.len(), pack.prompt_tokens);
        print!("{}", heat_map(&pack.gates));
    }
    match args.time_prefill {
        Some(rounds) => time_prefill(&publisher, &edge, &requests, rounds, cancel),
        None => Ok(()),
    }
}

fn time_prefill(
    publisher: &Publisher,
    edge: &Path,
    requests: &[PackRequest],
    rounds: u16,
    cancel: &CancelToken,
) -> Result<()> {
    let edge = EdgeModel::load(edge, None)?;
    let prompts = requests.iter().map(|request| edge.encode(&[Message::system(&request.system_prompt)]));
    let prompts = prompts.collect::<Result<Vec<_>>>()?;
    let (mut reading, mut making, mut prefill) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        let made = publisher.publish(requests, cancel)?;
        making.push(start.elapsed());
        reading.push(made.forward_time);
        let start = Instant::now();
        for ids in &prompts {
            edge.reader(ids.len(), None)?.next(ids, cancel)?;
        }
        prefill.push(start.elapsed());
    }
    let (reading, making, prefill) = (median(reading), median(making), median(prefill));
    let ratio = |time: Duration| time.as_secs_f64() / prefill.as_secs_f64();
    println!(
        "median of {rounds}: prefill by the edge model {prefill:.1?}; gates {reading:.1?} ({:.2}x); whole packs {making:.1?} \
         ({:.2}x)",
        ratio(reading),
        ratio(making)
    );
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
