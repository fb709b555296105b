//! `cargo xtask bench`: speed, memory and load time, also beside llama.cpp, in one interleaved run.

mod contender;
mod edge;
mod process;
mod random_model;
mod sample;
mod variants;

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
    /// Write a model with random weights and a made-up vocabulary, to measure what big weights cost
    MakeModel(random_model::Options),
    /// Take one sample; `edge` runs this in a process of its own
    #[command(hide = true)]
    Sample(sample::Options),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Edge(options) => edge::run(&options),
        Command::MakeModel(options) => random_model::make(&options),
        Command::Sample(options) => sample::take(&options),
    }
}
