//! `bench edge`: the plan of samples, the run, and the tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use edgeweld::gguf::GgufFile;
use edgeweld_tests::arms::median;
use edgeweld_tests::{Table, models};

use crate::contender::{Contender, Sample};
use crate::exported;
use crate::record::{self, Record};
use crate::sample::Measure;
use crate::variants;

/// What every model is measured in; the longest prompt also gives the peak memory.
const MEASURES: [Measure; 6] = [
    Measure::Load,
    Measure::Prefill(128),
    Measure::Prefill(512),
    Measure::Prefill(MEMORY_PROMPT),
    Measure::Decode(30),
    Measure::Decode(1500),
];
/// The prompt during which peak memory is taken, in tokens.
const MEMORY_PROMPT: usize = 1500;

#[derive(Args)]
pub(crate) struct Options {
    /// What is measured; `onnx` is also measured beside the own kernels, and beside candle where that is built in
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendName,
    /// Export for ONNX Runtime with 8-bit activations
    #[arg(long)]
    int8_activations: bool,
    /// Also measure this program, in turn with ours
    #[arg(long, value_enum)]
    vs: Option<Rival>,
    /// A Python that has onnxruntime-genai; `cargo xtask bench` fills it in
    #[arg(long, required_if_eq("vs", "onnxruntime-genai"))]
    genai_python: Option<PathBuf>,
    /// Folder with llama.cpp's programs; `cargo xtask bench` fills it in
    #[arg(long, required_if_eq("vs", "llama-cpp"))]
    llama_bin: Option<PathBuf>,
    /// Also measure with a random rank-16 pack beside the FFN, in turn with and without it in one process; without a rival, only that
    #[arg(long)]
    with_pack: bool,
    /// What is measured: load, prefill:N, decode:N, comma-separated. Peak memory is that of prefill:1500
    #[arg(long, value_delimiter = ',', default_values_t = MEASURES)]
    measures: Vec<Measure>,
    /// GGUF file, or the name of one in the models folder; repeatable. Default: the test models and their variants
    #[arg(long = "model")]
    models: Vec<String>,
    /// Threads, comma-separated
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Samples per figure; with `--samples`, none means that only the report is made
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Add the samples to this file, and report all that it has of these models, threads and contenders
    #[arg(long)]
    samples: Option<PathBuf>,
    /// One round, most threads only, test models as shipped
    #[arg(long)]
    quick: bool,
    /// Also write the tables to this file
    #[arg(long)]
    markdown: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendName {
    Cpu,
    Onnx,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rival {
    LlamaCpp,
    OnnxruntimeGenai,
}

/// Samples by model (index), threads, measure and contender.
type Samples<'a> = BTreeMap<(usize, usize, Measure, Contender<'a>), Vec<Sample>>;

/// Runs the plan and prints the tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    let most = options.threads.iter().max().copied().filter(|_| options.threads.iter().all(|count| *count > 0));
    let most = most.context("--threads must name one count or more, none of them zero")?;
    ensure!(options.rounds > 0 || options.samples.is_some(), "--rounds must be at least 1");
    let (threads, rounds) = if options.quick { (vec![most], 1) } else { (options.threads.clone(), options.rounds) };
    let models = models(options)?;
    let contenders = options.contenders();
    if contenders.iter().any(|contender| contender.is_on_onnx_runtime()) {
        models.iter().try_for_each(|model| exported::export(model, options.int8_activations))?;
    }

