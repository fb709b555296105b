use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_core::Device;
use clap::Args;
use edgeweld::CancelToken;
use edgeweld_cloud::data::{Splits, read_tasks};
use edgeweld_cloud::generator::{Generator, LanguageModel};
use edgeweld_cloud::train::{Sampler, TrainConfig, Trainer};
use edgeweld_cloud::{Error, Result};

/// Train a generator, or continue to.
#[derive(Args)]
pub(crate) struct TrainArgs {
    /// TOML file; what it leaves out has the paper's value.
    #[arg(long)]
    config: PathBuf,
    /// GGUF file of the cloud LM.
    #[arg(long)]
    cloud: PathBuf,
    /// GGUF file of the edge model.
    #[arg(long)]
    edge: PathBuf,
    /// Data file (task, mc or instr lines, gzip or not); repeat for more.
    #[arg(long, required = true)]
    data: Vec<PathBuf>,
    /// JSON file of the tasks that are kept out of training.
    #[arg(long)]
    splits: PathBuf,
    /// Folder of checkpoints and metrics.
    #[arg(long)]
    out: PathBuf,
    /// Continue from the folder's checkpoint.
    #[arg(long)]
    resume: bool,
    /// Threads to compute with; default: all.
    #[arg(long)]
    threads: Option<usize>,
}

pub(crate) fn run(args: TrainArgs, cancel: &CancelToken) -> Result<()> {
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        pool.map_err(|error| Error::InvalidOption { option: "--threads", reason: error.to_string() })?;
    }
    let text = std::fs::read_to_string(&args.config).map_err(Error::io(&args.config))?;
    let config: TrainConfig = toml::from_str(&text)
        .map_err(|error| Error::InvalidFile { path: args.config.clone(), reason: error.to_string() })?;
    let splits = Splits::load(&args.splits)?;
    let mut tasks = Vec::new();
    for path in &args.data {
        tasks.extend(read_tasks(path)?.into_iter().filter(|task| splits.trains_on(task)));
    }
    let sampler = Sampler::new(tasks);
    let (task_count, instruction_count) = sampler.counts();
    eprintln!("{task_count} tasks, {instruction_count} instructions");

    let device = Device::Cpu;
    let cloud = LanguageModel::load(&args.cloud, &device)?;
    let edge = LanguageModel::load(&args.edge, &device)?;
    let (cloud_config, edge_config) = (&cloud.decoder.config, &edge.decoder.config);
    let generator = Generator::new(config.generator.clone(), cloud_config, edge_config, config.seed, &device)?;
    let parameter_count: usize = generator.parameters.trained().map(|(_, var)| var.elem_count()).sum();
    eprintln!("{parameter_count} trained parameters");
    let mut trainer = Trainer::new(config, generator, cloud, edge, sampler);
    if args.resume {
        trainer.resume(&args.out)?;
        eprintln!("continuing after step {}", trainer.step);
    }
    train(&mut trainer, &args.out, cancel)
}

fn train(trainer: &mut Trainer, out: &std::path::Path, cancel: &CancelToken) -> Result<()> {
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    let path = out.join("metrics.jsonl");
    let file = std::fs::File::options().create(true).append(true).open(&path);
    let mut metrics = file.map_err(Error::io(&path))?;
    let interval = Duration::from_secs_f64(trainer.config.checkpoint_minutes * 60.0);
    let (start, first_step) = (Instant::now(), trainer.step);
    let mut saved = Instant::now();
    let (mut tokens, mut smooth) = (0, None);
    while trainer.step < trainer.config.step_count {
        let report = match trainer.advance(cancel) {
            Err(Error::Edge(edgeweld::Error::Cancelled)) => {
                trainer.save(out)?;
                trainer.save_generator(out)?;
                eprintln!("\nstopped after step {}; continue with --resume", trainer.step);
                return Ok(());
            }
            report => report?,
        };
        tokens += report.tokens;
        let loss = smooth.map_or(report.loss, |smooth: f64| 0.95 * smooth + 0.05 * report.loss);
        smooth = Some(loss);
        let seconds = start.elapsed().as_secs_f64();
        let mut line = serde_json::to_value(report).expect("plain numbers");
        line["seconds"] = seconds.into();
        writeln!(metrics, "{line}").map_err(Error::io(&path))?;
        let per_step = seconds / (trainer.step - first_step) as f64;
        let minutes_left = per_step * (trainer.config.step_count - trainer.step) as f64 / 60.0;
        eprint!(
            "\rstep {}/{}  loss {:.3} (mean {loss:.3})  {:.0} tokens/s  {minutes_left:.0} min left   ",
            trainer.step,
            trainer.config.step_count,
            report.loss,
            tokens as f64 / seconds
        );
        if saved.elapsed() >= interval {
            trainer.save(out)?;
            trainer.save_generator(out)?;
            saved = Instant::now();
        }
    }
    trainer.save(out)?;
    trainer.save_generator(out)?;
    eprintln!();
    Ok(())
}
