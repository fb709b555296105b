//! One sample of the edge runtime, taken in a process of its own so that its memory and its load are its own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use edgeweld::CancelToken;
use edgeweld::generate::{Device, Engine, GenerateOptions, LoadOptions};
use edgeweld::gguf::GgufFile;
#[cfg(feature = "onnx")]
use edgeweld::model::Onnx;
use edgeweld::model::{Backend, Cpu, CpuOptions, Decoder, LogitRows, Runner};
#[cfg(feature = "onnx")]
use edgeweld_tests::onnx;
use edgeweld_tests::random_lora;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Context of the load sample, in tokens.
pub(crate) const LOAD_CONTEXT: usize = 1_536;
/// Tokens that a decode sample times, as `llama-bench -n` does.
pub(crate) const DECODE_TOKENS: usize = 32;
/// Prompts up to this long run once before they are timed; longer ones would only measure patience.
pub(crate) const WARM_UP_TOKENS_MAX: usize = 512;
/// Rank of the random pack.
const PACK_RANK: usize = 16;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measure {
    /// Start, load, a session, one token, exit: the process's milliseconds.
    Load,
    /// Tokens per second of a prompt of this length.
    Prefill(usize),
    /// Tokens per second after this many tokens of context.
    Decode(usize),
    /// Bytes per second at which the threads read the model's tensors where they are mapped, one load per cache line.
    Bandwidth,
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load => write!(f, "load"),
            Self::Prefill(tokens) => write!(f, "prefill:{tokens}"),
            Self::Decode(tokens) => write!(f, "decode:{tokens}"),
            Self::Bandwidth => write!(f, "bandwidth"),
        }
    }
}

impl FromStr for Measure {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, tokens) = text.split_once(':').unwrap_or((text, ""));
        match (name, tokens) {
            ("load", "") => Ok(Self::Load),
            ("bandwidth", "") => Ok(Self::Bandwidth),
            ("prefill", tokens) => Ok(Self::Prefill(tokens.parse()?)),
            ("decode", tokens) => Ok(Self::Decode(tokens.parse()?)),
            _ => anyhow::bail!("{text:?} is not load, bandwidth, prefill:N or decode:N"),
        }
    }
}

/// What a sample is taken of.
#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    measure: Measure,
    #[arg(long)]
    threads: usize,
    #[arg(long)]
    model: Option<PathBuf>,
    /// What computes
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceName,
    /// Run a random rank-16 pack beside the FFN
    #[arg(long)]
    with_pack: bool,
}

/// What computes; ONNX Runtime does on the folder that was exported beside the model.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum DeviceName {
    Cpu,
    Exact,
    #[cfg(feature = "onnx")]
    Onnx,
}

impl DeviceName {
    /// Exports the model, where the device needs that.
    #[cfg_attr(not(feature = "onnx"), expect(unused_variables))]
    pub(crate) fn prepare(self, model: &Path) -> Result<()> {
        #[cfg(feature = "onnx")]
        if matches!(self, Self::Onnx) {
            crate::exported::export(model, false)?;
        }
        Ok(())
    }

    pub(crate) fn load(self, model: &Path, options: LoadOptions) -> Result<Engine> {
        Ok(match self {
            Self::Cpu => Engine::load(model, &options)?,
            Self::Exact => Engine::load(model, &LoadOptions { device: Device::Exact, ..options })?,
            #[cfg(feature = "onnx")]
            Self::Onnx => {
                let options = LoadOptions { device: Device::Onnx, onnx: onnx::options()?, ..options };
                Engine::load(onnx::folder(model), &options)?
            }
        })
    }
}

/// Takes the sample and prints its figure; `load` prints nothing, its figure is the process's time.
pub(crate) fn take(options: &Options) -> Result<()> {
    let rate = match options.measure {
        Measure::Bandwidth => bandwidth(&GgufFile::open(options.model()?)?, options.threads),
        Measure::Load => return load(options),
        Measure::Prefill(tokens) => prefill(options, tokens)?,
        Measure::Decode(depth) => decode(options, depth)?,
    };
    println!("{rate}");
    Ok(())
}

impl Options {
    fn model(&self) -> Result<&PathBuf> {
        self.model.as_ref().context("--model is missing")
    }

    fn load(&self, context_length: usize) -> Result<Engine> {
        let options =
            LoadOptions { threads: Some(self.threads), context_length: Some(context_length), ..LoadOptions::default() };
        self.device.load(self.model()?, options)
    }

