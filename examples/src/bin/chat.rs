//! A streaming chat in the terminal. Ctrl-C cancels the turn, not the program; `/clear` starts anew; end of input leaves.
//!
//! `cargo run --release -p edgeweld-examples --bin chat -- --model smollm2-135m-instruct`

use std::error::Error;
use std::io::{BufRead as _, IsTerminal as _, Write as _, stderr, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use edgeweld::CancelToken;
use edgeweld::chat::Message;
use edgeweld::generate::{Engine, FinishReason, GenerateOptions, LoadOptions, Session, Token, TokenListener};
use edgeweld::sample::{Constraint, SamplerOptions};

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
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Divides the logits of recent tokens; 1 does nothing. Small models repeat themselves without it.
    #[arg(long, default_value_t = 1.1)]
    repetition_penalty: f32,
    /// Seed of the sampler.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let path = edgeweld_examples::model_path(&arguments.model)?;
    let load = LoadOptions { threads: arguments.threads, ..Default::default() };
    let engine =
        Engine::load_with_progress(path, &load, &mut |done, all| status(&format!("loading layer {done}/{all}")))?;
    clear_status();
    let system = match &arguments.system_file {
        Some(path) => Some(Message::system(std::fs::read_to_string(path)?)),
        None => None,
    };
    let mut messages: Vec<Message> = system.into_iter().collect();
    let start = messages.len();
    let mut session = engine.session()?;
    if let Some(prompt) = &arguments.prompt {
        messages.push(Message::user(prompt));
        return turn(&mut session, &messages, &options(arguments, CancelToken::new())?).map(drop);
    }

    // The turn that Ctrl-C cancels; without one, Ctrl-C leaves.
    let current: Arc<Mutex<Option<CancelToken>>> = Arc::default();
    let on_interrupt = Arc::clone(&current);
    ctrlc::set_handler(move || match &*on_interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(cancel) => cancel.cancel(),
        None => std::process::exit(130),
    })?;
    let prompt = || {
        if stdin().is_terminal() {
            print!("> ");
        }
        stdout().flush()
    };
    prompt()?;
    for line in stdin().lock().lines() {
        let line = line?;
        if line.trim() == "/clear" {
            messages.truncate(start);
        } else if !line.trim().is_empty() {
            messages.push(Message::user(line));
            let cancel = CancelToken::new();
            *current.lock().unwrap_or_else(PoisonError::into_inner) = Some(cancel.clone());
            let answer = turn(&mut session, &messages, &options(arguments, cancel)?);
            *current.lock().unwrap_or_else(PoisonError::into_inner) = None;
            match answer {
                Ok(answer) => messages.push(Message::assistant(answer)),
                Err(error) => {
                    eprintln!("error: {error} (/clear forgets the conversation)");
                    messages.pop();
                }
            }
        }
        prompt()?;
    }
    Ok(())
}

fn options(arguments: &Arguments, cancel: CancelToken) -> Result<GenerateOptions, Box<dyn Error>> {
    let sampler = SamplerOptions {
        temperature: arguments.temperature,
        repetition_penalty: arguments.repetition_penalty,
        seed: arguments.seed,
        ..Default::default()
    };
    let constraint = match &arguments.json_schema {
        Some(path) => Some(Constraint::json_schema(&std::fs::read_to_string(path)?)),
        None => None,
    };
    Ok(GenerateOptions { max_tokens: arguments.max_tokens, sampler, constraint, cancel, ..Default::default() })
}

fn turn(session: &mut Session, messages: &[Message], options: &GenerateOptions) -> Result<String, Box<dyn Error>> {
    let answer = session.chat(messages, options, &mut Screen)?;
    println!();
    eprintln!(
        "[{} prompt tokens, {} reused; first token after {:.0} ms; {} tokens at {:.1}/s{}]",
        answer.prompt_tokens,
        answer.reused_tokens,
        answer.time_to_first_token_ms,
        answer.generated_tokens,
        answer.decode_tokens_per_second,
        if answer.finish_reason == FinishReason::Cancelled { "; cancelled" } else { "" },
    );
    Ok(answer.text)
}

/// Shows how far the prompt is, then the tokens as they come.
struct Screen;

impl TokenListener for Screen {
    fn on_token(&mut self, token: &Token) {
        print!("{}", token.text);
        // A terminal that is gone ends the program at the next prompt.
        let _ = stdout().flush();
    }

    fn on_prefill(&mut self, done: usize, total: usize) {
        if done < total {
            status(&format!("reading the prompt: {done}/{total} tokens"));
        } else {
            clear_status();
        }
    }
}

/// Writes over the terminal's current line; elsewhere, progress is nothing to keep.
fn status(text: &str) {
    if stderr().is_terminal() {
        eprint!("\r\x1b[2K{text}");
    }
}

fn clear_status() {
    status("");
}
