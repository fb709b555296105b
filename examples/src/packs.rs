//! A pack from anywhere into a model, with progress bars and its report.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use edgeweld::CancelToken;
use edgeweld::download::{DownloadProgress, PackStore, Source};
use edgeweld::generate::Engine;
use edgeweld::merge::{MergeMode, MergeOptions, MergeReport, MergeStage};
use edgeweld::pack::{Content, PublicKey};
use edgeweld::verify::VerifiedPack;
use indicatif::{ProgressBar, ProgressStyle};

/// Reads a key file as `cloud-generator keygen` writes it: one `ed25519:…` per line.
///
/// # Errors
/// If the file cannot be read or a line is no key.
pub fn trusted_keys(path: &Path) -> Result<Vec<PublicKey>, Box<dyn Error>> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::parse).collect::<Result<_, edgeweld::Error>>()?)
}

/// A bar that counts bytes.
pub fn bytes_bar(title: &'static str) -> ProgressBar {
    let style = "  {msg:<10} {bar:28} {bytes:>11} of {total_bytes:<11} {bytes_per_sec}";
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(style).expect("a valid template"));
    bar.with_message(title)
}

/// A bar that counts steps.
pub fn steps_bar(title: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("  {msg:<10} {bar:28} {pos} of {len}").expect("a valid template");
    ProgressBar::new(total).with_style(style).with_message(title)
}

/// Something of unknown length is going on.
pub fn spinner(message: String) -> ProgressBar {
    let style = ProgressStyle::with_template("  {spinner} {msg} ({elapsed})").expect("a valid template");
    let bar = ProgressBar::new_spinner().with_style(style).with_message(message);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Downloads (or reads) a pack, and its pool if it needs one, and verifies both for the model.
///
/// # Errors
/// As [`PackStore::load`].
pub fn load(
    store: &PackStore,
    source: &Source,
    engine: &Engine,
    cancel: &CancelToken,
) -> edgeweld::Result<VerifiedPack> {
    let bar = bytes_bar("download");
    let mut show = |progress: DownloadProgress| {
        if let Some(total) = progress.bytes_total {
            bar.set_length(total);
        }
        bar.set_position(progress.bytes_done);
    };
    let pack = store.load(source, None, engine.identity(), cancel, &mut show);
    bar.finish_and_clear();
    pack
}

/// What a verified pack says about itself, for people.
pub fn describe(pack: &VerifiedPack) -> String {
    let manifest = pack.manifest();
    let mut text = String::new();
    let signer = pack.signer().map_or("nobody (unsigned)".to_owned(), ToString::to_string);
    let content = match manifest.content {
        Content::Gates { expert_count, .. } => format!("gates over {expert_count} experts"),
        _ => manifest.content.name().to_owned(),
    };
    let payload = manifest.payload.size_bytes;
    let _ = writeln!(text, "  pack       {}", pack.digest());
    let _ = writeln!(text, "  content    {content}, payload of {payload} bytes, rank {}", manifest.shape.rank);
    let _ = writeln!(text, "  made by    {} {}", manifest.generator.name, manifest.generator.version);
    let _ = writeln!(text, "  signed by  {signer}");
    if let Some(prompt) = &manifest.prompt {
        let _ = writeln!(text, "  stands for a system prompt of {} tokens", prompt.token_count);
    }
    for measured in &manifest.quality {
        let _ = writeln!(
            text,
            "  quality    {} on {} ({} items): base {:.3}, prompted {:.3}, with this pack {:.3}",
            measured.metric, measured.set, measured.item_count, measured.base, measured.prompted, measured.specialized
        );
    }
    text
}

/// Merges with a progress bar.
///
/// # Errors
/// As [`Engine::merge`].
pub fn merge(
    engine: &Engine,
    pack: &VerifiedPack,
    options: &MergeOptions,
    cancel: &CancelToken,
) -> edgeweld::Result<MergeReport> {
    let bar = bytes_bar("merge");
    let proof = ProgressStyle::with_template("  {msg:<10} {bar:28} {pos} of {len} models").expect("a valid template");
    let report = engine.merge(pack, options, cancel, &|stage, done, total| {
        if stage == MergeStage::Proving {
            bar.set_style(proof.clone());
            bar.set_message("proof");
        }
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    report
}

/// A merge report, for people.
pub fn describe_report(report: &MergeReport) -> String {
    let mut text = String::new();
    for attempt in &report.attempts {
        let name = if attempt.mode == MergeMode::Promote { "promotion" } else { "merge" };
        let outcome = attempt.refusal.as_ref().map_or("passed".to_owned(), |refusal| format!("refused: {refusal}"));
        let _ = writeln!(text, "  {name:<10} {outcome}");
        if !attempt.tensors.is_empty() {
            let gains = attempt.tensors.iter().map(|tensor| tensor.gain);
            let (low, high) = gains.fold((f64::MAX, f64::MIN), |(low, high), gain| (low.min(gain), high.max(gain)));
            let count = attempt.tensors.len() as f64;
            let mean = |value: fn(&edgeweld::merge::TensorReport) -> f64| {
                attempt.tensors.iter().map(value).sum::<f64>() / count
            };
            let _ = writeln!(
                text,
                "             {count} tensors, {:.1} MB in {:.0} ms; deltas of {:.2}% of their weights; gain {low:.3}–{high:.3}, noise {:.2}",
                attempt.size_bytes as f64 / 1e6,
                attempt.merge_time.as_secs_f64() * 1e3,
                100.0 * mean(|tensor| tensor.relative_norm),
                mean(|tensor| tensor.noise),
            );
        }
        if let Some(probe) = &attempt.probe {
            let _ = writeln!(
                text,
                "             proof on {} tokens in {:.1} s: {:.1}% of the likeliest tokens as the side path's (the base: {:.1}%), perplexity {:+.2}%",
                probe.token_count,
                attempt.proof_time.as_secs_f64(),
                100.0 * probe.agreement,
                100.0 * probe.base_agreement,
                100.0 * (probe.perplexity_ratio - 1.0),
            );
        }
    }
    let _ = writeln!(
        text,
        "  chosen     {}; {:.1} MB beside the base, {:.0} ms in all",
        report.reason,
        report.extra_size_bytes as f64 / 1e6,
        report.elapsed.as_secs_f64() * 1e3,
    );
    text
}
