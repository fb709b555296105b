//! The prompts that are shown, with their questions and packs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use edgeweld::Digest;
use edgeweld::generate::{Engine, LoadOptions};
use edgeweld::lora::LoraSet;
use edgeweld::pack::{GeneratorInfo, PackInfo, Precision, PromptInfo, RawPack, SecretKey, write_dense};
use edgeweld::tokenizer::EncodeOptions;
use edgeweld::verify::{TrustPolicy, verify};
use edgeweld_tests::{models, random_lora};

/// One prompt on one model.
pub(crate) struct Case {
    pub(crate) title: String,
    pub(crate) model: PathBuf,
    /// The model's name in requests.
    pub(crate) edge: &'static str,
    pub(crate) prompt: String,
    pub(crate) questions: Vec<String>,
    pub(crate) packs: Vec<PackSource>,
    /// Whether the answers say something: a stand-in's do not.
    pub(crate) shows_answers: bool,
}

/// Where a pack comes from.
pub(crate) enum PackSource {
    /// The generator's forward pass, on request.
    Generated,
    /// A file that the server publishes.
    File { path: PathBuf, kind: FileKind },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// Made before by `cloud-generator refine`.
    Refined,
    /// Random numbers of a trained pack's size: costs the same, has learnt nothing.
    StandIn,
}

impl PackSource {
    pub(crate) fn title(&self) -> &'static str {
        match self {
            Self::Generated => "pack made now, by one forward pass of the generator",
            Self::File { kind: FileKind::Refined, .. } => {
                "pack made before by `cloud-generator refine`, whose teacher saw the prompt's examples as turns: compare it with that arm"
            }
            Self::File { kind: FileKind::StandIn, .. } => {
                "stand-in pack of random numbers: it costs what a trained one costs, and has learnt nothing"
            }
        }
    }

    pub(crate) fn short_title(&self) -> &'static str {
        match self {
            Self::Generated => "generated",
            Self::File { kind: FileKind::Refined, .. } => "refined",
            Self::File { kind: FileKind::StandIn, .. } => "stand-in",
        }
    }

    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::Generated => None,
            Self::File { path, .. } => Some(path),
        }
    }
}

/// Rank and largest value of a stand-in's pairs: deltas of about half a percent of the weights, as trained ones have.
const STAND_IN: (usize, f32) = (16, 0.02);

/// A prompt that the generator can read, a long one, and the long one on the second model.
pub(crate) fn all(question_count: usize) -> Result<Vec<Case>> {
    let folder = super::workspace().join("examples/prompts");
    let case = |edge: &'static str, name: &str, what: &str, packs: Vec<PackSource>| -> Result<Case> {
        let prompt = fs::read_to_string(folder.join(format!("{name}.txt"))).context(format!("{name}.txt"))?;
        let queries = fs::read_to_string(folder.join(format!("{name}.queries.jsonl")))
            .context(format!("{name}.queries.jsonl"))?;
        Ok(Case {
            title: format!("{edge}: {what} (examples/prompts/{name}.txt, {} words)", prompt.split_whitespace().count()),
            model: models::find(edge, &[&models::folder()])?,
            edge,
            prompt,
            questions: test_queries(&queries, question_count)?,
            shows_answers: packs.iter().any(|pack| !matches!(pack, PackSource::File { kind: FileKind::StandIn, .. })),
            packs,
        })
    };
    // A refined pack beside its prompt, where there is one.
    let asset = super::workspace().join("examples/packs/tickets.pack");
    let long = || match asset.is_file() {
        true => PackSource::File { path: asset.clone(), kind: FileKind::Refined },
        false => stand_in(),
    };
    let smollm2 = super::GENERATOR_EDGE;
    Ok(vec![
        case(smollm2, "reviews", "a short classification prompt", vec![PackSource::Generated])?,
        case(smollm2, "tickets", "a long classification prompt with rules and examples", vec![long()])?,
        case("gemma3-270m", "tickets", "the same long prompt, for which no generator exists yet", vec![stand_in()])?,
    ])
}