    let run = Run { models, threads, rounds, contenders, measures: options.measures.clone() };
    let report = run.report(&run.sample(options.samples.as_deref())?)?;
    println!("{report}");
    if let Some(path) = &options.markdown {
        fs::write(path, report).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

impl Options {
    /// The first is compared with every other.
    fn contenders(&self) -> Vec<Contender<'_>> {
        let (mut contenders, with_pack) = match self.backend {
            BackendName::Cpu => (vec![Contender::Edgeweld], Contender::EdgeweldWithPack),
            BackendName::Onnx => (vec![Contender::Onnx, Contender::Edgeweld], Contender::OnnxWithPack),
        };
        // The pack brings its own other side.
        if self.with_pack && self.vs.is_none() {
            return vec![with_pack];
        }
        contenders.extend(self.with_pack.then_some(with_pack));
        if self.backend == BackendName::Onnx && cfg!(feature = "candle") {
            contenders.push(Contender::Candle);
        }
        contenders.extend(self.vs.and_then(|rival| match rival {
            Rival::LlamaCpp => self.llama_bin.as_deref().map(Contender::LlamaCpp),
            Rival::OnnxruntimeGenai => self.genai_python.as_deref().map(Contender::Genai),
        }));
        contenders
    }
}

fn models(options: &Options) -> Result<Vec<PathBuf>> {
    let folder = models::folder();
    if !options.models.is_empty() {
        let find = |name: &String| match Path::new(name) {
            path if path.is_file() => Ok(path.to_owned()),
            _ => models::find(name, &[&folder, &folder.join("variants")]),
        };
        return options.models.iter().map(find).collect();
    }
    let shipped = models::files(&folder)?;
    ensure!(!shipped.is_empty(), "{} has no model: run `cargo xtask models`", folder.display());
    let mut models = Vec::new();
    for path in shipped {
        models.push(path.clone());
        if !options.quick {
            models.extend(variants::of(&path)?);
        }
    }
    Ok(models)
}

struct Run<'a> {
    models: Vec<PathBuf>,
    threads: Vec<usize>,
    rounds: usize,
    contenders: Vec<Contender<'a>>,
    measures: Vec<Measure>,
}

