//! The main job on a device: download a pack, verify it, merge it, and chat without the prompt.
//!
//! `cargo run --release -p edgeweld-examples --bin specialize -- --pack https://… --trust keys/public --model smollm2-135m-instruct`

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use edgeweld::CancelToken;
use edgeweld::chat::Message;
use edgeweld::download::{Cache, DownloadOptions, PackStore, Source};
use edgeweld::merge::{MergeMode, MergeOptions};
use edgeweld::verify::TrustPolicy;
use edgeweld_examples::packs;
use edgeweld_examples::terminal::{AnswerOptions, Interrupt, converse, load, report, turn};

/// Specialise a model with a pack, then chat without the prompt.
#[derive(Parser)]
struct Arguments {
    /// The pack: https://…, http:// on the loopback interface, or a file.
    #[arg(long)]
    pack: Source,
    /// Where pools of gates packs are: a URL or path, with {digest} or {hex} in it. Default: beside the pack.
    #[arg(long)]
    pool: Option<String>,
    /// File with the public keys whose packs are accepted.
    #[arg(long)]
    trust: PathBuf,
    /// Accept a pack that nobody signed: whoever can reach the file controls the answers.
    #[arg(long)]
    danger_accept_unsigned: bool,
    /// A name (smollm2-135m-instruct, gemma3-270m) or the path of a GGUF file.
    #[arg(long)]
    model: String,
    /// How the pack gets into the model.
    #[arg(long, value_enum, default_value = "auto")]
    mode: Mode,
    /// Most megabytes of merged weights.
    #[arg(long)]
    memory_budget: Option<u64>,
    /// Least share of probe tokens that a merge must predict as the side path does.
    #[arg(long, default_value_t = 0.98)]
    agreement_min: f64,
    /// Also save the merged model as this GGUF file.
    #[arg(long)]
    save: Option<PathBuf>,
    /// Folder of downloads.
    #[arg(long, default_value_os_t = std::env::temp_dir().join("edgeweld-cache"))]
    cache: PathBuf,
    /// File with the bearer token that the server asks for.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// File with the system prompt that the app sends. If the pack stands for it, it is dropped.
    #[arg(long)]
    system_file: Option<PathBuf>,
    /// Answer this one message and leave.
    #[arg(long)]
    prompt: Option<String>,
    /// Threads that compute; performance cores by default.
    #[arg(long)]
    threads: Option<usize>,
    #[command(flatten)]
    answer: AnswerOptions,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// Merge, else promote, each only if its proof passes; else the side path.
    Auto,
    /// Beside the weights: exact, and swapped in milliseconds.
    SidePath,
    /// Into the weights, in their own block type.
    Merge,
    /// Into the weights, as Q8_0.
    Promote,
}

impl From<Mode> for MergeMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => Self::Auto,
            Mode::SidePath => Self::SidePath,
            Mode::Merge => Self::Merge,
            Mode::Promote => Self::Promote,
        }
    }
}

/// Downloads take no more than this.
const CACHE_BYTES_MAX: u64 = 2 << 30;

fn main() -> ExitCode {
    report(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let engine = load(&arguments.model, arguments.threads)?;
    let interrupt = Interrupt::install()?;

    let mut options = DownloadOptions::default();
    if let Some(path) = &arguments.token_file {
        let token = std::fs::read_to_string(path)?;
        options.headers.push(("Authorization".to_owned(), format!("Bearer {}", token.trim())));
    }
    let store = PackStore {
        cache: Cache::open(&arguments.cache, CACHE_BYTES_MAX)?,
        options,
        trust: TrustPolicy {
            danger_accept_unsigned: arguments.danger_accept_unsigned,
            ..TrustPolicy::trusting(packs::trusted_keys(&arguments.trust)?)
        },
        pool_source: arguments.pool.clone(),
    };
    let pack = interrupt.cancels(|cancel| packs::load(&store, &arguments.pack, &engine, &cancel))?;
    eprint!("verified\n{}", packs::describe(&pack));

    let memory_budget_bytes = arguments.memory_budget.map_or(u64::MAX, |megabytes| megabytes * 1_000_000);
    let merge = MergeOptions {
        mode: arguments.mode.into(),
        memory_budget_bytes,
        agreement_min: arguments.agreement_min,
        threads: arguments.threads.unwrap_or(0),
        ..Default::default()
    };
    let merged = interrupt.cancels(|cancel| packs::merge(&engine, &pack, &merge, &cancel))?;
    eprint!("merged\n{}", packs::describe_report(&merged));
    if let Some(path) = &arguments.save {
        engine.save_merged(path, &CancelToken::new())?;
        eprintln!("  saved      {}", path.display());
    }

    let mut messages = Vec::new();
    if let Some(path) = &arguments.system_file {
        messages.push(Message::system(std::fs::read_to_string(path)?));
    }
    let mut session = engine.session()?;
    let options = arguments.answer.generate_options();
    match &arguments.prompt {
        Some(prompt) => {
            messages.push(Message::user(prompt));
            turn(&mut session, &messages, &options)?;
            Ok(())
        }
        None => converse(&mut session, messages, &options, &interrupt),
    }
}
