use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use edgeweld::lora::{LoraSet, Target};
use edgeweld::pack;
use edgeweld::{CancelToken, Digest};
use ndarray::{Array2, Array3};
use serde::{Deserialize, Serialize};

use super::{Generator, GeneratorConfig, LanguageModel, PromptGates, Reading};
use crate::method::Composition;
use crate::{Error, Result};

const CONFIG: &str = "generator.toml";
const WEIGHTS: &str = "generator.safetensors";

/// `generator.toml`: what a generator folder is for and how it was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorInfo {
    /// Its name.
    pub name: String,
    /// Digest of the cloud LM's file.
    pub cloud: String,
    /// Digest of the edge model's file.
    pub edge: String,
    /// Optimiser steps it was trained for.
    pub step_count: u64,
    /// What it is.
    pub generator: GeneratorConfig,
}

impl GeneratorInfo {
    /// Digest of a generator folder's two files: another digest may give other packs.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn fingerprint(folder: &Path) -> Result<Digest> {
        let mut digests = Vec::new();
        for name in [CONFIG, WEIGHTS] {
            let path = folder.join(name);
            digests.extend(Digest::of(&std::fs::read(&path).map_err(Error::io(&path))?).as_bytes());
        }
        Ok(Digest::of(&digests))
    }

    /// Reads `generator.toml` of a generator folder.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`] if it is malformed.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        toml::from_str(&text).map_err(|error| Error::InvalidFile { path, reason: error.to_string() })
    }
}

impl Generator {
    /// Writes a generator folder: `generator.toml` and `generator.safetensors` (f16; statistics in f32).
    pub fn save(&self, folder: &Path, info: &GeneratorInfo) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut tensors = HashMap::new();
        for (name, var) in self.parameters.iter() {
            let dtype =
                if name.starts_with("router.bn.") || name.starts_with("prompt.") { DType::F32 } else { DType::F16 };
            tensors.insert(name.to_owned(), var.as_detached_tensor().to_dtype(dtype)?);
        }
        candle_core::safetensors::save(&tensors, folder.join(WEIGHTS))?;
        let text = toml::to_string(info).expect("plain values");
        std::fs::write(folder.join(CONFIG), text).map_err(Error::io(folder.join(CONFIG)))
    }

    /// Loads a generator folder for this pair of models.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if the folder is malformed, for other models, or of a baseline whose experts are chosen
    /// token by token, which no prompt has a LoRA from.
    pub fn load(
        folder: &Path,
        cloud: &LanguageModel,
        edge: &LanguageModel,
        device: &Device,
    ) -> Result<(Self, GeneratorInfo)> {
        let info = GeneratorInfo::load(folder)?;
        if info.generator.reading == Reading::Token {
            let reason = format!("{} is token-routed: it has no LoRA to make packs of", info.name);
            return Err(Error::InvalidFile { path: folder.join(CONFIG), reason });
        }
        for (what, expected, model) in [("cloud LM", &info.cloud, cloud), ("edge model", &info.edge, edge)] {
            if *expected != model.digest.to_string() {
                let reason = format!("made for {what} {expected}, got {}", model.digest);
                return Err(Error::InvalidFile { path: folder.join(CONFIG), reason });
            }
        }
        let (cloud, edge) = (&cloud.decoder.config, &edge.decoder.config);
        let mut generator = Self::new(info.generator.clone(), cloud, edge, 0, device)?;
        generator.parameters.load(&folder.join(WEIGHTS), device)?;
        Ok((generator, info))
    }

    /// Loads a baseline, which reads no prompt, without its cloud LM: a multi-task LoRA or token-routed experts.
    ///
    /// # Errors
    /// As [`load`](Self::load); [`Error::InvalidFile`] also if the generator reads prompts.
    pub fn load_blind(folder: &Path, edge: &LanguageModel, device: &Device) -> Result<(Self, GeneratorInfo)> {
        let info = GeneratorInfo::load(folder)?;
        if info.generator.routes_prompts() {
            let reason = format!("{} reads prompts: it is no baseline", info.name);
            return Err(Error::InvalidFile { path: folder.join(CONFIG), reason });
        }
        if info.edge != edge.digest.to_string() {
            let reason = format!("made for edge model {}, got {}", info.edge, edge.digest);
            return Err(Error::InvalidFile { path: folder.join(CONFIG), reason });
        }
        let config = &edge.decoder.config;
        let mut generator = Self::new(info.generator.clone(), config, config, 0, device)?;
        generator.parameters.load(&folder.join(WEIGHTS), device)?;
        Ok((generator, info))
    }

    /// The LoRA of the prompt with these token IDs. Pairs of layers before `first_layer` are zero.
    pub fn lora(&self, cloud: &LanguageModel, ids: Vec<u32>, cancel: &CancelToken) -> Result<LoraSet> {
        let gates = self.gates(&self.meta(cloud, &[ids], cancel)?)?.of_prompt(0)?;
        Ok(self.pack_pool()?.mix(&gates, self.config.composition.into())?)
    }

    /// The expert pool as packs hold it.
    pub fn pack_pool(&self) -> Result<pack::ExpertPool> {
        let pool = self.pool();
        let array = |tensor: &Tensor| -> Result<Array3<f32>> {
            let shape = tensor.dims3()?;
            Ok(Array3::from_shape_vec(shape, tensor.flatten_all()?.to_vec1()?).expect("the tensor's own shape"))
        };
        let mut packed = pack::ExpertPool { alpha: self.config.alpha, gate: None, up: None, down: None };
        for target in Target::ALL {
            let (a, b) = (array(&pool.a[target as usize])?, array(&pool.b[target as usize])?);
            *packed.pair_mut(target) = Some(pack::ExpertPair { a, b });
        }
        Ok(packed)
    }
}

impl PromptGates {
    /// The gates of prompt `prompt`, `[layer, expert]`, as packs hold them: zero for layers without a delta.
    pub fn of_prompt(&self, prompt: usize) -> Result<pack::Gates> {
        let rows: Vec<Vec<f32>> = self.gates.values.to_vec2()?;
        let without = vec![vec![0.0; rows.first().map_or(0, Vec::len)]; self.first_layer];
        let active = rows.into_iter().skip(prompt).step_by(self.prompt_count);
        let rows: Vec<Vec<f32>> = without.into_iter().chain(active).collect();
        let shape = (rows.len(), rows.first().map_or(0, Vec::len));
        let weights = Array2::from_shape_vec(shape, rows.concat()).expect("rows of one length");
        Ok(pack::Gates { weights })
    }
}

impl From<Composition> for pack::Composition {
    fn from(composition: Composition) -> Self {
        match composition {
            Composition::Average => Self::Average,
            Composition::ProductSum => Self::ProductSum,
        }
    }
}