impl<'a> Run<'a> {
    /// Takes every sample, after those that are in `file`, and adds them to it.
    fn sample(&self, file: Option<&Path>) -> Result<Samples<'a>> {
        let mut samples = file.map(|file| self.restore(file)).transpose()?.unwrap_or_default();
        for (index, model) in self.models.iter().enumerate() {
            for threads in &self.threads {
                for measure in &self.measures {
                    eprint!("[{}/{}] {}, {threads} threads, {measure}:", index + 1, self.models.len(), name(model));
                    for round in 0..self.rounds {
                        // Nobody always comes second.
                        let mut order = self.contenders.clone();
                        let by = round % order.len();
                        order.rotate_left(by);
                        for contender in order.into_iter().filter(|contender| contender.takes(*measure)) {
                            let taken = contender
                                .samples(*measure, model, *threads)
                                .with_context(|| format!("{}, {measure}, {}", contender.name(), model.display()))?;
                            let own = taken.iter().filter(|(of, _)| *of == contender).map(|(_, sample)| sample.value);
                            eprint!(" {} {:.0}", contender.name(), median(own));
                            for (contender, sample) in taken {
                                if let Some(file) = file {
                                    record::append(file, &sample.record(name(model), *threads, *measure, contender))?;
                                }
                                samples.entry((index, *threads, *measure, contender)).or_default().push(sample);
                            }
                        }
                    }
                    eprintln!();
                }
            }
        }
        Ok(samples)
    }

    /// The samples of `file` that belong to this run.
    fn restore(&self, file: &Path) -> Result<Samples<'a>> {
        let mut samples = Samples::new();
        let sides: Vec<_> = self.pairs().iter().flat_map(|pair| [Some(pair.own), pair.rival]).flatten().collect();
        for record in record::read(file)? {
            let model = self.models.iter().position(|model| name(model) == record.model);
            let contender = sides.iter().find(|contender| contender.name() == record.contender);
            if let (Some(model), Some(contender)) = (model, contender) {
                let Record { value, peak_rss_bytes, read_rate, .. } = record;
                let key = (model, record.threads, record.measure.parse()?, *contender);
                samples.entry(key).or_default().push(Sample { value, peak_rss_bytes, read_rate });
            }
        }
        Ok(samples)
    }

    /// One table against each rival; alone, one table of our own figures.
    fn report(&self, samples: &Samples<'a>) -> Result<String> {
        let mut report = String::new();
        let counts = || samples.values().map(Vec::len);
        let (least, most) = (counts().min().unwrap_or_default(), counts().max().unwrap_or_default());
        let count = if least == most { least.to_string() } else { format!("{least} to {most}") };
        writeln!(report, "Median of {count} sample(s).")?;
        for pair in self.pairs() {
            let (table, missed) = self.table(pair, samples)?;
            writeln!(report, "\n{}\n\n{table}", pair.title())?;
            if pair.has_bars() {
                let bars = pair.bars();
                match &missed[..] {
                    [] => writeln!(report, "Every figure is within its bar ({bars}).")?,
                    missed => writeln!(report, "Outside the bars ({bars}): {}.", missed.join("; "))?,
                }
            }
        }
        Ok(report)
    }

    fn pairs(&self) -> Vec<Pair<'a>> {
        let own = self.contenders[0];
        let pair = |contender: Contender<'a>| match contender.other_side() {
            Some(other) => Some(Pair { own: contender, rival: Some(other) }),
            None => (contender != own).then_some(Pair { own, rival: Some(contender) }),
        };
        let pairs: Vec<_> = self.contenders.iter().copied().filter_map(pair).collect();
        if pairs.is_empty() { vec![Pair { own, rival: None }] } else { pairs }
    }

    /// The table, and which of its cells are outside their bar.
    fn table(&self, pair: Pair<'a>, samples: &Samples<'a>) -> Result<(Table, Vec<String>)> {
        let figures: Vec<_> = Figure::of(&self.measures).into_iter().filter(|figure| pair.shows(figure)).collect();
        let decode = self.measures.iter().copied().find(|measure| matches!(measure, Measure::Decode(_)));
        let decode = decode.filter(|_| !pair.takes_turns());
        let mut head = vec!["model".to_owned(), "threads".to_owned()];
        head.extend(figures.iter().map(Figure::title));
        head.extend(decode.map(|decode| format!("share of the read bandwidth, {decode}")));
        let (mut table, mut missed) = (Table::new(head), Vec::new());
        for (index, model) in self.models.iter().enumerate() {
            let weights = weight_bytes_per_token(&GgufFile::open(model)?) as f64;
            for threads in &self.threads {
                let mut row = vec![name(model), threads.to_string()];
                let of = |measure, contender| samples.get(&(index, *threads, measure, contender));
                let value = |figure: &Figure, contender| {
                    Some(median(of(figure.measure(), contender)?.iter().map(|sample| figure.value(sample))))
                };
                for figure in &figures {
                    let own = value(figure, pair.own);
                    let rival = pair.rival.map(|rival| value(figure, rival));
                    row.push(match (own, rival) {
                        (Some(own), None) => format!("{own:.0}"),
                        (Some(own), Some(Some(rival))) => {
                            let ratio = match pair.rival.filter(|_| pair.takes_turns()) {
                                Some(rival) => {
                                    let sides =
                                        [pair.own, rival].map(|side| of(figure.measure(), side).into_iter().flatten());
                                    let [own, rival] = sides;
                                    median(own.zip(rival).map(|(own, rival)| own.value / rival.value))
                                }
                                None => own / rival,
                            };
                            let within = !pair.has_bars() || figure.is_within(ratio, pair.speed_bar());
                            if !within {
                                let title = figure.title();
                                missed.push(format!("{}, {threads} thread(s), {title}: {ratio:.2}x", name(model)));
                            }
                            format!("{own:.0} / {rival:.0} = {ratio:.2}x{}", if within { "" } else { " !" })
                        }
                        _ => "–".to_owned(),
                    });
                }
                row.extend(decode.map(|decode| {
                    let read_rates =
                        of(decode, Contender::Edgeweld).into_iter().flatten().filter_map(|own| own.read_rate);
                    let read = median(read_rates);
                    let share = |contender| {
                        // Our own samples have the bandwidth of their moment.
                        let shares = of(decode, contender)?.iter().map(|s| s.value / s.read_rate.unwrap_or(read));
                        Some(format!("{:.0}%", 100.0 * weights * median(shares)))
                    };
                    let sides = [Some(pair.own), pair.rival].into_iter().flatten();
                    let shares: Vec<_> = sides.map(|side| share(side).unwrap_or_else(|| "–".to_owned())).collect();
                    format!("{} of {:.1} GB/s", shares.join(" / "), read / 1e9)
                }));
                table.row(row);
            }
        }
        Ok((table, missed))
    }
}

/// Two sides of a table; alone if there is no rival.
#[derive(Clone, Copy)]
struct Pair<'a> {
    own: Contender<'a>,
    rival: Option<Contender<'a>>,
}

