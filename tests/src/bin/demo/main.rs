//! `cargo xtask demo`: the whole flow on loopback. A prompt is posted to a generator, its pack is downloaded, verified and
//! merged, and the same questions go to the base model with and without the prompt and to the specialised one.

mod case;
mod cloud;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use edgeweld::CancelToken;
use edgeweld::download::{Cache, DownloadOptions, PackStore};
use edgeweld::generate::{Engine, LoadOptions};
use edgeweld::merge::MergeOptions;
use edgeweld::pack::{Content, SecretKey};
use edgeweld::verify::TrustPolicy;
use edgeweld_examples::packs;
use edgeweld_tests::arms::{self, Arm, Job, PackFile};

use case::{Case, PackSource};
use cloud::Cloud;
use report::Row;

/// The checkpoint that makes packs, unless another folder is given.
const GENERATOR: &str = "cloud-generator/generators/smollm2-135m";
/// The model that the server's generator is for.
const GENERATOR_EDGE: &str = "smollm2-135m-instruct";
/// Longest answer shown, in tokens.
const ANSWER_TOKENS: usize = 40;
/// Downloads take no more than this.
const CACHE_BYTES_MAX: u64 = 1 << 30;

/// Show the whole flow, from prompt to answers without the prompt.
#[derive(Parser)]
#[command(name = "demo")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Generator folder
    #[arg(long)]
    generator: Option<PathBuf>,
    /// Cloud LM of the generator, by name or path
    #[arg(long, default_value = GENERATOR_EDGE)]
    cloud: String,
    /// Folder for keys, packs and downloads, kept afterwards. Default: a temporary one
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Questions per prompt
    #[arg(long, default_value_t = 4)]
    questions: usize,
    /// Only the first prompt
    #[arg(long)]
    quick: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Measure one arm; the demo runs this in a process of its own
    #[command(hide = true, name = arms::SUBCOMMAND)]
    Arm { job: String },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Some(Command::Arm { job }) => Job::run_and_print(job),
        None => run(&cli),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let folder = cli.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let generator = cli.generator.clone().unwrap_or_else(|| workspace().join(GENERATOR));
    println!("\nEdgeweld: a long prompt becomes a pack; the device merges it and drops the prompt.\n");
    println!("  generator  {}", cloud::describe_generator(&generator)?);

    let keys = folder.join("keys");
    cloud::keygen(&keys)?;
    let secret: SecretKey = fs::read_to_string(keys.join("secret"))?.trim().parse()?;
    println!("  keys       made; the device trusts {}", secret.public_key());

    let mut cases = case::all(cli.questions)?;
    cases.truncate(if cli.quick { 1 } else { cases.len() });
    let mut files = Vec::new();
    for (index, case) in cases.iter_mut().enumerate() {
        case.make_files(&folder.join(format!("case-{index}")), &secret)?;
        files.extend(case.packs.iter().filter_map(|source| source.file().map(Path::to_owned)));
    }
    let cloud = Cloud::serve(&folder, &generator, &cli.cloud, GENERATOR_EDGE, &files)?;
    println!("  server     {}", cloud.url);

    let store = PackStore {
        cache: Cache::open(folder.join("cache"), CACHE_BYTES_MAX)?,
        options: DownloadOptions::default(),
        trust: TrustPolicy::trusting([secret.public_key()]),
        pool_source: None,
    };
    for (index, case) in cases.iter().enumerate() {
        println!("\n── {}. {} ──\n", index + 1, case.title);
        let rows = case_rows(case, &cloud, &store, &secret, &folder.join(format!("case-{index}")))?;
        report::print(case, &rows);
    }
    Ok(())
}

/// Everything of one prompt: its packs, then all arms.
fn case_rows(case: &Case, cloud: &Cloud, store: &PackStore, secret: &SecretKey, folder: &Path) -> Result<Vec<Row>> {
    let engine = Engine::load(&case.model, &LoadOptions::default())?;
    let cancel = CancelToken::new();
    let mut specialized = Vec::new();
    for source in &case.packs {
        println!("  {}", source.title());
        let url = match source {
            PackSource::Generated => match cloud.post(case, "gates")? {
                Ok(url) => url,
                Err(refusal) => {
                    println!("  refused    {refusal}\n");
                    continue;
                }
            },
            PackSource::File { path, .. } => cloud.published(path)?,
        };
        println!("  url        {url}");
        let pack = packs::load(store, &url.parse()?, &engine, &cancel)?;
        print!("{}", packs::describe(&pack));
        let report = packs::merge(&engine, &pack, &MergeOptions::default(), &cancel)?;
        println!("{}", packs::describe_report(&report));
        let cached = |digest| -> Result<PathBuf> {
            Ok(store.cache.find(digest)?.context("the download is in the cache")?.path().to_owned())
        };
        let pool = match pack.manifest().content {
            Content::Gates { pool, .. } => Some(cached(pool)?),
            _ => None,
        };
        let kept_bytes = fs::metadata(cached(pack.digest())?)?.len();
        let key = secret.public_key().to_string();
        let pack = PackFile { pack: cached(pack.digest())?, pool, key, mode: report.chosen };
        specialized.push((source.short_title(), pack, kept_bytes));
    }
    if specialized.is_empty() {
        bail!("no pack could be made for {}", case.title);
    }
    // The arms' memory is their own; this model is not needed any more.
    drop(engine);

    let job = Job {
        model: case.model.clone(),
        threads: None,
        arm: Arm::Base,
        system: case.prompt.clone(),
        questions: case.questions.clone(),
        answer_tokens_max: ANSWER_TOKENS,
        prefix: folder.join("prefix"),
        pack: None,
    };
    let mut base_arms = vec![Arm::Base, Arm::Prompted, Arm::Restored];
    if case.is_refined() {
        base_arms.push(Arm::Taught);
    }
    let bar = packs::steps_bar("arms", (base_arms.len() + specialized.len()) as u64);
    let mut rows = Vec::new();
    for arm in base_arms {
        let (outcome, peak) = Job { arm, ..job.clone() }.measure()?;
        let kept = (arm == Arm::Restored).then(|| fs::metadata(&job.prefix).map(|file| file.len())).transpose()?;
        rows.push(Row { name: arm.name().to_owned(), arm, outcome, peak_bytes: peak, kept_bytes: kept });
        bar.inc(1);
    }
    for (title, pack, kept_bytes) in specialized {
        let name = format!("specialised ({title}, {}), no prompt", pack.mode.name().replace('_', " "));
        let (outcome, peak) = Job { arm: Arm::Specialized, pack: Some(pack), ..job.clone() }.measure()?;
        let arm = Arm::Specialized;
        rows.push(Row { name, arm, outcome, peak_bytes: peak, kept_bytes: Some(kept_bytes) });
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(rows)
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
