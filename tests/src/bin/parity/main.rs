//! `cargo xtask parity DIR`: compares this project with reference figures that other software made.
//!
//! Every JSON file of DIR is read; the format is `{"model", "cases": [{"text", "ids", "mean_nll", "top_ids",
//! "top_logprobs", "greedy_ids", "greedy_margin"}]}` for a model's figures and
//! `{"models": {name: [{"text", "ids"}]}}` for token ids. The models lie beside the files or in `EDGEWELD_MODELS`.

mod golden;
mod score;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use edgeweld::CancelToken;
use edgeweld::gguf::GgufFile;
#[cfg(feature = "onnx")]
use edgeweld::model::{Activations, Onnx};
use edgeweld::model::{Backend, Candle, Config, Cpu, CpuOptions, Decoder, Device, Runner};
use edgeweld::tokenizer::{EncodeOptions, Tokenizer};
#[cfg(feature = "onnx")]
use edgeweld_tests::onnx;
use edgeweld_tests::{Table, models};

use golden::{Golden, ModelCases, TokenCases};
use score::Score;

/// Compare with reference figures: logits, NLL, greedy text, token ids. Exits non-zero if one case misses its bar.
#[derive(Parser)]
struct Cli {
    /// Folder with the reference figures (JSON)
    folder: PathBuf,
    /// What computes
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendName,
}

#[derive(Clone, Copy, ValueEnum)]
enum BackendName {
    /// The runtime's own kernels: 16-bit activations, log-probabilities within 0.15
    Cpu,
    /// Weights dequantised to f32, f32 activations: log-probabilities within 0.02
    Candle,
    /// ONNX Runtime on the exported graph: log-probabilities within 0.15
    #[cfg(feature = "onnx")]
    Onnx,
    /// The same with 8-bit activations, which misses the bars: to see by how much
    #[cfg(feature = "onnx")]
    OnnxInt8,
}

impl BackendName {
    /// Largest accepted difference of a log-probability.
    fn logprob_error_max(self) -> f32 {
        match self {
            Self::Candle => 0.02,
            _ => 0.15,
        }
    }

    /// A sequence on `file`, which lies at `path`.
    #[cfg_attr(not(feature = "onnx"), expect(unused_variables))]
    fn runner(self, path: &Path, file: &GgufFile, capacity: usize) -> Result<Box<dyn Runner>> {
        match self {
            Self::Cpu => runner(Cpu::new(&CpuOptions::default())?, file, capacity),
            Self::Candle => runner(Candle::new(Device::Cpu)?, file, capacity),
            #[cfg(feature = "onnx")]
            Self::Onnx => on_onnx(path, Activations::Exact, file, capacity),
            #[cfg(feature = "onnx")]
            Self::OnnxInt8 => on_onnx(path, Activations::Int8, file, capacity),
        }
    }
}

fn runner<B: Backend>(backend: B, file: &GgufFile, capacity: usize) -> Result<Box<dyn Runner>> {
    let decoder = Decoder::load(file, Arc::new(backend), &CancelToken::new(), &mut |_, _| ())?;
    Ok(B::runner(&Arc::new(decoder), capacity, None)?)
}

#[cfg(feature = "onnx")]
fn on_onnx(path: &Path, activations: Activations, file: &GgufFile, capacity: usize) -> Result<Box<dyn Runner>> {
    let folder = onnx::export(path, activations)?;
    runner(Onnx::open(&folder, file, &onnx::options()?, None)?, file, capacity)
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let mut misses = 0;
    for (path, golden) in golden::read_folder(&cli.folder)? {
        println!("{}", path.display());
        let (table, missed) = match golden {
            Golden::Model(cases) => compare_model(&cases, &cli),
            Golden::Tokens(cases) => compare_tokens(&cases, &cli.folder),
        }
        .with_context(|| path.display().to_string())?;
        println!("\n{table}");
        misses += missed;
    }
    if misses > 0 {
        eprintln!("{misses} rows miss their bar");
        return Ok(ExitCode::FAILURE);
    }
    println!("every bar is met");
    Ok(ExitCode::SUCCESS)
}

fn find(name: &str, folder: &Path) -> Result<PathBuf> {
    models::find(name, &[folder, &models::folder()])
}

/// One row per case, and how many miss.
fn compare_model(golden: &ModelCases, cli: &Cli) -> Result<(Table, usize)> {
    let named = golden.weights.as_deref().filter(|weights| weights.ends_with(".gguf"));
    let path = find(named.unwrap_or(&golden.model), &cli.folder)?;
    let file = GgufFile::open(&path)?;
    let vocab = Config::from_gguf(&file)?.vocab_size;
    let capacity = golden.cases.iter().map(|case| case.ids.len() + case.greedy_ids.len()).max().unwrap_or(1);
    let mut runner = cli.backend.runner(&path, &file, capacity)?;
    let (limit, mut misses) = (cli.backend.logprob_error_max(), 0);
    let mut table = Table::new([&golden.model, "NLL error", "worst top-20 logprob", "top-1", "greedy steps", ""]);
    for case in &golden.cases {
        let score = Score::of(case, &mut *runner, vocab).with_context(|| title(&case.text))?;
        let top_1 = match score.top_1 {
            Some(true) => "equal",
            Some(false) => "differs",
            None => "open",
        };
        let passes = score.passes(limit);
        misses += usize::from(!passes);
        table.row([
            title(&case.text),
            format!("{:.3}%", score.nll_error * 100.0),
            format!("{:.4}", score.logprob_error),
            top_1.to_owned(),
            format!("{}/{}", score.greedy.0, score.greedy.1),
            verdict(passes).to_owned(),
        ]);
    }
    Ok((table, misses))
}

/// One row per model, and one more per string whose ids differ.
fn compare_tokens(golden: &TokenCases, folder: &Path) -> Result<(Table, usize)> {
    let options = EncodeOptions { add_special: false, parse_special: true };
    let mut table = Table::new(["token ids", "equal", ""]);
    let mut misses = 0;
    for (model, cases) in &golden.models {
        let tokenizer = Tokenizer::from_gguf(GgufFile::open(find(model, folder)?)?.metadata())?;
        let mut differing = Vec::new();
        for case in cases {
            if tokenizer.encode(&case.text, options)? != case.ids {
                differing.push(title(&case.text));
            }
        }
        let equal = cases.len() - differing.len();
        table.row([model.clone(), format!("{equal}/{}", cases.len()), verdict(differing.is_empty()).to_owned()]);
        misses += differing.len();
        for text in differing {
            table.row([text, "differs".to_owned(), verdict(false).to_owned()]);
        }
    }
    Ok((table, misses))
}

fn verdict(passes: bool) -> &'static str {
    if passes { "pass" } else { "MISS" }
}

/// The beginning of a text, fit for a table cell.
fn title(text: &str) -> String {
    let mut chars = text.chars().map(|char| if char.is_control() || char == '|' { '·' } else { char });
    let title: String = chars.by_ref().take(40).collect();
    if chars.next().is_some() { title + "…" } else { title }
}
