//! A conversation in the terminal: streaming, Ctrl-C cancels the turn and not the program, `/clear` starts anew.

use std::error::Error;
use std::io::{BufRead as _, IsTerminal as _, Write as _, stderr, stdin, stdout};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use edgeweld::CancelToken;
use edgeweld::chat::Message;
use edgeweld::generate::{Engine, FinishReason, GenerateOptions, LoadOptions, Session, Token, TokenListener};
use edgeweld::sample::SamplerOptions;

/// How answers are generated, as command-line options.
#[derive(Args, Clone, Debug)]
pub struct AnswerOptions {
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 256)]
    pub max_tokens: usize,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Divides the logits of recent tokens; 1 does nothing. Small models repeat themselves without it.
    #[arg(long, default_value_t = 1.1)]
    pub repetition_penalty: f32,
    /// Seed of the sampler.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl AnswerOptions {
    /// As the library takes them.
    pub fn generate_options(&self) -> GenerateOptions {
        let sampler = SamplerOptions {
            temperature: self.temperature,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..Default::default()
        };
        GenerateOptions { max_tokens: self.max_tokens, sampler, ..Default::default() }
    }
}

/// What Ctrl-C cancels at present; without anything, Ctrl-C leaves the program.
#[derive(Clone)]
pub struct Interrupt(Arc<Mutex<Option<CancelToken>>>);

impl Interrupt {
    /// Takes over Ctrl-C.
    ///
    /// # Errors
    /// If the system refuses a handler, or there is one.
    pub fn install() -> Result<Self, Box<dyn Error>> {
        let current: Arc<Mutex<Option<CancelToken>>> = Arc::default();
        let on_interrupt = Arc::clone(&current);
        ctrlc::set_handler(move || match &*on_interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(cancel) => cancel.cancel(),
            None => std::process::exit(130),
        })?;
        Ok(Self(current))
    }

    /// Runs `work` with a token that Ctrl-C cancels.
    pub fn cancels<T>(&self, work: impl FnOnce(CancelToken) -> T) -> T {
        let cancel = CancelToken::new();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(cancel.clone());
        let result = work(cancel);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        result
    }
}

/// Reads turns from standard input until it ends, and answers each. `messages` are what comes before.
///
/// # Errors
/// If standard input or output fails. A turn that fails is reported and forgotten.
pub fn converse(
    session: &mut Session,
    mut messages: Vec<Message>,
    options: &GenerateOptions,
    interrupt: &Interrupt,
) -> Result<(), Box<dyn Error>> {
    let prompt = || {
        if stdin().is_terminal() {
            print!("> ");
        }
        stdout().flush()
    };
    prompt()?;
    let start = messages.len();
    for line in stdin().lock().lines() {
        let line = line?;
        if line.trim() == "/clear" {
            messages.truncate(start);
        } else if !line.trim().is_empty() {
            messages.push(Message::user(line));
            match interrupt.cancels(|cancel| turn(session, &messages, &GenerateOptions { cancel, ..options.clone() })) {
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

/// Answers one turn, printing as it comes, and says what it cost and which model answered.
///
/// # Errors
/// As [`Session::chat`].
pub fn turn(session: &mut Session, messages: &[Message], options: &GenerateOptions) -> Result<String, edgeweld::Error> {
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
    eprintln!("[{}]", answer.arm);
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
pub fn status(text: &str) {
    if stderr().is_terminal() {
        eprint!("\r\x1b[2K{text}");
    }
}

/// Leaves the line empty.
pub fn clear_status() {
    status("");
}

/// Runs a program and reports its error as people read it.
pub fn report(result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Loads a model given by name or path, with its progress.
///
/// # Errors
/// A sentence that says what to do, or the errors of [`Engine::load`].
pub fn load(model: &str, threads: Option<usize>) -> Result<Engine, Box<dyn Error>> {
    let options = LoadOptions { threads, ..Default::default() };
    let path = crate::model_path(model)?;
    let mut show = |done: usize, all: usize| status(&format!("loading layer {done}/{all}"));
    let engine = Engine::load_with_progress(path, &options, &mut show)?;
    clear_status();
    Ok(engine)
}
