//! `bench arms`: what dropping the prompt saves, against the prompt in context and against a restored prefix, ours and
//! llama.cpp's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use edgeweld::Digest;
use edgeweld::chat::{Message, RenderOptions};
use edgeweld::generate::{Engine, LoadOptions};
use edgeweld::merge::MergeMode;
use edgeweld::pack::{GeneratorInfo, PackInfo, Precision, PromptInfo, SecretKey, write_dense};
use edgeweld_tests::arms::{Arm, Job, PackFile, median};
use edgeweld_tests::{Table, models, process, random_lora, repository_text, text_of_tokens};

use crate::edge::Rival;

/// The user's turn is the beginning of this; more than 30 tokens.
const TURN: &str = "Please read the pages above once more and tell me in one short sentence what happens to a pack between the \
                    moment it arrives on the device and the first answer, and why it is done in that order. ";

#[derive(Args)]
pub(crate) struct Options {
    /// Also measure this program, in turn with ours
    #[arg(long, value_enum)]
    vs: Option<Rival>,
    /// Folder with llama.cpp's programs; `cargo xtask bench` fills it in
    #[arg(long, required_if_eq("vs", "llama-cpp"))]
    llama_bin: Option<PathBuf>,
    /// GGUF file, or the name of one in the models folder; repeatable
    #[arg(long = "model", default_values = ["smollm2-135m-instruct", "gemma3-270m"])]
    models: Vec<String>,
    /// Tokens of the system prompt
    #[arg(long, default_value_t = 1500)]
    prompt_tokens: usize,
    /// Tokens of the user's turn
    #[arg(long, default_value_t = 30)]
    turn_tokens: usize,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Processes per arm
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// What is measured in turn.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Contender {
    Ours(Arm, Option<Mode>),
    LlamaPrompted,
    LlamaRestored,
    LlamaTurnOnly,
}

/// How the pack is in the specialised model.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    SidePath,
    Promoted,
}

/// One process's figures; `None` where it has none.
#[derive(Clone, Copy)]
struct Figures {
    first_token_ms: f64,
    restore_ms: Option<f64>,
    decode: f64,
    cache_bytes: Option<f64>,
    peak_bytes: f64,
}

impl Contender {
    fn name(self) -> String {
        match self {
            Self::Ours(arm, None) => arm.name().to_owned(),
            Self::Ours(arm, Some(Mode::SidePath)) => format!("{}, side path", arm.name()),
            Self::Ours(arm, Some(Mode::Promoted)) => format!("{}, promoted to Q8_0", arm.name()),
            Self::LlamaPrompted => "llama.cpp, prompt in context".to_owned(),
            Self::LlamaRestored => "llama.cpp, prompt restored (--prompt-cache)".to_owned(),
            Self::LlamaTurnOnly => "llama.cpp, turn only".to_owned(),
        }
    }
}

/// One model with its texts and files.
struct Bench<'a> {
    options: &'a Options,
    model: PathBuf,
    system: String,
    turn: String,
    /// The rendered conversations, with and without the prompt, and the prompt alone, as llama.cpp takes them.
    rendered: [String; 3],
    pack: PathBuf,
    key: String,
    folder: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    for name in &options.models {
        let folder = tempfile::tempdir()?;
        let model = match Path::new(name) {
            path if path.is_file() => path.to_owned(),
            _ => models::find(name, &[&models::folder()])?,
        };
        let bench = Bench::new(options, model, folder.path())?;
        println!("{}", bench.report(&bench.sample()?)?);
    }
    Ok(())
}

