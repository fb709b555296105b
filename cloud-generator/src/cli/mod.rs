//! One file per subcommand: its arguments and `run`.

mod eval;
mod export;
mod generate;
mod inspect;
mod keygen;
mod models;
mod pack_file;
mod picture;
mod refine;
mod serve;
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
    Keygen(keygen::KeygenArgs),
    Eval(eval::EvalArgs),
    Generate(generate::GenerateArgs),
    Serve(serve::ServeArgs),
    Inspect(inspect::InspectArgs),
    Export(export::ExportArgs),
    Refine(refine::RefineArgs),
    Train(train::TrainArgs),
}

/// Parses the command line and runs the subcommand; errors go to standard error.
pub(crate) fn run() -> ExitCode {
    let levels =
        env_logger::Env::default().default_filter_or("warn,edgeweld=info,edgeweld_cloud=info,cloud_generator=info");
    env_logger::Builder::from_env(levels).init();
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
        Command::Keygen(args) => keygen::run(&args),
        Command::Eval(args) => eval::run(args, cancel),
        Command::Generate(args) => generate::run(args, cancel),
        Command::Serve(args) => serve::run(args, cancel),
        Command::Inspect(args) => inspect::run(&args),
        Command::Export(args) => export::run(&args, cancel),
        Command::Refine(args) => refine::run(args, cancel),
        Command::Train(args) => train::run(args, cancel),
    }
}
