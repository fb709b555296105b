//! `cargo xtask bench`: speed, memory and load time, also beside llama.cpp, in one interleaved run.

mod arms;
mod contender;
mod edge;
mod exported;
mod merge;
mod random_model;
mod record;
mod sample;
mod variants;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measure speed, memory and load time.
#[derive(Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The edge runtime on every test model: load, memory, prefill and decode
    ///
    /// Every sample is a process of its own, the contenders take turns, and each figure is the median of the rounds.
    Edge(edge::Options),
    /// The specialised model beside the prompted one, in context and restored from a prefix file
    Arms(arms::Options),
    /// What survives of a pack in quantised weights, and what merging costs
    Merge(merge::Options),
    /// Write a model with random weights and a made-up vocabulary, to measure what big weights cost
    MakeModel(random_model::Options),
    /// Make the variants of a model file that `edge` also measures
    Variants {
        /// A shipped model
        model: PathBuf,
    },
    /// Take one sample; `edge` runs this in a process of its own
    #[command(hide = true)]
    Sample(sample::Options),
    /// Write a model as a folder for ONNX Runtime; `edge` runs this in a process of its own
    #[command(hide = true)]
    Export {
        model: PathBuf,
        #[arg(long)]
        int8_activations: bool,
    },
    /// Measure one arm; `arms` runs this in a process of its own
    #[command(hide = true, name = edgeweld_tests::arms::SUBCOMMAND)]
    Arm { job: String },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Edge(options) => edge::run(&options),
        Command::Arms(options) => arms::run(&options),
        Command::Merge(options) => merge::run(&options),
        Command::Arm { job } => edgeweld_tests::arms::Job::run_and_print(&job),
        Command::MakeModel(options) => random_model::make(&options),
        Command::Variants { model } => variants::make_missing(&model),
        Command::Sample(options) => sample::take(&options),
        Command::Export { model, int8_activations } => exported::export_here(&model, int8_activations),
    }
}
