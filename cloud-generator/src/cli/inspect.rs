use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use edgeweld::lora::{LoraPair, LoraSet, Target};
use edgeweld::pack::{Content, ExpertPool, Manifest, PACK_VERSION, RawPack};
use edgeweld::verify::{Contents, Inspection, inspect};
use edgeweld_cloud::Result;
use ndarray::Axis;

use super::pack_file::PackFile;
use super::picture::{heat_map, shades};

/// Show what a pack or pool file says and holds.
#[derive(Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pack: PackFile,
    /// Print the manifest's JSON and nothing else.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let raw = args.pack.read()?;
    let trust = args.pack.policy(raw.unverified_signature().as_ref())?;
    let found = inspect(&raw, &trust)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found.manifest).expect("it was read from JSON"));
        return Ok(());
    }
    let mut text = String::new();
    describe(&mut text, &raw, &found, args.pack.asks_trust());
    match (&found.contents, &found.manifest.content) {
        (Contents::Dense(lora), _) => norms(&mut text, lora),
        (Contents::Gates(gates), Content::Gates { pool, composition, .. }) => {
            text += &heat_map(gates);
            match args.pack.pool(*pool, &trust, &found.manifest)? {
                Some(pool) => norms(&mut text, &pool.pool().mix(gates, *composition)?),
                None => line(&mut text, "norms", "need the pool (--pool)"),
            }
        }
        (Contents::Pool(pool), _) => experts(&mut text, pool),
        (Contents::Gates(_), _) => unreachable!("gates come from a gates pack"),
    }
    print!("{text}");
    Ok(())
}

fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    // What a file says is shown without what could steer a terminal.
    let value: String =
        value.to_string().chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect();
    let _ = writeln!(text, "{name:<14} {value}");
}

fn describe(text: &mut String, raw: &RawPack, found: &Inspection, trust_asked: bool) {
    let Manifest { content, model, shape, prompt, residual_prompt, payload, generator, quality, labels } =
        &found.manifest;
    line(text, "file", format!("{}, format version {PACK_VERSION}, {} bytes", content.name(), raw.size_bytes()));
    line(text, "digest", raw.digest());
    let signature = match (&found.signer, trust_asked) {
        (None, _) => "none: devices refuse this file by default".to_owned(),
        (Some(key), true) => format!("valid, by {key}, which is trusted"),
        (Some(key), false) => format!("valid, by {key}; --trust says whether that key is trusted"),
    };
    line(text, "signature", signature);
    line(text, "edge model", format!("{} {}, {}", model.architecture, model.quantization, model.base));
    line(text, "tokenizer", model.tokenizer);
    line(text, "chat template", model.template.map_or("none".to_owned(), |digest| digest.to_string()));
    let targets: Vec<&str> = shape.targets.iter().map(|target| target.name()).collect();
    line(
        text,
        "LoRA",
        format!(
            "{} layers of {} and {}, rank {}, alpha {}, on {}",
            shape.layer_count,
            shape.hidden_size,
            shape.ffn_size,
            shape.rank,
            shape.alpha,
            targets.join(", ")
        ),
    );
    match content {
        Content::Dense { composition: Some(composition) } => line(text, "composition", format!("{composition:?}")),
        Content::Dense { composition: None } => {}
        Content::Gates { composition, expert_count, pool } => {
            line(text, "composition", format!("{composition:?} of {expert_count} experts"));
            line(text, "pool", pool);
        }
        Content::Pool { expert_count } => line(text, "experts", expert_count),
    }
    let (packed, unpacked) = (payload.size_bytes, payload.tensors_size_bytes);
    line(text, "payload", format!("{packed} bytes, {unpacked} unpacked"));
    if let Some(prompt) = prompt {
        line(text, "prompt", format!("{} tokens, {}", prompt.token_count, prompt.digest));
    }
    if let Some(residual) = residual_prompt {
        line(text, "stays", format!("{} tokens: {}", residual.token_count, residual.text));
    }
    line(text, "made by", format!("{} {}", generator.name, generator.version));
    let entries = |text: &mut String, map: &BTreeMap<String, String>| {
        for (name, value) in map {
            line(text, "", format!("{name} = {value}"));
        }
    };
    entries(text, &generator.settings);
    if !labels.is_empty() {
        line(text, "labels", "");
        entries(text, labels);
    }
    for item in quality {
        let (metric, set, count) = (&item.metric, &item.set, item.item_count);
        let (base, prompted, own) = (item.base, item.prompted, item.specialized);
        let values = format!("base {base:.4}, prompted {prompted:.4}, specialised {own:.4}");
        line(text, "quality", format!("{metric}: {values} ({set}, {count} items)"));
    }
}

// ‖scale · b·a‖ per target and layer.
fn norms(text: &mut String, lora: &LoraSet) {
    let _ = writeln!(text, "norm of the deltas: one row per target, one column per layer, darker is more");
    let norm = |pair: &LoraPair| f64::from(lora.scale) * product_norm(pair);
    let layers = lora.layers.iter();
    let rows: Vec<(Target, Vec<f64>)> = Target::ALL
        .into_iter()
        .map(|target| (target, layers.clone().filter_map(|layer| layer.pair(target)).map(norm).collect()))
        .filter(|(_, norms): &(_, Vec<f64>)| !norms.is_empty())
        .collect();
    let max = rows.iter().flat_map(|(_, norms)| norms).copied().fold(0.0, f64::max);
    for (target, norms) in &rows {
        let total = norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt();
        let smallest = norms.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = norms.iter().copied().fold(0.0, f64::max);
        let row = shades(norms.iter().map(|norm| (norm / max) as f32));
        let _ = writeln!(text, "{:>10} |{row}| {total:.4} in all, {smallest:.4} to {largest:.4}", target.name());
    }
}

// ‖b·a‖² is the sum over (bᵀb) ∘ (a·aᵀ), which is [rank, rank].
fn product_norm(pair: &LoraPair) -> f64 {
    let (a, b) = (pair.a.mapv(f64::from), pair.b.mapv(f64::from));
    (b.t().dot(&b) * a.dot(&a.t())).sum().max(0.0).sqrt()
}

fn experts(text: &mut String, pool: &ExpertPool) {
    let _ = writeln!(text, "norm of the experts' deltas, one column per expert:");
    for target in pool.targets() {
        let Some(experts) = pool.pair(target) else { continue };
        let norms = experts
            .a
            .axis_iter(Axis(0))
            .zip(experts.b.axis_iter(Axis(0)))
            .map(|(a, b)| f64::from(pool.scale()) * product_norm(&LoraPair { a: a.to_owned(), b: b.to_owned() }));
        let norms: Vec<String> = norms.map(|norm| format!("{norm:.3}")).collect();
        let _ = writeln!(text, "{:>10}  {}", target.name(), norms.join(" "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_of_a_product_needs_no_product() {
        let pair = LoraPair {
            a: ndarray::array![[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]],
            b: ndarray::array![[2.0, 1.0], [0.0, -1.0], [1.0, 1.0], [4.0, 0.25]],
        };
        let direct = pair.b.dot(&pair.a).iter().map(|value| f64::from(value * value)).sum::<f64>().sqrt();
        assert!((product_norm(&pair) - direct).abs() < 1e-6);
    }

    #[test]
    fn text_of_a_file_cannot_steer_the_terminal() {
        let mut text = String::new();
        line(&mut text, "labels", "a\u{1b}[2Jb\r\nc");
        assert_eq!(text, "labels         a\u{fffd}[2Jb\u{fffd}\u{fffd}c\n");
    }
}
