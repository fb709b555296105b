use std::path::Path;

use candle_core::Device;
use edgeweld::CancelToken;
use edgeweld::lora::{LayerLora, LoraSet};

use super::refining::{RefineSource, Refining};
use super::{EvalTask, Request, TokenRouted, lorahub};
use crate::edge_model::EdgeModel;
use crate::generator::{Generator, LanguageModel, Reading};
use crate::refine::Progress;
use crate::{Error, Result};

/// What makes the LoRAs of the arms that have one.
pub struct Packs {
    generator: Option<(Generator, LanguageModel)>,
    lora: Option<LoraSet>,
    lora_prompt: Option<LoraSet>,
    token_routed: Option<TokenRouted>,
    refining: Option<Refining>,
}

/// Where [`Packs`] come from.
#[derive(Clone, Copy, Debug, Default)]
pub struct PackSources<'a> {
    /// Generator folder and the GGUF file of its cloud LM.
    pub generator: Option<(&'a Path, &'a Path)>,
    /// Generator folder of the multi-task LoRA.
    pub lora: Option<&'a Path>,
    /// Generator folder of the multi-task LoRA that was trained with prompts in the context.
    pub lora_prompt: Option<&'a Path>,
    /// Generator folder of token-routed experts.
    pub token_routed: Option<&'a Path>,
    /// Packs are refined, from zero without a generator.
    pub refine: Option<RefineSource<'a>>,
}

impl Packs {
    /// Loads what the arms need, for the edge model in the GGUF file at `path`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if a folder is malformed, for other models or of a generator that has no place in its arm.
    pub fn load(path: &Path, sources: PackSources) -> Result<Self> {
        let device = Device::Cpu;
        let edge = LanguageModel::load(path, &device)?;
        let generator = sources.generator.map(|(folder, cloud)| {
            let mut cloud = LanguageModel::load(cloud, &device)?;
            let (generator, _) = Generator::load(folder, &cloud, &edge, &device)?;
            generator.attach_cloud_lora(&mut cloud.decoder);
            Ok::<_, Error>((generator, cloud))
        });
        let blind = |folder: &Path| {
            // It reads no prompt, so that the edge model can stand for its cloud LM.
            let (generator, info) = Generator::load_blind(folder, &edge, &device)?;
            if generator.config.reading == Reading::Token {
                return Err(invalid("--baseline", &format!("{} is no LoRA: its arm is lora-tokens", info.name)));
            }
            lora(&generator, &edge, "", &CancelToken::default())
        };
        let refining = sources.refine.map(|source| Refining::new(LanguageModel::load(path, &device)?, source));
        Ok(Self {
            refining: refining.transpose()?,
            generator: generator.transpose()?,
            lora: sources.lora.map(blind).transpose()?,
            lora_prompt: sources.lora_prompt.map(blind).transpose()?,
            token_routed: sources.token_routed.map(|folder| TokenRouted::load(folder, edge)).transpose()?,
        })
    }

    /// The LoRA of the task's prompt with `example_count` examples; `listener` hears of its refinement.
    pub(super) fn pack(
        &self,
        edge: &EdgeModel,
        task: &EvalTask,
        example_count: usize,
        cancel: &CancelToken,
        listener: &mut dyn FnMut(Progress),
    ) -> Result<LoraSet> {
        let prompt = task.task.prompt(example_count);
        let Some(refining) = &self.refining else {
            let (generator, cloud) = self.generator()?;
            return lora(generator, cloud, &prompt, cancel);
        };
        let start = self
            .generator
            .as_ref()
            .map(|(generator, cloud)| generator.lora(cloud, ids(generator, cloud, &prompt)?, cancel));
        refining.lora(edge, task, &prompt, start.transpose()?.as_ref(), cancel, listener)
    }

    pub(super) fn lorahub(&self, edge: &EdgeModel, shots: &[Request], cancel: &CancelToken) -> Result<LoraSet> {
        let (generator, _) = self.generator()?;
        lorahub(edge, generator, shots, cancel)
    }

    /// The multi-task LoRA.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] without one.
    pub fn lora(&self) -> Result<&LoraSet> {
        self.lora.as_ref().ok_or_else(|| invalid("--baseline", "the lora arm needs one"))
    }

    pub(super) fn lora_prompt(&self) -> Result<&LoraSet> {
        self.lora_prompt.as_ref().ok_or_else(|| invalid("--prompted-baseline", "the lora-prompt arm needs one"))
    }

    pub(super) fn token_routed(&self) -> Result<&TokenRouted> {
        self.token_routed.as_ref().ok_or_else(|| invalid("--token-baseline", "the lora-tokens arm needs one"))
    }

    fn generator(&self) -> Result<&(Generator, LanguageModel)> {
        self.generator.as_ref().ok_or_else(|| invalid("--generator", "the pack arms and lorahub need one"))
    }
}

fn invalid(option: &'static str, reason: &str) -> Error {
    Error::InvalidOption { option, reason: reason.into() }
}

// Layers without a delta get no pair, so that they cost nothing.
fn lora(generator: &Generator, cloud: &LanguageModel, prompt: &str, cancel: &CancelToken) -> Result<LoraSet> {
    let mut lora = generator.lora(cloud, ids(generator, cloud, prompt)?, cancel)?;
    lora.layers[..generator.config.first_layer].fill(LayerLora::default());
    Ok(lora)
}

fn ids(generator: &Generator, cloud: &LanguageModel, prompt: &str) -> Result<Vec<u32>> {
    let mut ids = cloud.encode(prompt)?;
    ids.truncate(generator.config.prompt_tokens_max);
    Ok(ids)
}
