use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Device;
use clap::{Args, ValueEnum};
use edgeweld::pack::{self, PackInfo, Precision, PromptInfo, SecretKey};
use edgeweld::tokenizer::EncodeOptions;
use edgeweld::{CancelToken, Digest};
use edgeweld_cloud::generator::{Generator, LanguageModel};
use edgeweld_cloud::{Error, Result};

/// What the pack carries.
#[derive(Clone, Copy, ValueEnum)]
enum Payload {
    /// The LoRA pairs.
    Dense,
    /// Only the gates; the device needs the pool file too.
    Gates,
}

/// Make the pack of each prompt in one forward pass.
#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// Generator folder.
    #[arg(long)]
    generator: PathBuf,
    /// GGUF file of the cloud LM.
    #[arg(long)]
    cloud: PathBuf,
    /// GGUF file of the edge model.
    #[arg(long)]
    edge: PathBuf,
    /// Text file of the system prompt; repeat to make several packs in one pass.
    #[arg(long, required = true)]
    prompt_file: Vec<PathBuf>,
    /// Secret key file; without one the pack is unsigned, and devices refuse it by default.
    #[arg(long)]
    sign: Option<PathBuf>,
    /// What the pack carries.
    #[arg(long, value_enum, default_value = "dense")]
    payload: Payload,
    /// Where the pool file goes; needed with `--payload gates`.
    #[arg(long)]
    pool_out: Option<PathBuf>,
    /// Pack file, one per prompt file in the same order.
    #[arg(short, long = "output", required = true)]
    output: Vec<PathBuf>,
}

pub(crate) fn run(args: GenerateArgs, cancel: &CancelToken) -> Result<()> {
    if args.output.len() != args.prompt_file.len() {
        let reason = format!("{} files for {} prompts", args.output.len(), args.prompt_file.len());
        return Err(Error::InvalidOption { option: "--output", reason });
    }
    let signer = args.sign.as_deref().map(read_secret).transpose()?;
    let start = Instant::now();
    let device = Device::Cpu;
    let mut cloud = LanguageModel::load(&args.cloud, &device)?;
    let edge = LanguageModel::load(&args.edge, &device)?;
    let (generator, info) = Generator::load(&args.generator, &cloud, &edge, &device)?;
    generator.attach_cloud_lora(&mut cloud.decoder);
    let load_time = start.elapsed();

    let mut prompts = Vec::new();
    let mut ids = Vec::new();
    for path in &args.prompt_file {
        let prompt = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let tokens = cloud.encode(&prompt)?;
        let limit = generator.config.prompt_tokens_max;
        if tokens.len() > limit || tokens.is_empty() {
            return Err(Error::PromptTooLong { actual: tokens.len(), limit });
        }
        ids.push(tokens);
        prompts.push(prompt);
    }
    let start = Instant::now();
    let gates = generator.gates(&generator.meta(&cloud, &ids, cancel)?)?;
    let pass_time = start.elapsed();
    println!("loaded in {load_time:.2?}; {} prompts in one pass of {pass_time:.2?}", prompts.len());

    let pool = generator.pack_pool()?;
    let mut pack_info = PackInfo {
        model: edge.identity.clone(),
        prompt: None,
        residual_prompt: None,
        generator: pack::GeneratorInfo {
            name: info.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            settings: BTreeMap::from([
                ("cloud".to_owned(), info.cloud.clone()),
                ("top_k".to_owned(), generator.config.top_k.to_string()),
                ("trained_steps".to_owned(), info.step_count.to_string()),
            ]),
        },
        quality: Vec::new(),
        labels: BTreeMap::new(),
    };
    let layer_count = edge.decoder.config.layer_count();
    let pool_digest = match (args.payload, &args.pool_out) {
        (Payload::Dense, _) => None,
        (Payload::Gates, None) => {
            let reason = "a gates pack needs the pool file: say where to write it".into();
            return Err(Error::InvalidOption { option: "--pool-out", reason });
        }
        (Payload::Gates, Some(path)) => {
            let bytes = pack::write_pool(&pool, layer_count, Precision::F16, pack_info.clone(), signer.as_ref())?;
            write(path, &bytes)?;
            println!("{}: pool of {} bytes", path.display(), bytes.len());
            Some(Digest::of(&bytes))
        }
    };
    let composition = generator.config.composition.into();
    for (index, (prompt, path)) in prompts.iter().zip(&args.output).enumerate() {
        let gates = gates.of_prompt(index)?;
        let plain = EncodeOptions { add_special: false, parse_special: false };
        let token_count = edge.tokenizer.encode(prompt, plain)?.len() as u32;
        pack_info.prompt = Some(PromptInfo { digest: Digest::of(prompt.as_bytes()), token_count });
        let bytes = match pool_digest {
            None => {
                let lora = pool.mix(&gates, composition)?;
                pack::write_dense(&lora, Some(composition), Precision::F16, pack_info.clone(), signer.as_ref())?
            }
            Some(digest) => pack::write_gates(&gates, composition, &pool, digest, pack_info.clone(), signer.as_ref())?,
        };
        write(path, &bytes)?;
        println!("{}: {} bytes for a prompt of {token_count} tokens", path.display(), bytes.len());
        print_gates(&gates);
    }
    Ok(())
}

// One character per layer and expert, darker for a larger gate.
fn print_gates(gates: &pack::Gates) {
    const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];
    println!("router: one row per expert, one column per layer");
    for expert in gates.weights.columns() {
        let row: String = expert.iter().map(|gate| SHADES[(gate * 4.0).ceil().clamp(0.0, 4.0) as usize]).collect();
        println!("  |{row}|");
    }
}

pub(super) fn read_secret(path: &Path) -> Result<SecretKey> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    Ok(text.trim().parse()?)
}

// A sibling temporary file, synced and renamed: a kill leaves the old file or the new one.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(Error::io(folder))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(Error::io(path))?;
    file.persist(path).map_err(|error| Error::io(path)(error.error))?;
    Ok(())
}