impl Pair<'_> {
    fn title(self) -> String {
        match self.rival {
            Some(_) if self.takes_turns() => "**With a random rank-16 pack as a side path / without**".to_owned(),
            Some(rival) => format!("**{} / {}**", self.own.name(), rival.name()),
            None => format!("**{}**", self.own.name()),
        }
    }

    /// Whether samples of both sides with the same index are of one turn.
    fn takes_turns(self) -> bool {
        self.rival.is_some() && self.rival == self.own.other_side()
    }

    /// A process in which two take turns has neither one's memory nor load.
    fn shows(self, figure: &Figure) -> bool {
        !self.takes_turns() || matches!(figure, Figure::Speed(_))
    }

    /// Smallest speed ratio that is wanted.
    fn speed_bar(self) -> f64 {
        match self.own {
            Contender::EdgeweldWithPack => 0.95,
            Contender::OnnxWithPack => 0.93,
            _ => 1.0,
        }
    }

    /// ONNX Runtime is compared with the own kernels and with candle to know, not to pass.
    fn has_bars(self) -> bool {
        let compared_only = matches!(self.rival, Some(Contender::Edgeweld | Contender::Candle));
        self.rival.is_some() && !(self.own == Contender::Onnx && compared_only)
    }

    fn bars(self) -> String {
        let speed = format!("speed at least {:.2}x", self.speed_bar());
        if self.takes_turns() {
            speed
        } else {
            format!("{speed}, load at most {LOAD_BAR}x, memory at most {MEMORY_BAR}x")
        }
    }
}

/// Largest ratio of the load times.
const LOAD_BAR: f64 = 2.0;
/// Largest ratio of the peak memories.
const MEMORY_BAR: f64 = 1.1;

/// One column.
#[derive(Clone, Copy)]
enum Figure {
    Load,
    Memory,
    Speed(Measure),
}

impl Figure {
    /// Load and memory first, then the speeds.
    fn of(measures: &[Measure]) -> Vec<Self> {
        let speeds = measures.iter().filter(|measure| **measure != Measure::Load).copied().map(Self::Speed);
        let figures = [Self::Load, Self::Memory].into_iter().chain(speeds);
        figures.filter(|figure| measures.contains(&figure.measure())).collect()
    }

    fn title(&self) -> String {
        match self {
            Self::Load => "load, ms".to_owned(),
            Self::Memory => "peak RSS, MB".to_owned(),
            Self::Speed(Measure::Decode(depth)) => format!("decode at {depth}, tok/s"),
            Self::Speed(Measure::Prefill(tokens)) => format!("prefill {tokens}, tok/s"),
            Self::Speed(other) => other.to_string(),
        }
    }

    /// Whose samples hold it.
    fn measure(&self) -> Measure {
        match self {
            Self::Load => Measure::Load,
            Self::Memory => Measure::Prefill(MEMORY_PROMPT),
            Self::Speed(measure) => *measure,
        }
    }

    fn value(&self, sample: &Sample) -> f64 {
        match self {
            Self::Memory => sample.peak_rss_bytes as f64 / 1e6,
            Self::Load | Self::Speed(_) => sample.value,
        }
    }

    fn is_within(&self, ratio: f64, speed_bar: f64) -> bool {
        match self {
            Self::Load => ratio <= LOAD_BAR,
            Self::Memory => ratio <= MEMORY_BAR,
            Self::Speed(_) => ratio >= speed_bar,
        }
    }
}

/// Bytes of weights that decoding one token reads: all but an embedding table that is not the head too.
fn weight_bytes_per_token(file: &GgufFile) -> usize {
    let tied = file.opt_tensor("output.weight").is_none();
    let read = file.tensors().filter(|tensor| tied || tensor.name() != "token_embd.weight");
    read.map(|tensor| tensor.bytes().len()).sum()
}

