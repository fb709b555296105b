use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::Device;
use clap::Args;
use edgeweld::CancelToken;
use edgeweld_cloud::data::{Splits, read_tasks, read_wordings};
use edgeweld_cloud::files::write_atomically;
use edgeweld_cloud::generator::LanguageModel;
use edgeweld_cloud::train::{Sampler, StepReport, TrainConfig, Trainer, curves, fits};
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
    /// Other wordings of the tasks' instructions: lines of `{"task", "descriptions": […]}`, gzip or not.
    #[arg(long)]
    wordings: Option<PathBuf>,
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
    config.check()?;
    let splits = Splits::load(&args.splits)?;
    let mut tasks = Vec::new();
    for path in &args.data {
        tasks.extend(read_tasks(path)?.into_iter().filter(|task| splits.trains_on(task)));
    }
    if let Some(path) = &args.wordings {
        let mut wordings = read_wordings(path)?;
        tasks.iter_mut().for_each(|task| task.wordings.extend(wordings.remove(&task.name).unwrap_or_default()));
    }
    let device = Device::Cpu;
    let cloud = LanguageModel::load(&args.cloud, &device)?;
    let edge = LanguageModel::load(&args.edge, &device)?;
    let sampler = Sampler::new(tasks, &config, |item| fits(&edge, item, config.item_tokens_max));
    let [labelled, open, instructions] = sampler.counts();
    eprintln!("{labelled} tasks with labels or choices, {open} open ones, {instructions} instructions");
    let mut trainer = Trainer::new(config, cloud, edge, sampler, &device)?;
    for learner in &trainer.learners {
        let count: usize = learner.generator.parameters.trained().map(|(_, var)| var.elem_count()).sum();
        eprintln!("{}: {count} trained parameters", learner.name);
    }
    if args.resume {
        trainer.resume(&args.out)?;
        eprintln!("continuing after step {}", trainer.step);
    } else {
        trainer.fit_reading(cancel)?;
    }
    train(&mut trainer, &args.out, cancel)
}

fn train(trainer: &mut Trainer, out: &Path, cancel: &CancelToken) -> Result<()> {
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
                save(trainer, out)?;
                eprintln!("\nstopped after step {}; continue with --resume", trainer.step);
                return Ok(());
            }
            report => report?,
        };
        tokens += report.tokens;
        let now = report.learners[0];
        let loss = smooth.map_or(now.loss, |smooth: f64| 0.95 * smooth + 0.05 * now.loss);
        smooth = Some(loss);
        let seconds = start.elapsed().as_secs_f64();
        let mut line = serde_json::to_value(&report).expect("plain numbers");
        line["seconds"] = seconds.into();
        writeln!(metrics, "{line}").map_err(Error::io(&path))?;
        let per_step = seconds / (trainer.step - first_step) as f64;
        let minutes_left = per_step * (trainer.config.step_count - trainer.step) as f64 / 60.0;
        eprint!(
            "\rstep {}/{}  loss {:.3} (mean {loss:.3})  {:.0} tokens/s  {minutes_left:.0} min left   ",
            trainer.step,
            trainer.config.step_count,
            now.loss,
            tokens as f64 / seconds
        );
        if saved.elapsed() >= interval {
            save(trainer, out)?;
            saved = Instant::now();
        }
    }
    save(trainer, out)?;
    eprintln!();
    Ok(())
}

// The checkpoint to continue from, the generators as they are now, and the curves so far.
fn save(trainer: &Trainer, out: &Path) -> Result<()> {
    trainer.save(out)?;
    trainer.save_generator(out)?;
    let path = out.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    // After a kill, steps since the last checkpoint stand there twice: the later ones count.
    let mut steps: BTreeMap<u64, StepReport> = BTreeMap::new();
    let reports = text.lines().filter_map(|line| serde_json::from_str::<StepReport>(line).ok());
    steps.extend(reports.map(|report| (report.step, report)));
    write_atomically(&out.join("training.html"), curves(&steps.into_values().collect::<Vec<_>>()).as_bytes())
}
