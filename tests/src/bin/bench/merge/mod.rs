//! `bench merge`: what survives of a pack in every block type (`types`), what `auto` chooses and how far it then is from
//! the side path (`auto`), and what merging and swapping cost (`cost`).

mod auto;
mod cost;
mod deltas;
mod swap;
mod types;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use edgeweld::merge::{MergeMode, MergeOptions, Rounding};
use edgeweld_tests::models;

use crate::sample::DeviceName;

/// Samples of every time; odd, so that a median is one of them.
const ROUNDS: usize = 7;

#[derive(Args)]
pub(crate) struct Options {
    /// What to measure
    #[arg(value_enum)]
    part: Part,
    /// GGUF file, or the name of one in the models folder; repeatable
    #[arg(long = "model", default_values = ["smollm2-135m-instruct"])]
    models: Vec<String>,
    /// Sizes of the deltas, relative to the weights, comma-separated
    #[arg(long, value_delimiter = ',', default_value = "0.005,0.01,0.03,0.1")]
    norms: Vec<f64>,
    /// Rank of the deltas
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Block types, comma-separated; default: all that hold weights (`types`)
    #[arg(long, value_delimiter = ',')]
    types: Vec<String>,
    /// Tokens that the chosen mode and the side path are compared on (`auto`)
    #[arg(long, default_value_t = 20_000)]
    tokens: usize,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// What computes (`swap`)
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceName,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// Gain, noise and probe agreement per block type, method and size of the delta
    Types,
    /// The chosen mode, and its agreement and perplexity on a longer text
    Auto,
    /// Time and memory of merging, and the time of a swap
    Cost,
    /// The time of a swap alone, on any device
    Swap,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    for name in &options.models {
        let model = match Path::new(name) {
            path if path.is_file() => path.to_owned(),
            _ => models::find(name, &[&models::folder(), &models::folder().join("variants")])?,
        };
        match options.part {
            Part::Types => types::run(options, &model)?,
            Part::Auto => auto::run(options, &model)?,
            Part::Cost => cost::run(options, &model)?,
            Part::Swap => swap::run(options, &model)?,
        }
    }
    Ok(())
}

fn name(model: &Path) -> String {
    PathBuf::from(model.file_stem().unwrap_or_default()).display().to_string()
}

/// A mode whose proof measures and refuses nothing.
fn unchecked(mode: MergeMode, rounding: Rounding, threads: usize) -> MergeOptions {
    MergeOptions {
        mode,
        rounding,
        gain_limits: (f64::NEG_INFINITY, f64::INFINITY),
        agreement_min: 0.0,
        perplexity_change_max: f64::INFINITY,
        threads,
        ..MergeOptions::default()
    }
}

/// `0.5%`
fn percent(norm: f64) -> String {
    format!("{}%", (norm * 1e4).round() / 1e2)
}
