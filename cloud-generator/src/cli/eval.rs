use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use edgeweld::CancelToken;
use edgeweld_cloud::data::{Splits, Task, read_tasks};
use edgeweld_cloud::edge_model::EdgeModel;
use edgeweld_cloud::eval::{
    Arm, EvalOptions, EvalProgress, EvalTask, Format, Outcome, PackSources, Packs, RefineSource, Report, evaluate,
    html, select,
};
use edgeweld_cloud::files::write_atomically;
use edgeweld_cloud::generator::GeneratorInfo;
use edgeweld_cloud::refine::{Progress, RefineOptions};
use edgeweld_cloud::{Error, Result};

use super::refine::print_progress;

/// Which tasks of the files to evaluate on.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Split {
    /// Those kept for tuning.
    Dev,
    /// Those kept for the final figures.
    Unseen,
    /// All.
    All,
}

/// How items become text.
#[derive(Clone, Copy, ValueEnum)]
enum FormatArg {
    /// A user's turn of the chat template.
    Chat,
    /// lm-evaluation-harness's prompts (mc files).
    Harness,
}

/// Evaluate an edge model with prompts, packs and baselines on tasks; an interrupted run continues when given again.
#[derive(Args)]
pub(crate) struct EvalArgs {
    /// GGUF file of the edge model.
    #[arg(long)]
    edge: PathBuf,
    /// Generator folder, for the pack arms.
    #[arg(long, requires = "cloud")]
    generator: Option<PathBuf>,
    /// GGUF file of the generator's cloud LM.
    #[arg(long, requires = "generator")]
    cloud: Option<PathBuf>,
    /// Generator folder of the multi-task LoRA, for the lora arm; default: `baseline` beside the generator's files.
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Generator folder of the multi-task LoRA that was trained with prompts in the context, for the lora-prompt arm.
    #[arg(long)]
    prompted_baseline: Option<PathBuf>,
    /// Generator folder of LoRA experts that tokens choose from (LoRAMoE, MixLoRA), for the lora-tokens arm.
    #[arg(long)]
    token_baseline: Option<PathBuf>,
    /// Data file (task or mc lines, gzip or not); repeat for more.
    #[arg(long, required = true)]
    tasks: Vec<PathBuf>,
    /// Data file to take examples from, where tasks of `--tasks` have none (the train file of an mc set); repeat for more.
    #[arg(long)]
    examples: Vec<PathBuf>,
    /// JSON file of the splits by task.
    #[arg(long)]
    splits: Option<PathBuf>,
    /// Which tasks of the files.
    #[arg(long, value_enum, default_value = "all")]
    split: Split,
    /// Arms, separated by commas: none, prompt, fewshot, pack, pack-mismatched, pack-same-labels, lora, lora-prompt,
    /// lorahub, lora-tokens.
    #[arg(long, value_delimiter = ',', default_value = "none,prompt,pack,pack-mismatched")]
    arms: Vec<String>,
    /// Most items per task.
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Examples in the context of the fewshot arm, and that the lorahub arm fits.
    #[arg(long, default_value_t = 5)]
    shots: usize,
    /// Examples in the prompt that a pack is made of.
    #[arg(long, default_value_t = 1)]
    pack_examples: usize,
    /// Refine every pack first: learn so many items of its task with their answers, none of them an evaluated one. Packs stay
    /// in the report's folder. Without a generator they start from zero.
    #[arg(long, value_name = "COUNT")]
    refine_examples: Option<usize>,
    /// TOML file of settings for that, as `refine --config` takes it.
    #[arg(long, requires = "refine_examples")]
    refine_config: Option<PathBuf>,
    /// How items become text; default: harness for mc files of the eight reasoning sets, chat for all else.
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
    /// Most different answers of a task that has a label set.
    #[arg(long, default_value_t = 12)]
    labels_max: usize,
    /// Also evaluate tasks with open answers, by greedy text.
    #[arg(long)]
    open: bool,
    /// Longest answer to an open item, in tokens.
    #[arg(long, default_value_t = 48)]
    answer_tokens: usize,
    /// Folder of the report: `outcomes.jsonl` (what resuming reads), `report.json`, `report.html`.
    #[arg(long)]
    out: PathBuf,
    /// Threads to compute with; default: one per core.
    #[arg(long)]
    threads: Option<usize>,
}