fn name(model: &Path) -> String {
    model.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use edgeweld::gguf::GgufWriter;
    use edgeweld::quant::{BlockType, WeightBytes};

    use super::*;

    #[test]
    fn a_tied_embedding_is_read_whole_and_another_is_not() {
        let mut writer = GgufWriter::new();
        let mut add = |name: &str| {
            writer.tensor(name, BlockType::F32, &[2, 4], WeightBytes::Owned([0; 32].into())).unwrap();
            weight_bytes_per_token(&GgufFile::from_bytes(writer.to_bytes()).unwrap())
        };
        assert_eq!(add("token_embd.weight"), 32);
        assert_eq!(add("blk.0.ffn_up.weight"), 64);
        assert_eq!(add("output.weight"), 64);
    }

    fn run<'a>(folder: &Path, contenders: Vec<Contender<'a>>) -> Run<'a> {
        let model = folder.join("m.gguf");
        let mut writer = GgufWriter::new();
        writer.tensor("t", BlockType::F32, &[250], WeightBytes::Owned(vec![0; 1000].into())).unwrap();
        writer.save(&model, &edgeweld::CancelToken::new()).unwrap();
        Run { models: vec![model], threads: vec![2], rounds: 3, contenders, measures: MEASURES.to_vec() }
    }

    #[test]
    fn the_report_compares_medians_and_names_what_misses_its_bar() {
        let folder = tempfile::tempdir().unwrap();
        let rival = Contender::LlamaCpp(Path::new("bin"));
        let run = run(folder.path(), vec![Contender::Edgeweld, rival]);
        let sample = |value| Sample { value, peak_rss_bytes: 100_000_000, read_rate: Some(40_000.0) };
        let mut samples = Samples::new();
        for measure in MEASURES {
            samples.insert((0, 2, measure, Contender::Edgeweld), vec![sample(30.0), sample(1.0), sample(20.0)]);
            samples.insert((0, 2, measure, rival), vec![Sample { read_rate: None, ..sample(10.0) }; 3]);
        }
        samples.get_mut(&(0, 2, Measure::Decode(1500), rival)).unwrap()[0..2].fill(Sample {
            value: 25.0,
            peak_rss_bytes: 1,
            read_rate: None,
        });
        samples.remove(&(0, 2, Measure::Prefill(512), rival));
        let report = run.report(&samples).unwrap();
        assert!(report.starts_with("Median of 3 sample(s)."), "{report}");
        assert!(report.contains("| 20 / 10 = 2.00x "), "{report}");
        assert!(report.contains("| 20 / 25 = 0.80x ! "), "{report}");
        assert!(report.contains("| 100 / 100 = 1.00x "), "{report}");
        assert!(report.contains("| 50% / 25% of 0.0 GB/s"), "{report}");
        assert!(report.contains("| –"), "{report}");
        assert!(report.ends_with("memory at most 1.1x): m, 2 thread(s), decode at 1500, tok/s: 0.80x.\n"), "{report}");
    }

    #[test]
    fn what_takes_turns_is_compared_turn_by_turn() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path(), vec![Contender::EdgeweldWithPack]);
        let mut samples = Samples::new();
        let mut insert = |contender, values: [f64; 3]| {
            let samples_of = values.map(|value| Sample { value, peak_rss_bytes: 1, read_rate: None }).to_vec();
            samples.insert((0, 2, Measure::Decode(30), contender), samples_of);
        };
        insert(Contender::EdgeweldWithPack, [96.0, 49.0, 190.0]);
        insert(Contender::EdgeweldInTurn, [100.0, 50.0, 220.0]);
        let report = run.report(&samples).unwrap();
        assert!(report.contains("| 96 / 100 = 0.96x "), "{report}");
        assert!(!report.contains("RSS") && !report.contains("bandwidth"), "{report}");
        assert!(report.ends_with("Every figure is within its bar (speed at least 0.95x).\n"), "{report}");
    }

    #[test]
    fn samples_of_other_models_and_contenders_are_left_in_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path(), vec![Contender::Edgeweld]);
        let file = folder.path().join("samples.jsonl");
        let sample = Sample { value: 3.0, peak_rss_bytes: 4, read_rate: None };
        for (model, contender) in
            [("m", Contender::Edgeweld), ("n", Contender::Edgeweld), ("m", Contender::EdgeweldWithPack)]
        {
            record::append(&file, &sample.record(model.to_owned(), 2, Measure::Decode(30), contender)).unwrap();
        }
        let samples = run.restore(&file).unwrap();
        assert_eq!(samples.keys().collect::<Vec<_>>(), [&(0, 2, Measure::Decode(30), Contender::Edgeweld)]);
        assert_eq!(samples.values().next().unwrap()[0].peak_rss_bytes, 4);
    }
}
