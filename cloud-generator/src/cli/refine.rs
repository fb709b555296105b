use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use candle_core::Device;
use clap::Args;
use edgeweld::chat::{Message, examples_as_turns};
use edgeweld::lora::LoraSet;
use edgeweld::pack::{self, Measurement, PackInfo, Precision, PromptInfo};
use edgeweld::tokenizer::EncodeOptions;
use edgeweld::{CancelToken, Digest};
use edgeweld_cloud::edge_model::EdgeModel;
use edgeweld_cloud::files::write_atomically;
use edgeweld_cloud::generator::{Generator, LanguageModel};
use edgeweld_cloud::refine::{self, Fidelity, Progress, RefineOptions, Refined};
use edgeweld_cloud::{Error, Result};

use super::keygen::read_secret;

/// Make the pack of one prompt by training: the edge model with the prompt teaches the one without it, or it learns from
/// examples with their right answers.
///
/// Takes minutes on two cores. An interrupted run continues when the same command is given again.
#[derive(Args)]
pub(crate) struct RefineArgs {
    /// GGUF file of the edge model.
    #[arg(long)]
    edge: PathBuf,
    /// Text file of the system prompt.
    #[arg(long)]
    prompt_file: PathBuf,
    /// JSON lines of what users may send: `{"query": "…", "answer": "…", "split": "train" | "dev" | "test"}`. `split` is
    /// optional. Where all lines have an `answer`, these are learnt; otherwise what the prompted model answers. Without
    /// this file, the prompt's own examples are used (lines such as `User: …`).
    #[arg(long)]
    queries: Option<PathBuf>,
    /// Keep the prompt in one piece for the teacher. Otherwise examples at its end (`User: …`, `Assistant: …`) are shown
    /// to the teacher as turns, which small models follow better.
    #[arg(long)]
    whole_prompt: bool,
    /// Generator folder: start from the LoRA it makes, not from zero.
    #[arg(long, requires = "cloud")]
    generator: Option<PathBuf>,
    /// GGUF file of the generator's cloud LM.
    #[arg(long, requires = "generator")]
    cloud: Option<PathBuf>,
    /// Secret key file; without one the pack is unsigned, and devices refuse it by default.
    #[arg(long)]
    sign: Option<PathBuf>,
    /// Pack file.
    #[arg(short, long)]
    output: PathBuf,
    /// TOML file of settings; options given here win.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Rank of the LoRA pairs.
    #[arg(long)]
    rank: Option<usize>,
    /// Most optimiser steps.
    #[arg(long)]
    steps: Option<u64>,
    /// Most minutes of training.
    #[arg(long)]
    minutes: Option<f64>,
    /// Peak learning rate.
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Longest answer in tokens.
    #[arg(long)]
    answer_tokens: Option<usize>,
    /// Answers per training query to sample from the teacher, beside its greedy one.
    #[arg(long)]
    sampled_answers: Option<usize>,
    /// More training queries to sample from the model, in the manner of the given ones.
    #[arg(long)]
    sampled_queries: Option<usize>,
    /// Threads to compute with; default: all.
    #[arg(long)]
    threads: Option<usize>,
}

impl RefineArgs {
    fn options(&self) -> Result<RefineOptions> {
        let mut options = RefineOptions::load(self.config.as_deref())?;
        let set = |place: &mut usize, value: Option<usize>| *place = value.unwrap_or(*place);
        if let Some(rank) = self.rank {
            // The factor on the deltas stays.
            options.alpha *= rank as f32 / options.rank as f32;
            options.rank = rank;
        }
        set(&mut options.answer_tokens_max, self.answer_tokens);
        set(&mut options.sampled_answers, self.sampled_answers);
        set(&mut options.sampled_queries, self.sampled_queries);
        options.step_count = self.steps.unwrap_or(options.step_count);
        options.minutes = self.minutes.unwrap_or(options.minutes);
        options.learning_rate = self.learning_rate.unwrap_or(options.learning_rate);
        options.check()?;
        Ok(options)
    }
}

