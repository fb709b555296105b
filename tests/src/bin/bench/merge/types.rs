use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use edgeweld::CancelToken;
use edgeweld::gguf::{GgufFile, GgufWriter};
use edgeweld::lora::Target;
use edgeweld::merge::{MergeMode, MergeReport, PROBE_TEXTS, Rounding, merge_unverified};
use edgeweld::model::{Cpu, CpuOptions, Decoder};
use edgeweld::quant::BlockType;
use edgeweld::tokenizer::{EncodeOptions, Tokenizer};
use edgeweld_tests::Table;

use super::{Options, deltas, name, percent, unchecked};
use crate::variants::convert;

/// The ways in that are compared.
const METHODS: [(&str, MergeMode, Rounding); 4] = [
    ("nearest (naive)", MergeMode::Merge, Rounding::Nearest),
    ("stochastic", MergeMode::Merge, Rounding::Stochastic),
    ("amplified (ours)", MergeMode::Merge, Rounding::Amplified),
    ("promoted to Q8_0", MergeMode::Promote, Rounding::Amplified),
];

pub(super) fn run(options: &Options, model: &Path) -> Result<()> {
    let shipped = GgufFile::open(model)?;
    let tokenizer = Tokenizer::from_gguf(shipped.metadata())?;
    let plain = EncodeOptions { add_special: true, parse_special: false };
    let probes =
        PROBE_TEXTS.iter().map(|text| tokenizer.encode(text, plain)).collect::<edgeweld::Result<Vec<Vec<u32>>>>()?;
    let backend = Arc::new(Cpu::new(&CpuOptions { threads: Some(options.threads), ..CpuOptions::default() })?);
    let mut head = vec!["block type".to_owned(), "method".to_owned()];
    head.extend(options.norms.iter().map(|norm| format!("{}: gain, noise, agreement", percent(*norm))));
    let mut table = Table::new(head);
    let wanted = |block_type: &BlockType| {
        let is_weights = !matches!(block_type, BlockType::Q8_1 | BlockType::Q8_K);
        let named = |name: &String| name.eq_ignore_ascii_case(block_type.name());
        is_weights && (options.types.is_empty() || options.types.iter().any(named))
    };
    for block_type in BlockType::ALL.into_iter().filter(wanted) {
        let (file, targets) = with_ffn(&shipped, block_type)?;
        let cancel = CancelToken::new();
        let base = Arc::new(Decoder::load(&file, backend.clone(), &cancel, &mut |_, _| ())?);
        for (method, mode, rounding) in METHODS {
            let label = match targets.len() {
                3 => block_type.to_string(),
                _ => format!("{block_type} (down only)"),
            };
            let mut row = vec![label, method.to_owned()];
            for norm in &options.norms {
                let lora = Arc::new(deltas::scaled(&file, &base.config, options.rank, *norm, &targets)?);
                let options = unchecked(mode, rounding, options.threads);
                match merge_unverified(&base, &file, &lora, &probes, &options, &cancel, &|_, _, _| ()) {
                    Ok((_, report)) => row.push(cell(&report)),
                    // Nothing to promote.
                    Err(edgeweld::Error::MergeRefused { .. }) => row.push("–".to_owned()),
                    Err(error) => return Err(error.into()),
                }
            }
            eprintln!("{}", row.join("  "));
            table.row(row);
        }
    }
    println!(
        "\n**{}**, rank {}: mean gain and noise of all tensors, share of probe tokens whose likeliest next token is the side path's\n",
        name(model),
        options.rank
    );
    println!("{table}");
    Ok(())
}

fn cell(report: &MergeReport) -> String {
    let Some(attempt) = report.merged() else { return "–".to_owned() };
    let count = attempt.tensors.len() as f64;
    let gain = attempt.tensors.iter().map(|tensor| tensor.gain).sum::<f64>() / count;
    let noise = attempt.tensors.iter().map(|tensor| tensor.noise).sum::<f64>() / count;
    let worst = attempt.tensors.iter().map(|tensor| (tensor.gain - 1.0).abs()).fold(0.0, f64::max);
    let agreement = attempt.probe.map_or(f64::NAN, |probe| probe.agreement);
    format!("{gain:.2} (±{worst:.2}), {noise:.2}, {:.1}%", 100.0 * agreement)
}

/// The model with its FFN weights in `block_type`, and the targets whose rows are whole blocks of it.
fn with_ffn(shipped: &GgufFile, block_type: BlockType) -> Result<(GgufFile, Vec<Target>)> {
    let fits = |target: Target| {
        let name = deltas::tensor_name(0, target);
        shipped.opt_tensor(&name).is_some_and(|tensor| block_type.row_size_bytes(tensor.shape()[1] as usize).is_some())
    };
    let targets: Vec<Target> = Target::ALL.into_iter().filter(|target| fits(*target)).collect();
    let suffixes: Vec<String> =
        targets.iter().map(|target| deltas::tensor_name(0, *target).trim_start_matches("blk.0").to_owned()).collect();
    let mut writer = GgufWriter::new();
    writer.copy_metadata(shipped, &[])?;
    for tensor in shipped.tensors() {
        let changes = suffixes.iter().any(|suffix| tensor.name().ends_with(suffix.as_str()));
        let (block_type, bytes) = match changes && tensor.block_type() != block_type {
            true => (block_type, convert(tensor, block_type)),
            false => (tensor.block_type(), tensor.weight_bytes()),
        };
        writer.tensor(tensor.name(), block_type, tensor.shape(), bytes)?;
    }
    Ok((GgufFile::from_bytes(writer.to_bytes())?, targets))
}