fn stand_in() -> PackSource {
    PackSource::File { path: PathBuf::new(), kind: FileKind::StandIn }
}

/// The held-out queries.
fn test_queries(lines: &str, count: usize) -> Result<Vec<String>> {
    let mut queries = Vec::new();
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        let query: serde_json::Value = serde_json::from_str(line)?;
        if query["split"] == "test" {
            queries.push(query["query"].as_str().context("a query is a string")?.to_owned());
        }
    }
    queries.truncate(count);
    Ok(queries)
}

impl Case {
    /// Whether a pack was refined, so to what a teacher with the prompt's examples as turns answers.
    pub(crate) fn is_refined(&self) -> bool {
        self.packs.iter().any(|pack| matches!(pack, PackSource::File { kind: FileKind::Refined, .. }))
    }

    /// Writes the packs that are published as files, signed with the demo's key, into `folder`.
    pub(crate) fn make_files(&mut self, folder: &Path, secret: &SecretKey) -> Result<()> {
        fs::create_dir_all(folder)?;
        for (index, source) in self.packs.iter_mut().enumerate() {
            let PackSource::File { path, kind } = source else { continue };
            let engine = Engine::load(&self.model, &LoadOptions::default())?;
            let (lora, info) = match kind {
                FileKind::StandIn => stand_in_of(&engine, &self.prompt)?,
                FileKind::Refined => refined_of(&engine, path)?,
            };
            let bytes = write_dense(&lora, None, Precision::F16, info, Some(secret))?;
            *path = folder.join(format!("{index}.pack"));
            fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

fn stand_in_of(engine: &Engine, prompt: &str) -> Result<(LoraSet, PackInfo)> {
    let plain = EncodeOptions { add_special: false, parse_special: false };
    let token_count = engine.tokenizer().encode(prompt, plain)?.len() as u32;
    let info = PackInfo {
        model: engine.identity().clone(),
        prompt: Some(PromptInfo { digest: Digest::of(prompt.as_bytes()), token_count }),
        residual_prompt: None,
        generator: GeneratorInfo {
            name: "demo's stand-in (random numbers)".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: BTreeMap::new(),
        },
        quality: Vec::new(),
        labels: BTreeMap::new(),
    };
    let (rank, limit) = STAND_IN;
    Ok((random_lora(engine.config().expect("a GGUF model"), rank, limit, 0), info))
}

/// The repository's own asset, whoever signed it: the demo signs it anew.
fn refined_of(engine: &Engine, path: &Path) -> Result<(LoraSet, PackInfo)> {
    let raw = RawPack::read(fs::read(path)?)?;
    let manifest = raw.unverified_manifest()?;
    let mut trust = TrustPolicy { danger_accept_unsigned: true, ..TrustPolicy::default() };
    if let Some(claim) = raw.unverified_signature() {
        trust.trusted.push(edgeweld::pack::PublicKey::from_bytes(&claim.key)?);
    }
    let pack = verify(&raw, &trust, engine.identity(), None).with_context(|| path.display().to_string())?;
    let info = PackInfo {
        model: manifest.model,
        prompt: manifest.prompt,
        residual_prompt: manifest.residual_prompt,
        generator: manifest.generator,
        quality: manifest.quality,
        labels: manifest.labels,
    };
    Ok((pack.lora().clone(), info))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_held_out_queries_are_asked() {
        let lines = "{\"query\": \"a\", \"split\": \"train\"}\n\n{\"query\": \"b\", \"split\": \"test\"}\n{\"query\": \"c\", \"split\": \"test\"}\n";
        assert_eq!(test_queries(lines, 1).unwrap(), ["b"]);
        assert_eq!(test_queries(lines, 9).unwrap(), ["b", "c"]);
    }
}
