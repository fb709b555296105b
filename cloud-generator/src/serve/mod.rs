//! Packs over HTTP: makes them on demand and serves them by digest. The interface is `docs/http-api.md`.
//!
//! Plain HTTP/1.1 behind whatever ends TLS. The prompt's text is neither stored nor logged, only its digest.

mod api;
mod file;
mod range;
mod refusal;
mod store;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edgeweld::pack::{Content, PublicKey, RawPack};
use edgeweld::verify::{TrustPolicy, verify, verify_pool};
use edgeweld::{CancelToken, Digest};

use crate::publish::Publisher;
use crate::{Error, Result};

pub use store::{Kind, Store};

/// Largest body of a request by default: a prompt of the largest size, escaped, and its labels.
pub const BODY_SIZE_BYTES_MAX: usize = 1 << 20;
/// Largest prompt by default; the generator's own limit in tokens comes on top.
pub const PROMPT_SIZE_BYTES_MAX: usize = 256 << 10;

/// Limits and names of a server.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Digest of the bearer token that every request but `/healthz` must bring; `None` serves anyone.
    pub token: Option<Digest>,
    /// What URLs in answers begin with; `None` takes the request's `Host`.
    pub public_url: Option<String>,
    /// Names that requests may call the edge model, besides its digest: what fits this file's name.
    pub edge_file: std::path::PathBuf,
    /// Largest request body.
    pub body_size_bytes_max: usize,
    /// Largest prompt.
    pub prompt_size_bytes_max: usize,
    /// Forward passes at a time.
    pub concurrency: usize,
    /// Requests that may wait for one; more are refused as `busy`.
    pub queue: usize,
    /// Longest time for a request's body to arrive.
    pub body_timeout: Duration,
    /// Longest time that a stopping server waits for requests in progress.
    pub grace: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            token: None,
            public_url: None,
            edge_file: std::path::PathBuf::new(),
            body_size_bytes_max: BODY_SIZE_BYTES_MAX,
            prompt_size_bytes_max: PROMPT_SIZE_BYTES_MAX,
            concurrency: 1,
            queue: 16,
            body_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(30),
        }
    }
}

/// A server that has its address, its packs and its generator, and does not accept connections yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    state: Arc<api::State>,
}

impl Server {
    /// Binds `host:port`; port 0 takes a free one. Apart from the rest, so that a port in use is known before models load.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub fn bind(address: &str) -> Result<TcpListener> {
        let failed = |source| Error::Listen { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }

    /// Puts the generator's pool into the store and gets ready.
    ///
    /// # Errors
    /// [`Error::Io`], or the pool cannot be written.
    pub fn new(listener: TcpListener, publisher: Publisher, store: Store, options: ServeOptions) -> Result<Self> {
        let address = listener.local_addr().map_err(|source| Error::Listen { address: String::new(), source })?;
        let pool = store.put(Kind::Pool, publisher.pool_file()?)?;
        log::info!("expert pool {pool}");
        Ok(Self { listener, address, state: Arc::new(api::State::new(publisher, store, pool, address, options)) })
    }

    /// Where it listens, or its public URL if it has one.
    pub fn url(&self) -> String {
        self.state.options.public_url.clone().unwrap_or_else(|| format!("http://{}", self.address))
    }

    /// Adds a signed pack or pool file made elsewhere to the store; the URL it is served at.
    ///
    /// # Errors
    /// The error of every check that a device makes before it looks at its own keys and model;
    /// [`edgeweld::Error::PoolMissing`] for a gates pack whose pool is not in the store.
    pub fn publish(&self, bytes: Vec<u8>) -> Result<String> {
        let raw = RawPack::read(bytes)?;
        let kind = check(&raw, &self.state.store)?;
        let digest = self.state.store.put(kind, raw.as_bytes())?;
        Ok(api::url(&self.url(), kind, digest))
    }

    /// [`publish`](Self::publish) for a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::FileRefused`] with what `publish` says.
    pub fn publish_file(&self, path: &Path) -> Result<String> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        self.publish(bytes).map_err(|error| match error {
            Error::Edge(source) => Error::FileRefused { path: path.to_owned(), source: Box::new(source) },
            other => other,
        })
    }

    /// Serves until `stop` is cancelled; then accepts nothing new, finishes what is in progress within the grace time,
    /// and cancels the rest.
    ///
    /// # Errors
    /// [`Error::Listen`] if the system refuses threads or the socket.
    pub fn run(self, stop: &CancelToken) -> Result<()> {
        let address = self.address.to_string();
        let failed = move |source| Error::Listen { address, source };
        let grace = self.state.options.grace;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(failed.clone())?;
        let served = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(self.listener)?;
            let router = api::router(self.state);
            let serving = axum::serve(listener, router).with_graceful_shutdown(cancelled(stop.clone()));
            let serving = tokio::spawn(serving.into_future());
            cancelled(stop.clone()).await;
            log::info!("stopping: requests in progress have {grace:.0?}");
            if tokio::time::timeout(grace, serving).await.is_err() {
                log::warn!("stopped with requests in progress");
            }
            Ok(())
        });
        // Dropping a request's task cancels its forward pass, which ends within one layer.
        runtime.shutdown_timeout(Duration::from_secs(5));
        served.map_err(failed)
    }
}

/// Ends when `token` is cancelled; the token is also set by signal handlers, which can wake nobody.
async fn cancelled(token: CancelToken) {
    while !token.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

// Whole and signed by the key it names: everything that a device checks, with the file's own claims as its trust and model.
fn check(raw: &RawPack, store: &Store) -> Result<Kind> {
    let claim = raw.unverified_signature().ok_or(edgeweld::Error::UnsignedPack)?;
    let trust = TrustPolicy::trusting([PublicKey::from_bytes(&claim.key)?]);
    let manifest = raw.unverified_manifest()?;
    match manifest.content {
        Content::Pool { .. } => {
            verify_pool(raw, &trust, &manifest.model)?;
            Ok(Kind::Pool)
        }
        Content::Dense { .. } => {
            verify(raw, &trust, &manifest.model, None)?;
            Ok(Kind::Pack)
        }
        Content::Gates { pool, .. } => {
            let bytes = store.read(Kind::Pool, pool)?.ok_or(edgeweld::Error::PoolMissing { digest: pool })?;
            let pool = verify_pool(&RawPack::read(bytes)?, &trust, &manifest.model)?;
            verify(raw, &trust, &manifest.model, Some(&pool))?;
            Ok(Kind::Pack)
        }
    }
}