    /// Runs `run` on a sequence of `context_length` tokens. The whole engine is in memory meanwhile, as in an app.
    fn with_runner(
        &self,
        context_length: usize,
        run: impl FnOnce(&mut dyn Runner, u32) -> edgeweld::Result<f64>,
    ) -> Result<f64> {
        let engine = self.load(context_length)?;
        let vocab = engine.tokenizer().vocab_size() as u32;
        if !self.with_pack {
            return Ok(run(&mut *engine.runner()?, vocab)?);
        }
        let (file, threads) = (GgufFile::open(self.model()?)?, Some(self.threads));
        let mut runner = match self.device {
            #[cfg(feature = "onnx")]
            DeviceName::Onnx => {
                // The engine's own session would be a second copy of the weights.
                drop(engine);
                let folder = onnx::folder(self.model()?);
                with_random_pack(Onnx::open(&folder, &file, &onnx::options()?, threads)?, &file, context_length)?
            }
            _ => with_random_pack(Cpu::new(&CpuOptions { threads, ..CpuOptions::default() })?, &file, context_length)?,
        };
        Ok(run(&mut *runner, vocab)?)
    }
}

fn with_random_pack<B: Backend>(backend: B, file: &GgufFile, context_length: usize) -> Result<Box<dyn Runner>> {
    let decoder = Arc::new(Decoder::load(file, Arc::new(backend), &CancelToken::new(), &mut |_, _| ())?);
    // Small, so that it changes numbers and not the model's range.
    let lora = random_lora(&decoder.config, PACK_RANK, 0.01, 0);
    let layers = lora.layers.iter().map(|layer| decoder.backend.lora(layer, lora.scale));
    let lora = layers.collect::<edgeweld::Result<Arc<[_]>>>()?;
    Ok(B::runner(&decoder, context_length, Some(lora))?)
}

fn load(options: &Options) -> Result<()> {
    let one_token = GenerateOptions { max_tokens: 1, ..GenerateOptions::default() };
    options.load(LOAD_CONTEXT)?.session()?.complete("Hello", &one_token, &mut |_: &edgeweld::generate::Token| ())?;
    Ok(())
}

fn prefill(options: &Options, tokens: usize) -> Result<f64> {
    options.with_runner(tokens, |runner, vocab| {
        let (prompt, cancel) = (random_ids(tokens, vocab), CancelToken::new());
        if tokens <= WARM_UP_TOKENS_MAX {
            runner.forward(&prompt, LogitRows::Last, &cancel)?;
            runner.truncate(0);
        }
        let start = Instant::now();
        runner.forward(&prompt, LogitRows::Last, &cancel)?;
        Ok(tokens as f64 / start.elapsed().as_secs_f64())
    })
}

fn decode(options: &Options, depth: usize) -> Result<f64> {
    options.with_runner(depth + DECODE_TOKENS, |runner, vocab| {
        let cancel = CancelToken::new();
        runner.forward(&random_ids(depth, vocab), LogitRows::Last, &cancel)?;
        let ids = random_ids(DECODE_TOKENS, vocab);
        let start = Instant::now();
        for id in &ids {
            runner.forward(&[*id], LogitRows::Last, &cancel)?;
        }
        Ok(ids.len() as f64 / start.elapsed().as_secs_f64())
    })
}

/// The best of some passes over the file's tensors, each thread one stretch of every tensor: what decoding would reach if
/// it did nothing but read.
fn bandwidth(file: &GgufFile, threads: usize) -> f64 {
    const PASSES: usize = 8;
    const LINE_BYTES: usize = 64;
    let size: usize = file.tensors().map(|tensor| tensor.bytes().len()).sum();
    let read = |thread: usize| {
        let part = |tensor: edgeweld::gguf::Tensor| {
            let len = tensor.bytes().len();
            let part = &tensor.bytes()[len * thread / threads..len * (thread + 1) / threads];
            part.iter().step_by(LINE_BYTES).map(|byte| u64::from(*byte)).sum::<u64>()
        };
        std::hint::black_box(file.tensors().map(part).sum::<u64>())
    };
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            (1..threads).for_each(|thread| _ = scope.spawn(move || read(thread)));
            read(0);
        });
        size as f64 / start.elapsed().as_secs_f64()
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}

fn random_ids(count: usize, vocab: u32) -> Vec<u32> {
    let mut random = SmallRng::seed_from_u64(count as u64);
    (0..count).map(|_| random.random_range(0..vocab)).collect()
}

#[cfg(test)]
mod tests {
    use edgeweld::gguf::GgufWriter;
    use edgeweld::quant::{BlockType, WeightBytes};

    use super::*;

    #[test]
    fn measures_are_read_as_they_are_written() {
        for measure in [Measure::Load, Measure::Prefill(128), Measure::Decode(1500), Measure::Bandwidth] {
            assert_eq!(measure.to_string().parse::<Measure>().unwrap(), measure);
        }
        assert!("prefill:".parse::<Measure>().is_err());
        assert!("load:3".parse::<Measure>().is_err());
    }

    #[test]
    fn memory_is_read_at_a_credible_rate() {
        let mut writer = GgufWriter::new();
        writer.tensor("t", BlockType::F32, &[1 << 20], WeightBytes::Owned(vec![1; 4 << 20].into())).unwrap();
        let file = GgufFile::from_bytes(writer.to_bytes()).unwrap();
        assert!((1e8..1e13).contains(&bandwidth(&file, 2)));
    }
}
