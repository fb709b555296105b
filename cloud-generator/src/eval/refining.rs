use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use edgeweld::lora::LoraSet;
use edgeweld::pack::{self, GeneratorInfo, PackInfo, Precision, PromptInfo, RawPack};
use edgeweld::tokenizer::EncodeOptions;
use edgeweld::verify::{TrustPolicy, verify};
use edgeweld::{CancelToken, Digest};

use super::EvalTask;
use crate::edge_model::EdgeModel;
use crate::files::write_atomically;
use crate::generator::LanguageModel;
use crate::refine::{Progress, Query, RefineOptions, Split, refine};
use crate::{Error, Result};

/// One of so many examples is not learnt from, but says when to stop.
const DEV_EVERY: usize = 7;

/// How packs are refined before they are evaluated.
#[derive(Clone, Copy, Debug)]
pub struct RefineSource<'a> {
    /// Items with their answers per task, none of them an evaluated one.
    pub example_count: usize,
    /// Settings of the training.
    pub options: &'a RefineOptions,
    /// Where packs are kept: a task's is not made again.
    pub folder: &'a Path,
}

/// Refines packs from given answers.
pub(super) struct Refining {
    grad: LanguageModel,
    example_count: usize,
    options: RefineOptions,
    folder: PathBuf,
}

impl Refining {
    pub(super) fn new(grad: LanguageModel, source: RefineSource) -> Result<Self> {
        source.options.check()?;
        if source.example_count < DEV_EVERY {
            return Err(Error::InvalidOption {
                option: "--refine-examples",
                reason: format!("must be at least {DEV_EVERY}"),
            });
        }
        std::fs::create_dir_all(source.folder).map_err(Error::io(source.folder))?;
        Ok(Self {
            grad,
            example_count: source.example_count,
            options: source.options.clone(),
            folder: source.folder.to_owned(),
        })
    }

    /// The LoRA of the task, whose prompt this is, after it learnt the examples; from `start` or else from zero.
    pub(super) fn lora(
        &self,
        edge: &EdgeModel,
        task: &EvalTask,
        prompt: &str,
        start: Option<&LoraSet>,
        cancel: &CancelToken,
        listener: &mut dyn FnMut(Progress),
    ) -> Result<LoraSet> {
        let path = self.folder.join(format!("{}.pack", task.task.name.replace(['/', '\\'], "-")));
        if !path.exists() {
            let queries = self.queries(task)?;
            let folder = path.with_extension("refine");
            let (grad, options) = (&self.grad, &self.options);
            let refined = refine(edge, grad, &[], &queries, start, options, folder, cancel, listener)?;
            let info = PackInfo {
                model: edge.identity.clone(),
                prompt: Some(PromptInfo {
                    digest: Digest::of(prompt.as_bytes()),
                    token_count: edge.tokenizer.encode(prompt, EncodeOptions::default())?.len() as u32,
                }),
                residual_prompt: None,
                generator: GeneratorInfo {
                    name: "cloud-generator eval".into(),
                    version: env!("CARGO_PKG_VERSION").into(),
                    settings: BTreeMap::from([("examples".to_owned(), self.example_count.to_string())]),
                },
                quality: Vec::new(),
                labels: BTreeMap::new(),
            };
            write_atomically(&path, &pack::write_dense(&refined.lora, None, Precision::F16, info, None)?)?;
        }
        let raw = RawPack::read(std::fs::read(&path).map_err(Error::io(&path))?)?;
        let trust = TrustPolicy { danger_accept_unsigned: true, ..TrustPolicy::default() };
        Ok(verify(&raw, &trust, &edge.identity, None)?.lora().clone())
    }

    fn queries(&self, task: &EvalTask) -> Result<Vec<(Query, Split)>> {
        let labelled = task.rest.iter().filter_map(|item| Some((item, item.outputs.first()?)));
        let queries: Vec<_> = labelled
            .take(self.example_count)
            .enumerate()
            .map(|(index, (item, answer))| {
                let query = Query { query: item.input.clone(), answer: Some(answer.clone()), split: None };
                (query, if index % DEV_EVERY == DEV_EVERY - 1 { Split::Dev } else { Split::Train })
            })
            .collect();
        if queries.len() < self.example_count {
            let (name, actual) = (&task.task.name, queries.len());
            let reason = format!("{name} has {actual} items that are not evaluated: less, or a smaller --limit");
            return Err(Error::InvalidOption { option: "--refine-examples", reason });
        }
        Ok(queries)
    }
}