const REASONING_SETS: [&str; 8] =
    ["arc_challenge", "arc_easy", "openbookqa", "boolq", "socialiqa", "hellaswag", "winogrande", "piqa"];

pub(crate) fn run(args: EvalArgs, cancel: &CancelToken) -> Result<()> {
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        pool.map_err(|error| Error::InvalidOption { option: "--threads", reason: error.to_string() })?;
    }
    let arms = args.arms.iter().map(|name| arm(name)).collect::<Result<Vec<_>>>()?;
    let tasks = tasks(&args)?;
    if tasks.is_empty() {
        return Err(Error::InvalidOption { option: "--tasks", reason: "no task with a label set is left".into() });
    }
    let harness = tasks.iter().all(|task| REASONING_SETS.contains(&task.task.name.as_str()));
    let format = match args.format {
        Some(FormatArg::Chat) => Format::Chat,
        Some(FormatArg::Harness) => Format::Harness,
        None if harness => Format::Harness,
        None => Format::Chat,
    };
    let options = EvalOptions {
        arms,
        shots: args.shots,
        pack_examples: args.pack_examples,
        format,
        answer_tokens_max: args.answer_tokens,
    };
    let refine_options = RefineOptions::load(args.refine_config.as_deref())?;
    let settings = settings(&args, &options, &refine_options, &tasks)?;

    std::fs::create_dir_all(&args.out).map_err(Error::io(&args.out))?;
    let (done, path) = outcomes(&args.out, &settings)?;
    let edge = EdgeModel::load(&args.edge, args.threads)?;
    let beside = args.generator.as_ref().map(|folder| folder.join("baseline")).filter(|folder| folder.exists());
    let baseline = args.baseline.clone().or(beside);
    let packs_folder = args.out.join("packs");
    let sources = PackSources {
        generator: args.generator.as_deref().zip(args.cloud.as_deref()),
        lora: baseline.as_deref(),
        lora_prompt: args.prompted_baseline.as_deref(),
        token_routed: args.token_baseline.as_deref(),
        refine: args.refine_examples.map(|example_count| RefineSource {
            example_count,
            options: &refine_options,
            folder: &packs_folder,
        }),
    };
    let packs = Packs::load(&args.edge, sources)?;
    let mut file = std::fs::File::options().append(true).open(&path).map_err(Error::io(&path))?;
    let evaluation = evaluate(&edge, &packs, &tasks, &options, done, cancel, &mut |progress| {
        let (done, total, outcome) = match progress {
            EvalProgress::Refining { task, progress } => {
                if matches!(progress, Progress::Looked { step: 0, .. } | Progress::Resumed { .. }) {
                    eprintln!("refining the pack of {task}");
                }
                print_progress(progress);
                return Ok(());
            }
            EvalProgress::Done { done, total, outcome } => (done, total, outcome),
        };
        let line = serde_json::to_string(outcome).expect("plain values");
        writeln!(file, "{line}").map_err(Error::io(&path))?;
        let mean = outcome.scores.iter().map(|score| score.main).sum::<f64>() / outcome.scores.len() as f64;
        let (task, arm) = (&outcome.task, outcome.arm.name());
        eprintln!("{done}/{total}  {task}  {arm}  {:.1}", 100.0 * mean);
        Ok(())
    })?;
    let report = Report::of(&evaluation, settings);
    println!("{}", report.table());
    let json = serde_json::to_string_pretty(&report).expect("plain values");
    write_atomically(&args.out.join("report.json"), json.as_bytes())?;
    write_atomically(&args.out.join("report.html"), html(&report).as_bytes())
}

