//! One sample of the edge runtime, taken in a process of its own so that its memory and its load are its own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use edgeweld::CancelToken;
use edgeweld::generate::{Device, Engine, GenerateOptions, LoadOptions};
use edgeweld::gguf::GgufFile;
use edgeweld::kernels::{Isa, Kernels};
#[cfg(feature = "onnx")]
use edgeweld::model::Onnx;
use edgeweld::model::{Backend, Cpu, CpuOptions, Decoder, LogitRows, Runner};
use edgeweld_tests::arms::median;
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
/// Turns of a process with and without a pack, and tokens per turn at decode.
const PREFILL_TURNS: usize = 5;
const DECODE_TURNS: usize = 60;
const DECODE_TURN_TOKENS: usize = 8;
/// Longer than the threads of a session of ONNX Runtime look for work before they sleep.
#[cfg(feature = "onnx")]
const SPIN: Duration = Duration::from_millis(60);
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
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load => write!(f, "load"),
            Self::Prefill(tokens) => write!(f, "prefill:{tokens}"),
            Self::Decode(tokens) => write!(f, "decode:{tokens}"),
        }
    }
}

impl FromStr for Measure {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, tokens) = text.split_once(':').unwrap_or((text, ""));
        match (name, tokens) {
            ("load", "") => Ok(Self::Load),
            ("prefill", tokens) => Ok(Self::Prefill(tokens.parse()?)),
            ("decode", tokens) => Ok(Self::Decode(tokens.parse()?)),
            _ => anyhow::bail!("{text:?} is not load, prefill:N or decode:N"),
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
    model: PathBuf,
    /// What computes
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceName,
    /// Instruction set of our CPU kernels, to compare with a rival that is built for it; default: the best this CPU has
    #[arg(long, env = "EDGEWELD_BENCH_ISA")]
    isa: Option<Isa>,
    /// Run a random rank-16 pack beside the FFN
    #[arg(long)]
    with_pack: bool,
    /// Take turns with and without the pack in this process, and print both figures of every turn
    #[arg(long, conflicts_with = "with_pack")]
    in_turn: bool,
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

/// Takes the sample and prints its figure; `load` prints nothing, its figure is the process's time. After its own figure
/// `decode` prints the read bandwidth of the same moments.
pub(crate) fn take(options: &Options) -> Result<()> {
    if options.in_turn {
        return in_turn(options);
    }
    match options.measure {
        Measure::Load => load(options)?,
        Measure::Prefill(tokens) => println!("{}", prefill(options, tokens)?),
        Measure::Decode(depth) => {
            let file = GgufFile::open(&options.model)?;
            let mut passes = read_rates(&file, options.threads);
            let rate = decode(options, depth)?;
            passes.extend(read_rates(&file, options.threads));
            println!("{rate} {}", median(passes.into_iter()));
        }
    }
    Ok(())
}

impl Options {
    fn load(&self, context_length: usize) -> Result<Engine> {
        let options =
            LoadOptions { threads: Some(self.threads), context_length: Some(context_length), ..LoadOptions::default() };
        self.device.load(&self.model, options)
    }

    fn cpu(&self) -> Result<Cpu> {
        let options = CpuOptions { threads: Some(self.threads), ..CpuOptions::default() };
        let Some(isa) = self.isa else { return Ok(Cpu::new(&options)?) };
        let kernels = Kernels::new(isa).with_context(|| format!("this CPU has no {isa}"))?;
        Ok(Cpu::with_kernels(&options, kernels)?)
    }

    /// Runs `run` on a sequence of `context_length` tokens. The whole engine is in memory meanwhile, as in an app.
    fn with_runner(
        &self,
        context_length: usize,
        run: impl FnOnce(&mut dyn Runner, u32) -> edgeweld::Result<f64>,
    ) -> Result<f64> {
        let engine = self.load(context_length)?;
        let vocab = engine.tokenizer().vocab_size() as u32;
        if !self.with_pack && self.isa.is_none() {
            return Ok(run(&mut *engine.runner()?, vocab)?);
        }
        let file = GgufFile::open(&self.model)?;
        let mut runner = match self.device {
            #[cfg(feature = "onnx")]
            DeviceName::Onnx => {
                // The engine's own session would be a second copy of the weights.
                drop(engine);
                let folder = onnx::folder(&self.model);
                let onnx = Onnx::open(&folder, &file, &onnx::options()?, Some(self.threads))?;
                with_random_pack(onnx, &file, context_length)?
            }
            _ if self.with_pack => with_random_pack(self.cpu()?, &file, context_length)?,
            _ => Cpu::runner(&decoder(self.cpu()?, &file)?, context_length, None)?,
        };
        Ok(run(&mut *runner, vocab)?)
    }
}

fn with_random_pack<B: Backend>(backend: B, file: &GgufFile, context_length: usize) -> Result<Box<dyn Runner>> {
    let decoder = decoder(backend, file)?;
    Ok(B::runner(&decoder, context_length, Some(random_pack(&decoder)?))?)
}

fn decoder<B: Backend>(backend: B, file: &GgufFile) -> Result<Arc<Decoder<B>>> {
    Ok(Arc::new(Decoder::load(file, Arc::new(backend), &CancelToken::new(), &mut |_, _| ())?))
}

fn random_pack<B: Backend>(decoder: &Decoder<B>) -> Result<Arc<[B::Lora]>> {
    // Small, so that it changes numbers and not the model's range.
    let lora = random_lora(&decoder.config, PACK_RANK, 0.01, 0);
    let layers = lora.layers.iter().map(|layer| decoder.backend.lora(layer, lora.scale));
    Ok(layers.collect::<edgeweld::Result<Arc<[_]>>>()?)
}

fn without_and_with_pack<B: Backend>(
    [without, with]: [&Arc<Decoder<B>>; 2],
    context_length: usize,
) -> Result<[Box<dyn Runner>; 2]> {
    let pack = random_pack(with)?;
    Ok([B::runner(without, context_length, None)?, B::runner(with, context_length, Some(pack))?])
}

/// Tokens per second without and with a random pack, a line per turn. Both run in one process, so that
/// whatever else the machine does meets both alike: processes that take turns scatter by more than a pack costs.
fn in_turn(options: &Options) -> Result<()> {
    let (depth, tokens, turns) = match options.measure {
        Measure::Load => anyhow::bail!("load is not measured in turn"),
        Measure::Prefill(tokens) => (0, tokens, PREFILL_TURNS),
        Measure::Decode(depth) => (depth, DECODE_TURN_TOKENS, DECODE_TURNS),
    };
    let (file, context) = (GgufFile::open(&options.model)?, depth + tokens);
    let (mut runners, settle) = match options.device {
        DeviceName::Cpu => {
            let decoder = decoder(options.cpu()?, &file)?;
            (without_and_with_pack([&decoder, &decoder], context)?, Duration::ZERO)
        }
        DeviceName::Exact => anyhow::bail!("candle is not measured in turn"),
        #[cfg(feature = "onnx")]
        DeviceName::Onnx => {
            // A graph with a side path has its nodes without a pack too: each side has a graph of its own.
            let onnx = || {
                anyhow::Ok(Onnx::open(&onnx::folder(&options.model), &file, &onnx::options()?, Some(options.threads))?)
            };
            (without_and_with_pack([&decoder(onnx()?, &file)?, &decoder(onnx()?, &file)?], context)?, SPIN)
        }
    };
    let cancel = CancelToken::new();
    // A row of logits is as wide as the vocabulary.
    let vocab = runners[0].forward(&[0], LogitRows::Last, &cancel)?.len() as u32;
    for runner in &mut runners {
        runner.truncate(0);
        runner.forward(&random_ids(depth.max(1), vocab), LogitRows::Last, &cancel)?;
    }
    let ids = random_ids(tokens, vocab);
    let step = if depth == 0 { tokens } else { 1 };
    // The first turn only warms up.
    for turn in 0..=turns {
        let mut rates = [0.0; 2];
        // Nobody always comes second.
        for index in [turn % 2, 1 - turn % 2] {
            let runner = &mut runners[index];
            if !settle.is_zero() {
                // The other side's threads would take this one's cores.
                thread::sleep(settle);
                runner.truncate(depth);
                runner.forward(&ids[..step], LogitRows::Last, &cancel)?;
            }
            runner.truncate(depth);
            let start = Instant::now();
            for ids in ids.chunks(step) {
                runner.forward(ids, LogitRows::Last, &cancel)?;
            }
            rates[index] = tokens as f64 / start.elapsed().as_secs_f64();
        }
        if turn > 0 {
            println!("{} {}", rates[0], rates[1]);
        }
    }
    Ok(())
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

/// Bytes per second at which the threads read the file's tensors where they are mapped, one load per cache line and each
/// thread one stretch of every tensor, in some passes: what decoding would reach if it did nothing but read.
fn read_rates(file: &GgufFile, threads: usize) -> Vec<f64> {
    const PASSES: usize = 5;
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
    let pass = |_| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            (1..threads).for_each(|thread| _ = scope.spawn(move || read(thread)));
            read(0);
        });
        size as f64 / start.elapsed().as_secs_f64()
    };
    // The first maps the pages.
    pass(0);
    (0..PASSES).map(pass).collect()
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
        for measure in [Measure::Load, Measure::Prefill(128), Measure::Decode(1500)] {
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
        assert!(read_rates(&file, 2).iter().all(|rate| (1e8..1e13).contains(rate)));
    }
}
