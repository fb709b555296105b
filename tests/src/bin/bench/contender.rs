//! Who is measured, and how each is started.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use edgeweld_tests::process;

use crate::exported::exported;
use crate::record::Record;
use crate::sample::{DECODE_TOKENS, LOAD_CONTEXT, Measure, WARM_UP_TOKENS_MAX};

/// One side of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender<'a> {
    Edgeweld,
    /// The same with a random rank-16 pack as a side path, in turn with [`EdgeweldInTurn`](Self::EdgeweldInTurn).
    EdgeweldWithPack,
    /// What takes turns with [`EdgeweldWithPack`](Self::EdgeweldWithPack) in its process.
    EdgeweldInTurn,
    /// The tensor library: f32 weights and activations.
    Candle,
    /// Edgeweld on ONNX Runtime.
    Onnx,
    /// The same with a random rank-16 pack as a side path, in turn with [`OnnxInTurn`](Self::OnnxInTurn).
    OnnxWithPack,
    /// What takes turns with [`OnnxWithPack`](Self::OnnxWithPack) in its process.
    OnnxInTurn,
    /// onnxruntime-genai in this Python, on the same exported folder.
    Genai(&'a Path),
    /// The programs in this folder.
    LlamaCpp(&'a Path),
}

/// The figures of a process, or of one of its turns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Milliseconds for [`Measure::Load`], else tokens per second.
    pub(crate) value: f64,
    pub(crate) peak_rss_bytes: u64,
    /// Bytes per second at which the threads could read the weights meanwhile; with our own decode.
    pub(crate) read_rate: Option<f64>,
}

impl Sample {
    pub(crate) fn record(self, model: String, threads: usize, measure: Measure, contender: Contender) -> Record {
        let (measure, contender) = (measure.to_string(), contender.name().to_owned());
        let Self { value, peak_rss_bytes, read_rate } = self;
        Record { model, threads, measure, contender, value, peak_rss_bytes, read_rate }
    }
}

impl Contender<'_> {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Edgeweld => "edgeweld",
            Self::EdgeweldWithPack => "with a pack",
            Self::EdgeweldInTurn => "without",
            Self::Candle => "candle",
            Self::Onnx => "ONNX Runtime",
            Self::OnnxWithPack => "ONNX Runtime with a pack",
            Self::OnnxInTurn => "ONNX Runtime without",
            Self::Genai(_) => "onnxruntime-genai",
            Self::LlamaCpp(_) => "llama.cpp",
        }
    }

    /// Whether it needs the model as an exported folder.
    pub(crate) fn is_on_onnx_runtime(self) -> bool {
        matches!(self, Self::Onnx | Self::OnnxWithPack | Self::Genai(_))
    }

    /// What takes turns with it in its process: the same without a pack.
    pub(crate) fn other_side(self) -> Option<Self> {
        match self {
            Self::EdgeweldWithPack => Some(Self::EdgeweldInTurn),
            Self::OnnxWithPack => Some(Self::OnnxInTurn),
            _ => None,
        }
    }

    /// Whether `measure` is taken of it.
    pub(crate) fn takes(self, measure: Measure) -> bool {
        measure != Measure::Load || self.other_side().is_none()
    }

    /// Runs a process and gives its samples, one of the contender or some of two that take turns.
    pub(crate) fn samples(self, measure: Measure, model: &Path, threads: usize) -> Result<Vec<(Self, Sample)>> {
        let mut command = match self {
            Self::Edgeweld => own(measure, model, threads, &[])?,
            Self::EdgeweldWithPack | Self::EdgeweldInTurn => own(measure, model, threads, &["--in-turn"])?,
            Self::Candle => own(measure, model, threads, &["--device", "exact"])?,
            Self::Onnx => own(measure, model, threads, &["--device", "onnx"])?,
            Self::OnnxWithPack | Self::OnnxInTurn => own(measure, model, threads, &["--device", "onnx", "--in-turn"])?,
            Self::Genai(python) => genai(python, measure, model, threads),
            Self::LlamaCpp(folder) => llama_cpp(folder, measure, model, threads),
        };
        let finished = process::run(&mut command)?;
        let sample = |value| Sample { value, peak_rss_bytes: finished.peak_rss_bytes, read_rate: None };
        let printed = || figures(&finished.stdout).with_context(|| format!("sample printed {:?}", finished.stdout));
        Ok(match (measure, self.other_side()) {
            (Measure::Load, _) => vec![(self, sample(finished.elapsed.as_secs_f64() * 1e3))],
            (_, Some(other)) => [other, self].into_iter().cycle().zip(printed()?.into_iter().map(sample)).collect(),
            _ if matches!(self, Self::LlamaCpp(_)) => vec![(self, sample(tokens_per_second(&finished.stdout)?))],
            _ => {
                let printed = printed()?;
                let value = *printed.first().context("sample printed nothing")?;
                vec![(self, Sample { read_rate: printed.get(1).copied(), ..sample(value) })]
            }
        })
    }
}