fn arm(name: &str) -> Result<Arm> {
    Arm::ALL.into_iter().find(|arm| arm.name() == name).ok_or_else(|| {
        let known = Arm::ALL.map(Arm::name).join(", ");
        Error::InvalidOption { option: "--arms", reason: format!("{name} is none of {known}") }
    })
}

fn tasks(args: &EvalArgs) -> Result<Vec<EvalTask>> {
    let splits = args.splits.as_deref().map(Splits::load).transpose()?;
    let wanted = |task: &Task| -> Result<bool> {
        let reason = || Error::InvalidOption { option: "--split", reason: "needs --splits".into() };
        Ok(match args.split {
            Split::All => true,
            Split::Dev => splits.as_ref().ok_or_else(reason)?.dev.contains(&task.name),
            Split::Unseen => splits.as_ref().ok_or_else(reason)?.unseen.contains(&task.name),
        })
    };
    let mut tasks = Vec::new();
    for path in &args.tasks {
        for task in read_tasks(path)? {
            if wanted(&task)? {
                tasks.push(task);
            }
        }
    }
    let mut tasks = select(tasks, args.limit, args.labels_max, args.open);
    for path in &args.examples {
        for source in read_tasks(path)? {
            for task in tasks.iter_mut().filter(|task| task.task.name == source.name) {
                task.take_examples(&source.items, args.shots.max(args.pack_examples));
            }
        }
    }
    Ok(tasks)
}

fn settings(
    args: &EvalArgs,
    options: &EvalOptions,
    refine_options: &RefineOptions,
    tasks: &[EvalTask],
) -> Result<serde_json::Value> {
    let name = |folder: &PathBuf| Ok::<_, Error>(GeneratorInfo::load(folder)?.name);
    let file = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(serde_json::json!({
        "edge": file(&args.edge),
        "generator": args.generator.as_ref().map(name).transpose()?,
        "baseline": args.baseline.as_ref().map(name).transpose()?,
        "prompted_baseline": args.prompted_baseline.as_ref().map(name).transpose()?,
        "token_baseline": args.token_baseline.as_ref().map(name).transpose()?,
        "cloud": args.cloud.as_ref().and_then(file),
        "files": args.tasks.iter().filter_map(file).collect::<Vec<_>>(),
        "split": format!("{:?}", args.split).to_lowercase(),
        "limit": args.limit,
        "labels_max": args.labels_max,
        "options": options,
        "refined_on": args.refine_examples,
        "refine_options": args.refine_examples.map(|_| refine_options),
        "tasks": tasks.iter().map(|task| &task.task.name).collect::<Vec<_>>(),
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

// What an earlier run of the same settings has done, and the file that more goes to. Its first line is the settings
// without the arms: more arms may be added later.
fn outcomes(folder: &Path, settings: &serde_json::Value) -> Result<(Vec<Outcome>, PathBuf)> {
    let path = folder.join("outcomes.jsonl");
    let mut key = settings.clone();
    key["options"]["arms"] = serde_json::Value::Null;
    let key = key.to_string();
    if !path.exists() {
        std::fs::write(&path, format!("{key}\n")).map_err(Error::io(&path))?;
        return Ok((Vec::new(), path));
    }
    let file = std::fs::File::open(&path).map_err(Error::io(&path))?;
    let mut lines = BufReader::new(file).lines();
    let first = lines.next().transpose().map_err(Error::io(&path))?;
    if first.as_deref() != Some(key.as_str()) {
        let reason = "is of another evaluation: choose another folder for --out".into();
        return Err(Error::InvalidFile { path, reason });
    }
    let mut done = Vec::new();
    let mut text = String::new();
    for line in lines {
        let line = line.map_err(Error::io(&path))?;
        // A line that a kill cut short is left out, and run again.
        if let Ok(outcome) = serde_json::from_str::<Outcome>(&line) {
            text += &format!("{line}\n");
            done.push(outcome);
        }
    }
    write_atomically(&path, format!("{key}\n{text}").as_bytes())?;
    Ok((done, path))
}
