//! One file per subcommand: its arguments and `run`.

mod generate;
mod refine;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use edgeweld::CancelToken;
use edgeweld_cloud::Result;

/// Makes packs that specialise small on-device language models for one system prompt.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Generate(generate::GenerateArgs),
    Refine(refine::RefineArgs),
    Train(train::TrainArgs),
}

/// Parses the command line and runs the subcommand; errors go to standard error.
pub(crate) fn run() -> ExitCode {
    let cancel = CancelToken::default();
    let on_signal = cancel.clone();
    if let Err(error) = ctrlc::set_handler(move || on_signal.cancel()) {
        eprintln!("warning: Ctrl-C will not stop cleanly: {error}");
    }
    match dispatch(Cli::parse().command, &cancel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command, cancel: &CancelToken) -> Result<()> {
    match command {
        Command::Generate(args) => generate::run(args, cancel),
        Command::Refine(args) => refine::run(args, cancel),
        Command::Train(args) => train::run(args, cancel),
    }
}
