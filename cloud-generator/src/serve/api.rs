use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Request, State as Shared};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, HOST, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use edgeweld::model::name_fits;
use edgeweld::pack::RawPack;
use edgeweld::{CancelToken, Digest};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::refusal::{Refusal, json as answer};
use super::{Kind, ServeOptions, Store, file};
use crate::Result;
use crate::publish::{PackRequest, Payload, Publisher};

type Answer = std::result::Result<Response, Refusal>;

/// What all requests share.
pub(super) struct State {
    publisher: Publisher,
    pub(super) store: Store,
    pub(super) options: ServeOptions,
    pool: Digest,
    address: SocketAddr,
    // Requests that run or wait, and those that run.
    admitted: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

impl State {
    pub(super) fn new(
        publisher: Publisher,
        store: Store,
        pool: Digest,
        address: SocketAddr,
        options: ServeOptions,
    ) -> Self {
        let admitted = Arc::new(Semaphore::new(options.concurrency + options.queue));
        let running = Arc::new(Semaphore::new(options.concurrency));
        Self { publisher, store, options, pool, address, admitted, running }
    }

    // The digest in a URL's last part.
    async fn file(self: Arc<Self>, kind: Kind, digest: String, headers: HeaderMap) -> Answer {
        let Ok(parsed) = digest.parse::<Digest>() else {
            return Err(Refusal::MalformedDigest { digest: digest.chars().take(100).collect() });
        };
        let private = self.options.token.is_some();
        match blocking(move || self.store.open_file(kind, parsed)).await? {
            Some(stored) => file::answer(stored, parsed, &headers, private).await,
            None => Err(Refusal::UnknownDigest { digest }),
        }
    }

    // Scheme and host that URLs in an answer begin with.
    fn base(&self, headers: &HeaderMap) -> String {
        if let Some(url) = &self.options.public_url {
            return url.clone();
        }
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let plain = |host: &&str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte));
        match host.filter(plain) {
            Some(host) => format!("http://{host}"),
            None => format!("http://{}", self.address),
        }
    }

    fn check_edge(&self, edge: &str) -> std::result::Result<(), Refusal> {
        let file = &self.options.edge_file;
        if name_fits(edge, file) || edge == self.publisher.edge().base.to_string() {
            return Ok(());
        }
        let available = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Err(Refusal::UnknownEdge { edge: edge.chars().take(100).collect(), available })
    }

    // The pack of a request that was answered before.
    fn recall(&self, request: Digest) -> Result<Option<(Digest, Vec<u8>)>> {
        let Some(digest) = self.store.recall(request)? else { return Ok(None) };
        Ok(self.store.read(Kind::Pack, digest)?.map(|bytes| (digest, bytes)))
    }

    fn make(&self, request: &PackRequest, name: Digest, cancel: &CancelToken) -> Result<(Digest, Vec<u8>)> {
        // Another request may have made it while this one waited.
        if let Some(made) = self.recall(name)? {
            return Ok(made);
        }
        let prompt = Digest::of(request.system_prompt.as_bytes());
        log::info!("making the {:?} pack of prompt {prompt}, {} bytes", request.payload, request.system_prompt.len());
        let mut made = self.publisher.publish(std::slice::from_ref(request), cancel)?;
        let bytes = made.packs.remove(0).bytes;
        let digest = self.store.put(Kind::Pack, &bytes)?;
        self.store.remember(name, digest)?;
        let (read, write) = (made.forward_time, made.write_time);
        log::info!("made {digest}, {} bytes: read the prompt in {read:.2?}, wrote in {write:.2?}", bytes.len());
        Ok((digest, bytes))
    }
}

pub(super) fn url(base: &str, kind: Kind, digest: Digest) -> String {
    format!("{base}/v1/{}/{digest}", kind.plural())
}

pub(super) fn router(state: Arc<State>) -> Router {
    type S = Shared<Arc<State>>;
    let pack =
        |Shared(state): S, Path(digest): Path<String>, headers: HeaderMap| state.file(Kind::Pack, digest, headers);
    let pool =
        |Shared(state): S, Path(digest): Path<String>, headers: HeaderMap| state.file(Kind::Pool, digest, headers);
    Router::new()
        .route("/v1/packs", post(post_pack))
        .route("/v1/packs/{digest}", get(pack))
        .route("/v1/pools/{digest}", get(pool))
        .route_layer(from_fn_with_state(state.clone(), authorize))
        .route("/healthz", get(health))
        .method_not_allowed_fallback(async || Refusal::MethodNotAllowed)
        .fallback(async || Refusal::NotFound)
        .layer(DefaultBodyLimit::max(state.options.body_size_bytes_max))
        .layer(from_fn(log_request))
        .with_state(state)
}

