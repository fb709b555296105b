use std::collections::HashMap;
use std::sync::Arc;

use edgeweld::download::{self, Cache, Source};
use edgeweld::pack::PublicKey;
use edgeweld::verify::{self, TrustPolicy};
use edgeweld::{CancelToken, Digest};

use crate::live::Live;
use crate::task::Running;
use crate::{Engine, SdkError, TaskHandle};

/// Whom a store trusts and how much it keeps.
#[derive(Clone, Debug, Default, PartialEq, uniffi::Record)]
pub struct StoreOptions {
    /// Keys whose packs are refused, also when they are trusted.
    #[uniffi(default = [])]
    pub revoked_keys: Vec<String>,
    /// Bytes that the folder may take before the packs used longest ago are deleted; 1 GiB by default.
    #[uniffi(default = None)]
    pub size_bytes_max: Option<u64>,
    /// Where expert pools come from, with `{digest}` or `{hex}` in the text; beside the pack by default.
    #[uniffi(default = None)]
    pub pool_source: Option<String>,
    /// Accepts packs that nobody signed. For development: whoever can reach the file then controls the answers.
    #[uniffi(default = false)]
    pub danger_accept_unsigned: bool,
}

/// How one pack is downloaded.
#[derive(Clone, Debug, Default, PartialEq, uniffi::Record)]
pub struct DownloadOptions {
    /// Digest that the file must have, `sha256:…`; with it, a pack that is in the store needs no network.
    #[uniffi(default = None)]
    pub digest: Option<String>,
    /// Headers such as `Authorization`. They go to the source's own server only, never to a redirect's.
    #[uniffi(default)]
    pub headers: HashMap<String, String>,
    /// Proxy, such as `http://user:secret@proxy:3128`; none by default.
    #[uniffi(default = None)]
    pub proxy: Option<String>,
    /// Largest file; 256 MiB by default.
    #[uniffi(default = None)]
    pub size_bytes_max: Option<u64>,
    /// Failed attempts in a row without a new byte that are retried; 5 by default.
    #[uniffi(default = None)]
    pub retries_max: Option<u32>,
    /// Longest silence of the server in milliseconds; 20,000 by default.
    #[uniffi(default = None)]
    pub stall_timeout_ms: Option<u64>,
    /// Allows plain `http` beyond this device.
    #[uniffi(default = false)]
    pub danger_allow_http: bool,
}

impl DownloadOptions {
    fn into_core(self) -> download::DownloadOptions {
        let default = download::DownloadOptions::default();
        download::DownloadOptions {
            headers: self.headers.into_iter().collect(),
            proxy: self.proxy,
            size_bytes_max: self.size_bytes_max.unwrap_or(default.size_bytes_max),
            retries_max: self.retries_max.unwrap_or(default.retries_max),
            stall_timeout_ms: self.stall_timeout_ms.unwrap_or(default.stall_timeout_ms),
            danger_allow_http: self.danger_allow_http,
            ..default
        }
    }
}

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Record)]
pub struct DownloadProgress {
    /// Bytes on disk, those of earlier runs included.
    pub bytes_done: u64,
    /// Size of the file, once the server said it.
    pub bytes_total: Option<u64>,
    /// Received in this run, averaged over it.
    pub bytes_per_second: f64,
}

/// Is told how a download goes, on the thread that called, at most ten times per second.
#[uniffi::export(foreign)]
pub trait DownloadListener: Send + Sync {
    /// The download came this far. An exception ends the call and arrives at the caller.
    fn on_download(&self, progress: DownloadProgress) -> Result<(), SdkError>;
}

/// Packs in a folder of the app: downloaded resumably, checked, kept. Several stores and processes may share a folder.
#[derive(uniffi::Object)]
pub struct PackStore {
    cache: Cache,
    trust: TrustPolicy,
    pool_source: Option<String>,
    _live: Live,
}

#[uniffi::export]
impl PackStore {
    /// Opens or makes the folder. Packs are accepted from these keys only, each written `ed25519:` and 64 hex digits.
    #[uniffi::constructor(default(options))]
    pub fn new(folder: String, trusted_keys: Vec<String>, options: StoreOptions) -> Result<Arc<Self>, SdkError> {
        let trust = TrustPolicy {
            trusted: keys("trusted_keys", &trusted_keys)?,
            revoked: keys("revoked_keys", &options.revoked_keys)?,
            danger_accept_unsigned: options.danger_accept_unsigned,
            ..TrustPolicy::default()
        };
        let cache = Cache::open(folder, options.size_bytes_max.unwrap_or(1 << 30))?;
        Ok(Arc::new(Self { cache, trust, pool_source: options.pool_source, _live: Live::new() }))
    }

