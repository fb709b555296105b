//! A streaming chat in the terminal. Ctrl-C cancels the turn, not the program; `/clear` starts anew; end of input leaves.
//!
//! `cargo run --release -p edgeweld-examples --bin chat -- --model smollm2-135m-instruct`

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use edgeweld::chat::Message;
use edgeweld::sample::Constraint;
use edgeweld_examples::terminal::{AnswerOptions, Interrupt, converse, load, report, turn};

/// Chat with a GGUF model.
#[derive(Parser)]
struct Arguments {
    /// A name (smollm2-135m-instruct, gemma3-270m) or the path of a GGUF file.
    #[arg(long)]
    model: String,
    /// Answer this one message and leave.
    #[arg(long)]
    prompt: Option<String>,
    /// File with the system prompt.
    #[arg(long)]
    system_file: Option<PathBuf>,
    /// File with a JSON schema that every answer must satisfy.
    #[arg(long)]
    json_schema: Option<PathBuf>,
    /// Threads that compute; performance cores by default.
    #[arg(long)]
    threads: Option<usize>,
    #[command(flatten)]
    answer: AnswerOptions,
}

fn main() -> ExitCode {
    report(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let engine = load(&arguments.model, arguments.threads)?;
    let mut messages = Vec::new();
    if let Some(path) = &arguments.system_file {
        messages.push(Message::system(std::fs::read_to_string(path)?));
    }
    let mut options = arguments.answer.generate_options();
    if let Some(path) = &arguments.json_schema {
        options.constraint = Some(Constraint::json_schema(&std::fs::read_to_string(path)?));
    }
    let mut session = engine.session()?;
    if let Some(prompt) = &arguments.prompt {
        messages.push(Message::user(prompt));
        turn(&mut session, &messages, &options)?;
        return Ok(());
    }
    converse(&mut session, messages, &options, &Interrupt::install()?)
}