impl<'a> Bench<'a> {
    fn new(options: &'a Options, model: PathBuf, folder: &Path) -> Result<Self> {
        let engine = Engine::load(&model, &LoadOptions::default())?;
        let text = repository_text()?;
        let system = text_of_tokens(engine.tokenizer(), &text, options.prompt_tokens)?;
        let turn = text_of_tokens(engine.tokenizer(), &TURN.repeat(options.turn_tokens / 30 + 1), options.turn_tokens)?;
        let render = |messages: &[Message], default_system, add_generation_prompt| -> Result<String> {
            let options = RenderOptions { default_system, add_generation_prompt, ..RenderOptions::default() };
            Ok(engine.template().render(engine.tokenizer(), messages, &options)?.text)
        };
        let (system_message, user) = (Message::system(&system), Message::user(&turn));
        let whole = render(&[system_message.clone(), user.clone()], true, true)?;
        // Templates that put the system text into the user's turn have no rendering of it alone: the shared beginning.
        let other = render(&[system_message, Message::user("\u{1}")], true, true)?;
        let shared = whole.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let prefix = String::from_utf8_lossy(&whole.as_bytes()[..shared]).into_owned();
        let rendered = [whole, render(&[user], false, true)?, prefix];

        let secret = SecretKey::from_seed(&[7; 32]);
        let info = PackInfo {
            model: engine.identity().clone(),
            prompt: Some(PromptInfo {
                digest: Digest::of(system.as_bytes()),
                token_count: options.prompt_tokens as u32,
            }),
            residual_prompt: None,
            generator: GeneratorInfo { name: "random".into(), version: "1".into(), settings: BTreeMap::new() },
            quality: Vec::new(),
            labels: BTreeMap::new(),
        };
        let lora = random_lora(engine.config().expect("a GGUF model"), 16, 0.02, 0);
        let pack = folder.join("random.pack");
        fs::write(&pack, write_dense(&lora, None, Precision::F16, info, Some(&secret))?)?;
        let key = secret.public_key().to_string();
        Ok(Self { options, model, system, turn, rendered, pack, key, folder: folder.to_owned() })
    }

    fn contenders(&self) -> Vec<Contender> {
        let mut contenders = vec![
            Contender::Ours(Arm::Prompted, None),
            Contender::Ours(Arm::Restored, None),
            Contender::Ours(Arm::Specialized, Some(Mode::SidePath)),
            Contender::Ours(Arm::Specialized, Some(Mode::Promoted)),
        ];
        if self.options.vs.is_some() {
            contenders.extend([Contender::LlamaPrompted, Contender::LlamaRestored, Contender::LlamaTurnOnly]);
        }
        contenders
    }

    fn sample(&self) -> Result<BTreeMap<Contender, Vec<Figures>>> {
        let mut samples = BTreeMap::<_, Vec<_>>::new();
        for round in 0..self.options.rounds {
            for contender in self.contenders() {
                eprintln!("round {}: {}", round + 1, contender.name());
                let figures = match contender {
                    Contender::Ours(arm, mode) => self.ours(arm, mode),
                    _ => self.llama(contender),
                };
                samples.entry(contender).or_default().push(figures.with_context(|| contender.name())?);
            }
        }
        Ok(samples)
    }

    fn ours(&self, arm: Arm, mode: Option<Mode>) -> Result<Figures> {
        let mode = mode.map(|mode| if mode == Mode::SidePath { MergeMode::SidePath } else { MergeMode::Promote });
        let pack = mode.map(|mode| PackFile { pack: self.pack.clone(), pool: None, key: self.key.clone(), mode });
        let job = Job {
            model: self.model.clone(),
            threads: Some(self.options.threads),
            arm,
            system: self.system.clone(),
            questions: vec![self.turn.clone(); 3],
            answer_tokens_max: 1,
            prefix: self.folder.join("prefix"),
            pack,
        };
        let (outcome, peak) = job.measure()?;
        let restore = outcome.answers.iter().filter_map(|answer| answer.restore_ms);
        Ok(Figures {
            first_token_ms: median(outcome.answers.iter().map(|answer| answer.time_to_first_token_ms)),
            restore_ms: (arm == Arm::Restored).then(|| median(restore)),
            decode: outcome.decode_tokens_per_second,
            cache_bytes: Some(median(outcome.answers.iter().map(|answer| answer.cache_size_bytes as f64))),
            peak_bytes: peak as f64,
        })
    }

    fn llama(&self, contender: Contender) -> Result<Figures> {
        let folder = self.options.llama_bin.as_deref().context("--llama-bin")?;
        let [whole, turn, prefix] = &self.rendered;
        let cache = self.folder.join("llama.cache");
        let command = |text: &str, tokens: usize| {
            let mut command = Command::new(folder.join("llama-completion"));
            command.arg("-m").arg(&self.model).args(["-t", &self.options.threads.to_string(), "-fa", "off"]);
            command.args([
                "-c",
                "2048",
                "--temp",
                "0",
                "--ignore-eos",
                "-no-cnv",
                "--no-escape",
                "--perf",
                "-n",
                &tokens.to_string(),
                "-p",
                text,
            ]);
            command
        };
        let mut run = match contender {
            Contender::LlamaTurnOnly => command(turn, 33),
            Contender::LlamaRestored => {
                if !cache.is_file() {
                    process::run(command(prefix, 1).arg("--prompt-cache").arg(&cache))?;
                }
                let mut command = command(whole, 33);
                command.arg("--prompt-cache").arg(&cache).arg("--prompt-cache-ro");
                command
            }
            _ => command(whole, 33),
        };
        let finished = process::run(&mut run)?;
        let (first_token_ms, decode) = timings(&finished.stderr)?;
        let peak_bytes = finished.peak_rss_bytes as f64;
        Ok(Figures { first_token_ms, restore_ms: None, decode, cache_bytes: None, peak_bytes })
    }