    /// Downloads a pack, and the expert pool it may need, and verifies both for the engine's model. The source is an
    /// `https` URL, or the path of a file that the app has already. Blocks.
    ///
    /// After a failure or a cancellation the bytes that arrived stay, and the next call goes on from there.
    #[uniffi::method(default(listener = None, task = None, options))]
    pub fn download_blocking(
        &self,
        engine: &Engine,
        source: String,
        options: DownloadOptions,
        listener: Option<Arc<dyn DownloadListener>>,
        task: Option<Arc<TaskHandle>>,
    ) -> Result<Arc<VerifiedPack>, SdkError> {
        let running = Running::new(task);
        let source: Source = source.parse()?;
        let digest = options.digest.as_deref().map(str::parse::<Digest>).transpose()?;
        let store = download::PackStore {
            cache: self.cache.clone(),
            options: options.into_core(),
            trust: self.trust.clone(),
            pool_source: self.pool_source.clone(),
        };
        let mut relay = Relay { listener, cancel: running.cancel(), failure: None };
        let result = store.load(&source, digest, engine.inner.identity(), running.cancel(), &mut relay);
        match relay.failure {
            Some(failure) => Err(failure),
            None => Ok(Arc::new(VerifiedPack { inner: result?, _live: Live::new() })),
        }
    }

    /// Deletes the file with this digest, if it is here.
    pub fn remove(&self, digest: String) -> Result<(), SdkError> {
        Ok(self.cache.remove(digest.parse()?)?)
    }
}

fn keys(argument: &str, texts: &[String]) -> Result<Vec<PublicKey>, SdkError> {
    let parse = |text: &String| {
        text.parse().map_err(|error: edgeweld::Error| SdkError::InvalidArgument {
            argument: argument.to_owned(),
            reason: error.to_string(),
        })
    };
    texts.iter().map(parse).collect()
}

/// Hands core's progress to a listener, whose failure stops the download.
struct Relay<'a> {
    listener: Option<Arc<dyn DownloadListener>>,
    cancel: &'a CancelToken,
    failure: Option<SdkError>,
}

impl download::DownloadListener for Relay<'_> {
    fn on_progress(&mut self, progress: download::DownloadProgress) {
        let (Some(listener), None) = (&self.listener, &self.failure) else { return };
        let download::DownloadProgress { bytes_done, bytes_total, bytes_per_second } = progress;
        if let Err(error) = listener.on_download(DownloadProgress { bytes_done, bytes_total, bytes_per_second }) {
            self.failure = Some(error);
            self.cancel.cancel();
        }
    }
}

/// A pack that passed every check for one model.
#[derive(uniffi::Object)]
pub struct VerifiedPack {
    pub(crate) inner: verify::VerifiedPack,
    _live: Live,
}

/// How well a pack did, in one metric on one set of items.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct Measurement {
    /// What was measured, such as `accuracy`.
    pub metric: String,
    /// Where.
    pub set: String,
    /// Items measured.
    pub item_count: u32,
    /// The base model without the prompt.
    pub base: f64,
    /// The base model with the prompt in its context.
    pub prompted: f64,
    /// The base model with this pack, without the prompt.
    pub specialized: f64,
}

/// What a pack says about itself, signed.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct PackInfo {
    /// Digest of the pack's file.
    pub digest: String,
    /// Who signed it; absent only in a store that accepts unsigned packs.
    pub signer: Option<String>,
    /// Digest of the system prompt that it stands for.
    pub prompt_digest: Option<String>,
    /// Length of that prompt in tokens: what each conversation saves.
    pub prompt_token_count: Option<u32>,
    /// Text that stays in the context.
    pub residual_prompt: Option<String>,
    /// The program that made it, and its version.
    pub generator: String,
    /// Free text for people and apps.
    pub labels: HashMap<String, String>,
    /// How well it did.
    pub quality: Vec<Measurement>,
}

#[uniffi::export]
impl VerifiedPack {
    /// What the pack says about itself.
    pub fn info(&self) -> PackInfo {
        let manifest = self.inner.manifest();
        let quality = manifest.quality.iter().map(|measured| Measurement {
            metric: measured.metric.clone(),
            set: measured.set.clone(),
            item_count: measured.item_count,
            base: measured.base,
            prompted: measured.prompted,
            specialized: measured.specialized,
        });
        PackInfo {
            digest: self.inner.digest().to_string(),
            signer: self.inner.signer().map(ToString::to_string),
            prompt_digest: manifest.prompt.as_ref().map(|prompt| prompt.digest.to_string()),
            prompt_token_count: manifest.prompt.as_ref().map(|prompt| prompt.token_count),
            residual_prompt: manifest.residual_prompt.as_ref().map(|residual| residual.text.clone()),
            generator: format!("{} {}", manifest.generator.name, manifest.generator.version),
            labels: manifest.labels.clone().into_iter().collect(),
            quality: quality.collect(),
        }
    }
}