async fn health(Shared(state): Shared<Arc<State>>) -> Response {
    let generator = &state.publisher.info().name;
    let mut response = answer(StatusCode::OK, &json!({ "status": "ok", "generator": generator }));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn authorize(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let Some(expected) = state.options.token else { return next.run(request).await };
    let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token =
        given.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    // Digests are compared, so the time it takes says nothing about the token.
    match token {
        Some((_, token)) if Digest::of(token.trim().as_bytes()) == expected => next.run(request).await,
        _ => Refusal::Unauthorized.into_response(),
    }
}

async fn log_request(request: Request, next: Next) -> Response {
    let (method, path, start) = (request.method().clone(), request.uri().path().to_owned(), Instant::now());
    let response = next.run(request).await;
    log::info!("{method} {path} {} {:.1?}", response.status().as_u16(), start.elapsed());
    response
}

/// The body of `POST /v1/packs`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PostPack {
    edge: String,
    system_prompt: String,
    #[serde(default)]
    payload: Payload,
    residual_prompt: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

async fn post_pack(Shared(state): Shared<Arc<State>>, headers: HeaderMap, request: Request) -> Answer {
    let body = read_body(&state.options, &headers, request).await?;
    let post: PostPack =
        serde_json::from_slice(&body).map_err(|error| Refusal::InvalidRequest { reason: error.to_string() })?;
    let (actual_bytes, limit_bytes) = (post.system_prompt.len(), state.options.prompt_size_bytes_max);
    if actual_bytes > limit_bytes {
        return Err(Refusal::PromptTooLarge { actual_bytes, limit_bytes });
    }
    state.check_edge(&post.edge)?;
    let PostPack { system_prompt, payload, residual_prompt, labels, .. } = post;
    let request = PackRequest { system_prompt, payload, residual_prompt, labels };

    let permit = state.admitted.clone().try_acquire_owned().map_err(|_| Refusal::Busy)?;
    let base = state.base(&headers);
    let (status, digest, bytes) = pack_of(&state, request, permit).await?;
    let raw = RawPack::read(bytes).map_err(crate::Error::from)?;
    let manifest = raw.unverified_manifest().map_err(crate::Error::from)?;
    let location = url(&base, Kind::Pack, digest);
    let mut body = json!({
        "digest": digest,
        "url": location,
        "size_bytes": raw.size_bytes(),
        "manifest": manifest,
    });
    if payload == Payload::Gates {
        body["pool"] = json!({ "digest": state.pool, "url": url(&base, Kind::Pool, state.pool) });
    }
    let mut response = answer(status, &body);
    let headers = response.headers_mut();
    headers.insert(LOCATION, HeaderValue::try_from(location).map_err(|_| Refusal::Internal)?);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

// The stored pack (200) or a new one (201). The permits are held until the work has really ended, also when the client has gone.
async fn pack_of(
    state: &Arc<State>,
    request: PackRequest,
    admitted: OwnedSemaphorePermit,
) -> std::result::Result<(StatusCode, Digest, Vec<u8>), Refusal> {
    let shared = state.clone();
    let (request, name, known) = blocking(move || {
        shared.publisher.check(&request)?;
        let name = shared.publisher.request_digest(&request);
        let known = shared.recall(name)?;
        Ok((request, name, known))
    })
    .await?;
    if let Some((digest, bytes)) = known {
        return Ok((StatusCode::OK, digest, bytes));
    }
    let running = state.running.clone().acquire_owned().await.map_err(|_| Refusal::Stopping)?;
    let cancel = CancelOnDrop(CancelToken::new());
    let (shared, token) = (state.clone(), cancel.0.clone());
    let (digest, bytes) = blocking(move || {
        let made = shared.make(&request, name, &token);
        drop((running, admitted));
        made
    })
    .await?;
    Ok((StatusCode::CREATED, digest, bytes))
}

/// Stops the forward pass of a client that has gone.
struct CancelOnDrop(CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

async fn read_body(
    options: &ServeOptions,
    headers: &HeaderMap,
    request: Request,
) -> std::result::Result<Bytes, Refusal> {
    let limit_bytes = options.body_size_bytes_max;
    let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limit_bytes) {
        return Err(Refusal::BodyTooLarge { limit_bytes });
    }
    match tokio::time::timeout(options.body_timeout, Bytes::from_request(request, &())).await {
        Err(_) => Err(Refusal::BodyTimeout { limit_seconds: options.body_timeout.as_secs() }),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Err(Refusal::BodyTooLarge { limit_bytes })
        }
        Ok(Err(_)) => Err(Refusal::BodyIncomplete),
        Ok(Ok(body)) => Ok(body),
    }
}

// Runs file and model work on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> std::result::Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => {
            log::error!("a request's work ended early: {error}");
            Err(Refusal::Internal)
        }
    }
}
