//! Downloads: network → disk, resumable, into a content-addressed cache that processes can share.
//!
//! Nothing here is trusted: a finished download is a [`RawPack`](crate::pack::RawPack) whose bytes have the promised
//! digest, no more. A kill at any moment leaves a cache that the next run continues.

mod cache;
mod http;
mod partial;
mod source;
mod store;
mod transfer;

pub use cache::{Cache, CachedFile};
pub use source::Source;
pub use store::PackStore;

/// How to download. Nothing is read from the environment: an app that wants the system's proxy passes it.
#[derive(Clone, Debug)]
pub struct DownloadOptions {
    /// Headers such as `("Authorization", "Bearer …")`. Sent to the source's own scheme, host and port only; a
    /// redirect elsewhere goes without them.
    pub headers: Vec<(String, String)>,
    /// Proxy for all requests, such as `http://user:secret@proxy:3128`; `None` connects directly.
    pub proxy: Option<String>,
    /// Largest file, in what the server declares and in what it sends.
    pub size_bytes_max: u64,
    /// Time for name resolution, and again for connecting.
    pub connect_timeout_ms: u64,
    /// Longest silence of the server, before and within the body.
    pub stall_timeout_ms: u64,
    /// Failed attempts **in a row without a new byte** that are retried. Connect errors, timeouts, cut bodies and the
    /// statuses 408, 429 and 5xx deserve it; TLS errors and other statuses end the download at once.
    pub retries_max: u32,
    /// Pause before the first retry; doubles each time up to 30 s, each with a random part. `Retry-After` overrides it.
    pub backoff_ms: u64,
    /// Most redirects per attempt.
    pub redirects_max: u32,
    /// Allows plain `http` beyond the loopback interface: **anyone on the path can read headers and withhold
    /// or replace bytes**; what arrives is still checked against digest and signature.
    pub danger_allow_http: bool,
}

impl Default for DownloadOptions {
    fn default() -> Self {
        Self {
            headers: Vec::new(),
            proxy: None,
            size_bytes_max: crate::verify::PACK_SIZE_BYTES_MAX,
            connect_timeout_ms: 10_000,
            stall_timeout_ms: 20_000,
            retries_max: 5,
            backoff_ms: 500,
            redirects_max: 5,
            danger_allow_http: false,
        }
    }
}

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DownloadProgress {
    /// Bytes on disk, those of earlier runs included.
    pub bytes_done: u64,
    /// Size of the file, once the server said it.
    pub bytes_total: Option<u64>,
    /// Received in this run, averaged over it.
    pub bytes_per_second: f64,
}

/// Is told how a download goes.
pub trait DownloadListener {
    /// Called on the downloading thread: at the start, at most ten times per second, and at the end.
    fn on_progress(&mut self, progress: DownloadProgress);
}

impl<F: FnMut(DownloadProgress)> DownloadListener for F {
    fn on_progress(&mut self, progress: DownloadProgress) {
        self(progress);
    }
}