    fn report(&self, samples: &BTreeMap<Contender, Vec<Figures>>) -> Result<String> {
        let (prompt, turn) = (self.options.prompt_tokens, self.options.turn_tokens);
        let name = self.model.file_stem().unwrap_or_default().to_string_lossy();
        let mut report = format!(
            "**{name}**, prompt of {prompt} tokens, turn of {turn}, median of {} processes\n\n",
            self.options.rounds
        );
        let mut table =
            Table::new(["arm", "first token, ms", "restore, ms", "decode, tok/s", "KV cache, KB", "peak RSS, MB"]);
        let of = |contender: Contender, figure: fn(&Figures) -> f64| median(samples[&contender].iter().map(figure));
        for contender in samples.keys() {
            let optional = |figure: fn(&Figures) -> Option<f64>, unit: f64| {
                let values: Vec<f64> = samples[contender].iter().filter_map(figure).collect();
                if values.is_empty() { String::new() } else { format!("{:.0}", median(values) / unit) }
            };
            table.row([
                contender.name(),
                format!("{:.1}", of(*contender, |figures| figures.first_token_ms)),
                optional(|figures| figures.restore_ms, 1.0),
                format!("{:.1}", of(*contender, |figures| figures.decode)),
                optional(|figures| figures.cache_bytes, 1e3),
                format!("{:.0}", of(*contender, |figures| figures.peak_bytes) / 1e6),
            ]);
        }
        writeln!(report, "{table}")?;
        let (prompted, restored) = (Contender::Ours(Arm::Prompted, None), Contender::Ours(Arm::Restored, None));
        for mode in [Mode::SidePath, Mode::Promoted] {
            let own = Contender::Ours(Arm::Specialized, Some(mode));
            let first = |contender| of(contender, |figures| figures.first_token_ms);
            let decode = |contender| of(contender, |figures| figures.decode);
            let cache = |contender| of(contender, |figures| figures.cache_bytes.unwrap_or(f64::NAN));
            writeln!(
                report,
                "{}: first token 1/{:.1} of the prompt in context, {:.2}x of the restored prefix; decode {:.2}x; KV bytes 1/{:.1}.",
                own.name(),
                first(prompted) / first(own),
                first(own) / first(restored),
                decode(own) / decode(restored),
                cache(prompted) / cache(own),
            )?;
        }
        let prefix = fs::metadata(self.folder.join("prefix")).map_or(0, |file| file.len());
        writeln!(report, "Prefix file: {:.1} MB.", prefix as f64 / 1e6)?;
        Ok(report)
    }
}

/// Milliseconds of the prompt and tokens per second of the answer, from what `llama-completion` logs.
fn timings(log: &str) -> Result<(f64, f64)> {
    let line = |name: &str| {
        let found = log.lines().find(|line| line.split('=').next().is_some_and(|head| head.trim_end().ends_with(name)));
        found
            .and_then(|line| line.split_once('='))
            .map(|(_, rest)| rest)
            .with_context(|| format!("no {name:?} in llama.cpp's log"))
    };
    let number = |text: &str| -> Result<f64> {
        let word = text.split_whitespace().next().context("no number")?;
        word.parse().with_context(|| format!("{word:?} in llama.cpp's log"))
    };
    let milliseconds = number(line("prompt eval time")?)?;
    // `eval time = 123.4 ms / 32 runs (3.86 ms per token, 259.3 tokens per second)`, also the end of the name above.
    let decode = log
        .lines()
        .filter(|line| line.contains(" eval time =") && !line.contains("prompt eval time"))
        .find_map(|line| line.rsplit_once(", ").map(|(_, rest)| rest))
        .context("no eval time in llama.cpp's log")?;
    Ok((milliseconds, number(decode)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_llama_cpps_timings() {
        let log = "common_perf_print: prompt eval time =     123.45 ms /    31 tokens (    3.98 ms per token,   251.11 tokens per second)\n\
                   common_perf_print:        eval time =     400.00 ms /    32 runs   (   12.50 ms per token,    80.00 tokens per second)\n";
        assert_eq!(timings(log).unwrap(), (123.45, 80.0));
        assert!(timings("").is_err());
    }
}
