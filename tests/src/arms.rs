//! The arms of a comparison: the same questions to the base model, to the base model with the prompt in context, with
//! the prompt restored from a saved prefix, and to the specialised model. Each arm is measured in a process of its own,
//! so that its memory is its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use edgeweld::CancelToken;
use edgeweld::chat::{Message, RenderOptions, examples_as_turns};
use edgeweld::generate::{Engine, GenerateOptions, LoadOptions, Session, Token};
use edgeweld::merge::{MergeMode, MergeOptions};
use edgeweld::pack::{PublicKey, RawPack};
use edgeweld::verify::{TrustPolicy, verify, verify_pool};
use serde::{Deserialize, Serialize};

use crate::process;

/// The hidden subcommand of a program that measures arms: takes a [`Job`] as JSON, prints an [`Outcome`].
pub const SUBCOMMAND: &str = "arm";
/// Tokens that the decode figure times.
const DECODE_TOKENS: usize = 32;

/// What answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Arm {
    /// The base model, without the prompt.
    Base,
    /// The base model with the prompt in context, computed for each question.
    Prompted,
    /// The base model with the prompt restored from a saved prefix for each question.
    Restored,
    /// The base model with the prompt in context, its examples as turns of the conversation: what refined packs learn.
    Taught,
    /// The specialised model, without the prompt.
    Specialized,
}

impl Arm {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base, no prompt",
            Self::Prompted => "base, prompt in context",
            Self::Restored => "base, prompt restored from a prefix file",
            Self::Taught => "base, prompt in context, its examples as turns",
            Self::Specialized => "specialised, no prompt",
        }
    }
}

/// A verified pack's files, for the process that measures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PackFile {
    /// The pack.
    pub pack: PathBuf,
    /// The pool of a gates pack.
    pub pool: Option<PathBuf>,
    /// Who signed both.
    pub key: String,
    /// How it gets into the model. Whoever chose it has seen its proof: it is not asked for again.
    pub mode: MergeMode,
}

/// One arm to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The edge model.
    pub model: PathBuf,
    /// Threads; `None` takes one per performance core.
    pub threads: Option<usize>,
    /// What answers.
    pub arm: Arm,
    /// The system prompt.
    pub system: String,
    /// Each is a conversation of its own.
    pub questions: Vec<String>,
    /// Most tokens of an answer.
    pub answer_tokens_max: usize,
    /// [`Arm::Prompted`] writes the prompt's prefix here at the end, [`Arm::Restored`] reads it.
    pub prefix: PathBuf,
    /// For [`Arm::Specialized`].
    pub pack: Option<PackFile>,
}

/// One answer and what it cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// What answered, in the runtime's words.
    pub arm: String,
    /// Tokens of the rendered conversation.
    pub prompt_tokens: usize,
    /// Milliseconds from the call to the first token, without [`restore_ms`](Self::restore_ms).
    pub time_to_first_token_ms: f64,
    /// Milliseconds to restore the prefix.
    pub restore_ms: Option<f64>,
    /// Bytes of keys and values after the answer.
    pub cache_size_bytes: usize,
}

/// What one arm did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// One per question.
    pub answers: Vec<Answer>,
    /// Decode speed after the last question.
    pub decode_tokens_per_second: f64,
    /// The process's largest resident set, where the system says it of the process alone.
    pub peak_rss_bytes: Option<u64>,
}

/// Takes the median of one figure of the answers.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

