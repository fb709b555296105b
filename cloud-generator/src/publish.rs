//! The last stage on the server: prompts in, signed pack files out, all prompts in one forward pass.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use edgeweld::pack::{
    self, ExpertPool, Gates, ModelIdentity, PackInfo, Precision, PromptInfo, PublicKey, RESIDUAL_PROMPT_TOKENS_MAX,
    ResidualPrompt, SecretKey,
};
use edgeweld::tokenizer::EncodeOptions;
use edgeweld::{CancelToken, Digest};
use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::generator::{Generator, GeneratorInfo, LanguageModel};
use crate::{Error, Result};

/// What a pack carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// The LoRA pairs.
    #[default]
    Dense,
    /// Only the gates; the device needs the pool file too.
    Gates,
}

/// One pack to make.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PackRequest {
    /// The system prompt that the pack replaces.
    pub system_prompt: String,
    /// What the pack carries.
    pub payload: Payload,
    /// Short text that stays in the context.
    pub residual_prompt: Option<String>,
    /// Free text for people and apps.
    pub labels: BTreeMap<String, String>,
}

/// What a [`Publisher`] is made of.
#[derive(Debug)]
pub struct PublisherOptions {
    /// Generator folder.
    pub generator: PathBuf,
    /// GGUF file of the cloud LM.
    pub cloud: PathBuf,
    /// GGUF file of the edge model.
    pub edge: PathBuf,
    /// Who signs; without one, packs are unsigned and devices refuse them by default.
    pub signer: Option<SecretKey>,
    /// Where the cloud LM runs.
    pub device: Device,
}

/// A loaded generator with its cloud LM, for one edge model.
pub struct Publisher {
    cloud: LanguageModel,
    edge: LanguageModel,
    generator: Generator,
    info: GeneratorInfo,
    fingerprint: Digest,
    pool: ExpertPool,
    pool_file: OnceLock<Vec<u8>>,
    signer: Option<SecretKey>,
}

/// A pack file and what a person may want to know of it.
pub struct PublishedPack {
    /// The file.
    pub bytes: Vec<u8>,
    /// The router's weights, `[layer, expert]`.
    pub gates: Gates,
    /// Tokens of the prompt in the edge model's tokenizer.
    pub prompt_tokens: u32,
}

/// The packs of one forward pass, in the order of the requests.
pub struct Publication {
    /// The packs.
    pub packs: Vec<PublishedPack>,
    /// Cloud LM and router, for all prompts together.
    pub forward_time: Duration,
    /// Mixing, compressing and signing, for all packs together.
    pub write_time: Duration,
}

impl Publisher {
    /// Loads a generator folder and its two models.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::InvalidFile`] if the folder is malformed or made for other models, and
    /// [`Error::Edge`] for model files that cannot be read.
    pub fn load(options: PublisherOptions) -> Result<Self> {
        let device = options.device.open()?;
        let mut cloud = LanguageModel::load(&options.cloud, &device)?;
        let edge = LanguageModel::load(&options.edge, &candle_core::Device::Cpu)?;
        let (generator, info) = Generator::load(&options.generator, &cloud, &edge, &device)?;
        generator.attach_cloud_lora(&mut cloud.decoder);
        let fingerprint = GeneratorInfo::fingerprint(&options.generator)?;
        let pool = generator.pack_pool()?;
        let pool_file = OnceLock::new();
        Ok(Self { cloud, edge, generator, info, fingerprint, pool, pool_file, signer: options.signer })
    }

    /// What the generator's folder says about it.
    pub fn info(&self) -> &GeneratorInfo {
        &self.info
    }

    /// The edge model that packs fit.
    pub fn edge(&self) -> &ModelIdentity {
        &self.edge.identity
    }