pub(crate) fn run(args: RefineArgs, cancel: &CancelToken) -> Result<()> {
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        pool.map_err(|error| Error::InvalidOption { option: "--threads", reason: error.to_string() })?;
    }
    let start = Instant::now();
    let options = args.options()?;
    let signer = args.sign.as_deref().map(read_secret).transpose()?;
    let prompt = std::fs::read_to_string(&args.prompt_file).map_err(Error::io(&args.prompt_file))?;
    let queries = match &args.queries {
        Some(path) => refine::read_queries(path)?,
        None => refine::from_prompt(&prompt),
    };
    let queries = refine::assign_splits(queries, options.seed)?;
    let labelled = queries.iter().all(|(query, _)| query.answer.is_some());
    let edge = EdgeModel::load(&args.edge, args.threads)?;
    let grad = LanguageModel::load(&args.edge, &Device::Cpu)?;
    let generated = match (&args.generator, &args.cloud) {
        (Some(generator), Some(cloud)) => {
            let (name, lora) =
                generated(generator, &mut LanguageModel::load(cloud, &Device::Cpu)?, &grad, &prompt, cancel)?;
            println!("starting from the LoRA of {name}");
            Some((name, lora))
        }
        _ => None,
    };
    let lora = generated.as_ref().map(|(_, lora)| lora);
    let mut folder = args.output.clone().into_os_string();
    folder.push(".refine");
    let context = if args.whole_prompt { vec![Message::system(&prompt)] } else { examples_as_turns(&prompt) };
    let done =
        refine::refine(&edge, &grad, &context, &queries, lora, &options, folder.into(), cancel, &mut print_progress);
    let refined = match done {
        Err(Error::Edge(edgeweld::Error::Cancelled)) => {
            eprintln!("\nstopped; the same command continues");
            return Ok(());
        }
        done => done?,
    };
    print(&refined, labelled);

    let plain = EncodeOptions { add_special: false, parse_special: false };
    let token_count = edge.tokenizer.encode(&prompt, plain)?.len() as u32;
    let mut settings = BTreeMap::from([
        ("method".to_owned(), "refine".to_owned()),
        ("steps".to_owned(), refined.best_step.to_string()),
        ("answers".to_owned(), refined.answer_count.to_string()),
        ("learning_rate".to_owned(), options.learning_rate.to_string()),
        ("seed".to_owned(), options.seed.to_string()),
    ]);
    settings.extend((!labelled).then(|| ("teacher_example_turns".to_owned(), (context.len() - 1).to_string())));
    settings.extend(generated.map(|(name, _)| ("generator".to_owned(), name)));
    let info = PackInfo {
        model: edge.identity.clone(),
        prompt: Some(PromptInfo { digest: Digest::of(prompt.as_bytes()), token_count }),
        residual_prompt: None,
        generator: pack::GeneratorInfo {
            name: "cloud-generator refine".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            settings,
        },
        quality: quality(&refined, labelled),
        labels: BTreeMap::new(),
    };
    let bytes = pack::write_dense(&refined.lora, None, Precision::F16, info, signer.as_ref())?;
    write_atomically(&args.output, &bytes)?;
    let (path, size, time) = (args.output.display(), bytes.len(), start.elapsed());
    println!("{path}: {size} bytes for a prompt of {token_count} tokens, in {time:.0?}");
    Ok(())
}

// The generator's name, and the LoRA it makes of `prompt`.
fn generated(
    folder: &std::path::Path,
    cloud: &mut LanguageModel,
    edge: &LanguageModel,
    prompt: &str,
    cancel: &CancelToken,
) -> Result<(String, LoraSet)> {
    let device = Device::Cpu;
    let (generator, info) = Generator::load(folder, cloud, edge, &device)?;
    generator.attach_cloud_lora(&mut cloud.decoder);
    Ok((info.name, generator.lora(cloud, cloud.encode(prompt)?, cancel)?))
}