/// The numbers in what a sample printed.
fn figures(stdout: &str) -> Result<Vec<f64>> {
    stdout.split_whitespace().map(|figure| Ok(figure.parse()?)).collect()
}

fn own(measure: Measure, model: &Path, threads: usize, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("sample").args(["--measure", &measure.to_string(), "--threads", &threads.to_string()]);
    command.arg("--model").arg(model).args(args);
    Ok(command)
}

/// The same kernels of ONNX Runtime under another engine.
fn genai(python: &Path, measure: Measure, model: &Path, threads: usize) -> Command {
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/peers/genai_run.py"));
    command.arg(exported(model)).args([threads.to_string(), measure.to_string()]);
    command
}

/// Flash attention is off: on CPUs that is llama.cpp's faster way.
fn llama_cpp(folder: &Path, measure: Measure, model: &Path, threads: usize) -> Command {
    let program = if measure == Measure::Load { "llama-completion" } else { "llama-bench" };
    let mut command = Command::new(folder.join(program));
    command.arg("-m").arg(model).args(["-t", &threads.to_string(), "-fa", "off"]);
    let (prompt, generated, depth) = match measure {
        Measure::Prefill(tokens) => (tokens, 0, 0),
        Measure::Decode(depth) => (0, DECODE_TOKENS, depth),
        Measure::Load => {
            let context = LOAD_CONTEXT.to_string();
            command.args(["-c", &context, "-n", "1", "-p", "Hello", "-no-cnv", "--no-warmup"]);
            return command;
        }
    };
    for (option, count) in [("-p", prompt), ("-n", generated), ("-d", depth)] {
        command.args([option, &count.to_string()]);
    }
    command.args(["-r", "1", "-o", "json"]);
    if prompt > WARM_UP_TOKENS_MAX {
        command.arg("--no-warmup");
    }
    command
}

/// The figure in `llama-bench -o json`.
fn tokens_per_second(json: &str) -> Result<f64> {
    let runs: serde_json::Value = serde_json::from_str(json).context("llama-bench's JSON")?;
    runs.pointer("/0/avg_ts").and_then(serde_json::Value::as_f64).context("llama-bench's JSON has no avg_ts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_bench_measures_what_ours_does() {
        let args = |measure| {
            let command = llama_cpp(Path::new("bin"), measure, Path::new("m.gguf"), 2);
            command.get_args().skip(6).map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(args(Measure::Prefill(128)), "-p 128 -n 0 -d 0 -r 1 -o json");
        assert_eq!(args(Measure::Prefill(1500)), "-p 1500 -n 0 -d 0 -r 1 -o json --no-warmup");
        assert_eq!(args(Measure::Decode(30)), "-p 0 -n 32 -d 30 -r 1 -o json");
    }

    #[test]
    fn reads_what_samples_print() {
        assert_eq!(figures("120.5 3e10\n").unwrap(), [120.5, 3e10]);
        assert!(figures("slow").is_err());
    }

    #[test]
    fn reads_llama_benchs_figure() {
        assert_eq!(tokens_per_second("[{\"n_prompt\": 128, \"avg_ts\": 204.5}]").unwrap(), 204.5);
        assert!(tokens_per_second("[]").is_err());
        assert!(tokens_per_second("").is_err());
    }
}
