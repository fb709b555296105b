//! The reference figures: one JSON file holds the cases of one model, or token cases of several.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

/// One file of reference figures.
pub(crate) enum Golden {
    Model(ModelCases),
    Tokens(TokenCases),
}

/// Logits, likelihoods and greedy text of one model.
#[derive(Deserialize)]
pub(crate) struct ModelCases {
    /// The model's name or file name.
    pub(crate) model: String,
    /// Where the weights come from; a name that ends in `.gguf` is the model file's.
    pub(crate) weights: Option<String>,
    pub(crate) cases: Vec<ModelCase>,
}

#[derive(Deserialize)]
pub(crate) struct ModelCase {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    /// Nats per token of `ids[1..]`.
    pub(crate) mean_nll: f64,
    /// The likeliest tokens after `ids`, the best first.
    pub(crate) top_ids: Vec<u32>,
    pub(crate) top_logprobs: Vec<f32>,
    pub(crate) greedy_ids: Vec<u32>,
    /// Logit gap between the two best tokens at each step.
    pub(crate) greedy_margin: Vec<f32>,
}

/// Token ids of strings, by model; control tokens written in the text are parsed, no BOS or EOS is added.
#[derive(Deserialize)]
pub(crate) struct TokenCases {
    pub(crate) models: BTreeMap<String, Vec<TokenCase>>,
}

#[derive(Deserialize)]
pub(crate) struct TokenCase {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
}

/// Reads every JSON file directly in `folder`, by name.
pub(crate) fn read_folder(folder: &Path) -> Result<Vec<(PathBuf, Golden)>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    ensure!(!paths.is_empty(), "{} has no JSON file", folder.display());
    paths
        .into_iter()
        .map(|path| {
            let golden = fs::read(&path).map_err(Into::into).and_then(|bytes| read(&bytes));
            let golden = golden.with_context(|| path.display().to_string())?;
            Ok((path, golden))
        })
        .collect()
}

fn read(bytes: &[u8]) -> Result<Golden> {
    let json: Value = serde_json::from_slice(bytes)?;
    if json.get("cases").is_some() {
        let golden = ModelCases::deserialize(&json)?;
        for (index, case) in golden.cases.iter().enumerate() {
            case.check().with_context(|| format!("case {index}"))?;
        }
        return Ok(Golden::Model(golden));
    }
    if json.get("models").is_some() {
        return Ok(Golden::Tokens(TokenCases::deserialize(&json)?));
    }
    bail!("has neither \"cases\" (a model's) nor \"models\" (token cases)")
}

impl ModelCase {
    fn check(&self) -> Result<()> {
        ensure!(self.ids.len() >= 2, "needs at least two ids");
        ensure!(self.mean_nll.is_finite() && self.mean_nll > 0.0, "mean_nll is {}", self.mean_nll);
        ensure!(self.top_ids.len() >= 2, "needs at least two top_ids");
        let (ids, logprobs) = (self.top_ids.len(), self.top_logprobs.len());
        ensure!(ids == logprobs, "{ids} top_ids and {logprobs} top_logprobs");
        let (ids, margins) = (self.greedy_ids.len(), self.greedy_margin.len());
        ensure!(ids == margins, "{ids} greedy_ids and {margins} greedy margins");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        match read(json.as_bytes()) {
            Ok(_) => panic!("accepted {json}"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn malformed_files_are_refused_with_what_is_wrong() {
        assert!(refused("{\"model\": ").contains("EOF"));
        assert!(refused("[]").contains("neither \"cases\""));
        assert!(refused("{\"cases\": []}").contains("missing field `model`"));
        let case = |top_ids: &str| {
            format!(
                "{{\"model\": \"m\", \"cases\": [{{\"text\": \"t\", \"ids\": [1, 2], \"mean_nll\": 1.5, \
                 \"top_ids\": {top_ids}, \"top_logprobs\": [-0.1, -2], \"greedy_ids\": [], \"greedy_margin\": []}}]}}"
            )
        };
        assert!(matches!(read(case("[3, 4]").as_bytes()), Ok(Golden::Model(_))));
        assert!(refused(&case("[3, 4, 5]")).contains("case 0: 3 top_ids and 2 top_logprobs"));
        assert!(refused(&case("[3, -4]")).contains("invalid value: integer `-4`"));
        assert!(refused(&case("3")).contains("expected a sequence"));
    }
}