pub(super) fn print_progress(progress: Progress) {
    match progress {
        Progress::Teaching { done, total } => eprint!("\rteacher: {done} of {total} answers   "),
        Progress::Resumed { step } => eprintln!("continuing after step {step}"),
        Progress::Step { step, divergence, tokens_per_second, done } => {
            eprint!("\rstep {step}  KL {divergence:.3}  {tokens_per_second:.0} tokens/s  {:.0}%   ", done * 100.0);
        }
        Progress::Looked { step, dev, best } => {
            let mark = if best { "  best" } else { "" };
            eprintln!(
                "\rstep {step}: dev KL {:.4}, same likeliest token {:.1}%{mark}   ",
                dev.divergence,
                dev.top1 * 100.0
            );
        }
    }
    let _ = std::io::stderr().flush();
}

fn print(refined: &Refined, labelled: bool) {
    let percent = |x: f64| format!("{:.1}%", x * 100.0);
    let Refined { base, prompted, specialized, .. } = refined;
    println!(
        "{} steps (best: {}), {:.0} s of training, {:.0} tokens/s",
        refined.step_count, refined.best_step, refined.training_seconds, refined.tokens_per_second
    );
    let (than, loss, same) = match labelled {
        true => ("the answers given", "loss, nats per token", "right"),
        false => ("the model with the prompt", "KL, nats per token", "same"),
    };
    println!("on {} test queries, against {than}:", base.query_count);
    // Of the prompted model against itself there is nothing to say.
    let row = |what: &str, [base, prompted, specialized]: [String; 3]| match labelled {
        true => println!("{what:<29} {base:>12}   {prompted:>11}   {specialized:>9}"),
        false => println!("{what:<29} {base:>12}   {specialized:>9}"),
    };
    let of_all = |f: &dyn Fn(&Fidelity) -> String| [f(base), f(prompted), f(specialized)];
    row("", ["without pack", "with prompt", "with pack"].map(String::from));
    row(loss, of_all(&|fidelity| format!("{:.4}", fidelity.divergence)));
    row(&format!("{same} likeliest token"), of_all(&|fidelity| percent(fidelity.top1)));
    row(&format!("{same} greedy answer"), of_all(&|fidelity| percent(fidelity.greedy)));
    if !labelled {
        println!("KL is {} less", percent(1.0 - specialized.divergence / base.divergence));
        if base.consistent_count > 0 {
            row("… where the prompted model is", of_all(&|fidelity| percent(fidelity.consistent_greedy)));
            println!("    consistent ({} queries)", base.consistent_count);
        }
    }
}

fn quality(refined: &Refined, labelled: bool) -> Vec<Measurement> {
    let Refined { base, prompted, specialized, .. } = refined;
    let measurement = |metric: &str, set: &str, item_count, value: fn(&Fidelity) -> f64| Measurement {
        metric: metric.into(),
        set: set.into(),
        item_count,
        base: value(base),
        prompted: value(prompted),
        specialized: value(specialized),
    };
    let (all, count) = ("test queries", base.query_count);
    if labelled {
        return vec![
            measurement("loss_nats", all, count, |f| f.divergence),
            measurement("right_likeliest_token", all, count, |f| f.top1),
            measurement("right_greedy_answer", all, count, |f| f.greedy),
        ];
    }
    let mut quality = vec![
        measurement("kl_to_prompted_nats", all, count, |f| f.divergence),
        measurement("same_likeliest_token", all, count, |f| f.top1),
        measurement("same_greedy_answer", all, count, |f| f.greedy),
    ];
    if base.consistent_count > 0 {
        let set = "test queries where the prompted model is consistent";
        quality.push(measurement("same_greedy_answer", set, base.consistent_count, |f| f.consistent_greedy));
    }
    quality
}