impl Job {
    /// Runs this job in a process of its own, which is this program with [`SUBCOMMAND`]; also its peak memory.
    ///
    /// # Errors
    /// If the process fails.
    pub fn measure(&self) -> Result<(Outcome, u64)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SUBCOMMAND).arg(serde_json::to_string(self)?);
        let finished = process::run(&mut command).with_context(|| format!("arm {:?}", self.arm))?;
        let outcome: Outcome = serde_json::from_str(&finished.stdout).context("what the arm printed")?;
        // `wait4` counts this program's own memory too, if it is larger: the child began as a copy of it.
        let peak = outcome.peak_rss_bytes.unwrap_or(finished.peak_rss_bytes);
        Ok((outcome, peak))
    }

    /// What the process of its own does with its argument.
    ///
    /// # Errors
    /// Those of the runtime.
    pub fn run_and_print(json: &str) -> Result<()> {
        let job: Self = serde_json::from_str(json).context("the job")?;
        println!("{}", serde_json::to_string(&job.run()?)?);
        Ok(())
    }

    fn run(&self) -> Result<Outcome> {
        let engine = Engine::load(&self.model, &LoadOptions { threads: self.threads, ..LoadOptions::default() })?;
        if let Some(pack) = &self.pack {
            pack.merge_into(&engine)?;
        }
        let mut session = engine.session()?;
        // The first run of any model reads its weights from disk.
        session.complete("Hello", &tokens(1), &mut |_: &Token| ())?;
        let mut answers = Vec::new();
        for question in &self.questions {
            session.clear();
            let restore_ms = match self.arm {
                Arm::Restored => {
                    let start = Instant::now();
                    session.load_prefix(&self.prefix)?;
                    Some(start.elapsed().as_secs_f64() * 1e3)
                }
                _ => None,
            };
            let messages = self.messages(question);
            let answer = session.chat(&messages, &tokens(self.answer_tokens_max), &mut |_: &Token| ())?;
            answers.push(Answer {
                text: answer.text,
                arm: answer.arm.to_string(),
                prompt_tokens: answer.prompt_tokens,
                time_to_first_token_ms: answer.time_to_first_token_ms,
                restore_ms,
                cache_size_bytes: session.cache_size_bytes(),
            });
        }
        let decode_tokens_per_second = self.decode(&engine, &mut session)?;
        if self.arm == Arm::Prompted {
            session.clear();
            session.chat(&self.messages(""), &tokens(1), &mut |_: &Token| ())?;
            session.save_prefix(&self.prefix)?;
        }
        Ok(Outcome { answers, decode_tokens_per_second, peak_rss_bytes: peak_rss_bytes() })
    }

    /// The conversation as an app sends it: the specialised model gets the prompt too, and drops it.
    fn messages(&self, question: &str) -> Vec<Message> {
        let mut messages = match self.arm {
            Arm::Base => Vec::new(),
            Arm::Taught => examples_as_turns(&self.system),
            Arm::Prompted | Arm::Restored | Arm::Specialized => vec![Message::system(&self.system)],
        };
        messages.push(Message::user(question));
        messages
    }

    /// Continues the last conversation token by token, with given tokens, so that no answer ends it early.
    fn decode(&self, engine: &Engine, session: &mut Session) -> Result<f64> {
        let question = self.questions.last().map_or("", String::as_str);
        let mut messages = self.messages(question);
        if self.arm == Arm::Specialized {
            messages.remove(0);
        }
        let render = RenderOptions { default_system: self.arm != Arm::Specialized, ..RenderOptions::default() };
        let mut ids = engine.template().encode(engine.tokenizer(), &messages, &render)?;
        session.generate(&ids, &tokens(1), &mut |_: &Token| ())?;
        let next = *ids.last().context("an empty conversation")?;
        let start = Instant::now();
        for _ in 0..DECODE_TOKENS {
            ids.push(next);
            session.generate(&ids, &tokens(1), &mut |_: &Token| ())?;
        }
        Ok(DECODE_TOKENS as f64 / start.elapsed().as_secs_f64())
    }
}

impl PackFile {
    fn merge_into(&self, engine: &Engine) -> Result<()> {
        let trust = TrustPolicy::trusting([self.key.parse::<PublicKey>()?]);
        let read = |path: &PathBuf| -> Result<RawPack> {
            Ok(RawPack::read(std::fs::read(path).with_context(|| path.display().to_string())?)?)
        };
        let pool = self
            .pool
            .as_ref()
            .map(|path| Ok::<_, anyhow::Error>(verify_pool(&read(path)?, &trust, engine.identity())?));
        let pack = verify(&read(&self.pack)?, &trust, engine.identity(), pool.transpose()?.as_ref())?;
        let options = MergeOptions {
            mode: self.mode,
            agreement_min: 0.0,
            perplexity_change_max: f64::INFINITY,
            ..MergeOptions::default()
        };
        engine.merge(&pack, &options, &CancelToken::new(), &|_, _, _| ())?;
        Ok(())
    }
}

/// `VmHWM` of Linux.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn tokens(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ..GenerateOptions::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_between_the_middle_two() {
        assert_eq!(median([9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median([4.0, 1.0, 9.0, 2.0]), 3.0);
        assert!(median([]).is_nan());
    }

    #[test]
    fn only_the_base_arm_goes_without_the_prompt() {
        let job = |arm| Job {
            model: "m.gguf".into(),
            threads: None,
            arm,
            system: "be brief\n\nUser: 1\nAssistant: one".to_owned(),
            questions: vec![],
            answer_tokens_max: 1,
            prefix: "prefix".into(),
            pack: None,
        };
        assert_eq!(job(Arm::Base).messages("q"), [Message::user("q")]);
        for arm in [Arm::Prompted, Arm::Restored, Arm::Specialized] {
            let system = job(arm).system;
            assert_eq!(job(arm).messages("q"), [Message::system(system), Message::user("q")]);
        }
        let taught = [Message::system("be brief"), Message::user("1"), Message::assistant("one"), Message::user("q")];
        assert_eq!(job(Arm::Taught).messages("q"), taught);
    }
}