    /// Who signs.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.signer.as_ref().map(SecretKey::public_key)
    }

    /// Digest of everything that decides which bytes a request gives: the same name means the same pack.
    pub fn request_digest(&self, request: &PackRequest) -> Digest {
        let edge = &self.edge.identity;
        let parts = (
            (pack::PACK_VERSION, env!("CARGO_PKG_VERSION"), self.fingerprint, edge, &self.info.cloud),
            (self.public_key().map(|key| key.to_string()), request),
        );
        Digest::of(&serde_json::to_vec(&parts).expect("plain values"))
    }

    /// Checks a request without computing: the prompt's tokens in the cloud LM's tokenizer.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::PromptTooLong`], [`Error::ResidualPromptTooLong`].
    pub fn check(&self, request: &PackRequest) -> Result<Vec<u32>> {
        if request.system_prompt.trim().is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let ids = self.cloud.encode(&request.system_prompt)?;
        let limit = self.generator.config.prompt_tokens_max;
        if ids.len() > limit {
            return Err(Error::PromptTooLong { actual: ids.len(), limit });
        }
        self.residual_prompt(request)?;
        Ok(ids)
    }

    /// Makes the packs of all requests in one forward pass. The same request gives the same bytes.
    ///
    /// # Errors
    /// As [`check`](Self::check); [`edgeweld::Error::InvalidPack`] for labels beyond the format's limits;
    /// [`edgeweld::Error::Cancelled`] within one layer of the cancellation.
    pub fn publish(&self, requests: &[PackRequest], cancel: &CancelToken) -> Result<Publication> {
        let ids = requests.iter().map(|request| self.check(request)).collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        let gates = self.generator.gates(&self.generator.meta(&self.cloud, &ids, cancel)?)?;
        let gates = (0..requests.len()).map(|index| gates.of_prompt(index)).collect::<Result<Vec<_>>>()?;
        let forward_time = start.elapsed();
        let start = Instant::now();
        let packs =
            requests.iter().zip(gates).map(|(request, gates)| self.write(request, gates)).collect::<Result<_>>()?;
        Ok(Publication { packs, forward_time, write_time: start.elapsed() })
    }

    /// The pool file that gates packs of this generator name.
    ///
    /// # Errors
    /// [`edgeweld::Error::InvalidPack`] if the generator's experts are outside the pack format's limits.
    pub fn pool_file(&self) -> Result<&[u8]> {
        if let Some(bytes) = self.pool_file.get() {
            return Ok(bytes);
        }
        let layers = self.edge.decoder.config.layer_count();
        let bytes = pack::write_pool(&self.pool, layers, Precision::F16, self.pack_info(), self.signer.as_ref())?;
        Ok(self.pool_file.get_or_init(|| bytes))
    }

    fn write(&self, request: &PackRequest, gates: Gates) -> Result<PublishedPack> {
        let prompt_tokens = self.edge_tokens(&request.system_prompt)?;
        let digest = Digest::of(request.system_prompt.as_bytes());
        let info = PackInfo {
            prompt: Some(PromptInfo { digest, token_count: prompt_tokens }),
            residual_prompt: self.residual_prompt(request)?,
            labels: request.labels.clone(),
            ..self.pack_info()
        };
        let composition = self.generator.config.composition.into();
        let signer = self.signer.as_ref();
        let bytes = match request.payload {
            Payload::Dense => {
                let lora = self.pool.mix(&gates, composition)?;
                pack::write_dense(&lora, Some(composition), Precision::F16, info, signer)?
            }
            Payload::Gates => {
                let pool = Digest::of(self.pool_file()?);
                pack::write_gates(&gates, composition, &self.pool, pool, info, signer)?
            }
        };
        Ok(PublishedPack { bytes, gates, prompt_tokens })
    }

    fn residual_prompt(&self, request: &PackRequest) -> Result<Option<ResidualPrompt>> {
        let Some(text) = &request.residual_prompt else { return Ok(None) };
        let (token_count, limit) = (self.edge_tokens(text)?, RESIDUAL_PROMPT_TOKENS_MAX);
        if token_count > limit {
            return Err(Error::ResidualPromptTooLong { actual: token_count as usize, limit: limit as usize });
        }
        Ok(Some(ResidualPrompt { text: text.clone(), token_count }))
    }

    fn edge_tokens(&self, text: &str) -> Result<u32> {
        let plain = EncodeOptions { add_special: false, parse_special: false };
        Ok(self.edge.tokenizer.encode(text, plain)?.len() as u32)
    }

    fn pack_info(&self) -> PackInfo {
        PackInfo {
            model: self.edge.identity.clone(),
            prompt: None,
            residual_prompt: None,
            generator: pack::GeneratorInfo {
                name: self.info.name.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
                settings: BTreeMap::from([
                    ("cloud".to_owned(), self.info.cloud.clone()),
                    ("generator".to_owned(), self.fingerprint.to_string()),
                    ("top_k".to_owned(), self.generator.config.top_k.to_string()),
                    ("trained_steps".to_owned(), self.info.step_count.to_string()),
                ]),
            },
            quality: Vec::new(),
            labels: BTreeMap::new(),
        }
    }
}
