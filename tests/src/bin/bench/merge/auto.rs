use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use edgeweld::CancelToken;
use edgeweld::gguf::GgufFile;
use edgeweld::lora::Target;
use edgeweld::merge::{MergeMode, MergeOptions, PROBE_TEXTS, Rounding, merge_unverified};
use edgeweld::model::{Cpu, CpuOptions, Decoder};
use edgeweld::tokenizer::{EncodeOptions, Tokenizer};
use edgeweld_tests::{Table, repository_text};

use super::{Options, deltas, name, percent, unchecked};

/// Tokens of one text of the comparison.
const TEXT_TOKENS: usize = 500;

pub(super) fn run(options: &Options, model: &Path) -> Result<()> {
    let file = GgufFile::open(model)?;
    let tokenizer = Tokenizer::from_gguf(file.metadata())?;
    let plain = EncodeOptions { add_special: true, parse_special: false };
    let probes: Vec<Vec<u32>> =
        PROBE_TEXTS.iter().map(|text| tokenizer.encode(text, plain)).collect::<edgeweld::Result<_>>()?;
    let ids = tokenizer.encode(&repository_text()?, plain)?;
    ensure!(ids.len() >= options.tokens, "the repository's text has {} tokens", ids.len());
    let texts: Vec<Vec<u32>> = ids[..options.tokens].chunks(TEXT_TOKENS).map(<[u32]>::to_vec).collect();
    let backend = Arc::new(Cpu::new(&CpuOptions { threads: Some(options.threads), ..CpuOptions::default() })?);
    let cancel = CancelToken::new();
    let base = Arc::new(Decoder::load(&file, backend, &cancel, &mut |_, _| ())?);
    let mut table = Table::new([
        "delta",
        "auto chose",
        "proof, s",
        "mode",
        "top-1 as the side path",
        "perplexity, of the side path's",
        "KL, nats",
        "base as the side path",
    ]);
    for norm in &options.norms {
        let lora = Arc::new(deltas::scaled(&file, &base.config, options.rank, *norm, &Target::ALL)?);
        let auto = MergeOptions { threads: options.threads, ..MergeOptions::default() };
        let (_, report) = merge_unverified(&base, &file, &lora, &probes, &auto, &cancel, &|_, _, _| ())?;
        eprintln!("{}: {}", percent(*norm), report.reason);
        let proof: f64 = report.attempts.iter().map(|attempt| attempt.proof_time.as_secs_f64()).sum();
        for mode in [MergeMode::Merge, MergeMode::Promote] {
            let options = unchecked(mode, Rounding::Amplified, options.threads);
            let (_, long) = merge_unverified(&base, &file, &lora, &texts, &options, &cancel, &|_, _, _| ())?;
            let Some(probe) = long.merged().and_then(|attempt| attempt.probe) else { continue };
            table.row([
                percent(*norm),
                report.chosen.to_string(),
                format!("{proof:.1}"),
                mode.to_string(),
                format!("{:.2}%", 100.0 * probe.agreement),
                format!("{:.4}", probe.perplexity_ratio),
                format!("{:.4}", probe.divergence),
                format!("{:.2}%", 100.0 * probe.base_agreement),
            ]);
        }
    }
    println!(
        "\n**{}**, rank {}, {} tokens of this repository's text\n\n{table}",
        name(model),
        options.rank,
        options.tokens
    );
    Ok(())
}
