use axum::body::Body;
use axum::http::header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use edgeweld::Digest;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, SeekFrom};
use tokio_util::io::ReaderStream;

use super::range::{Selection, select};
use super::refusal::Refusal;

/// Bytes of a file in memory per request.
const CHUNK_BYTES: usize = 64 << 10;

/// Answers with a stored file or the part of it that the headers ask for. Its content never changes, so its digest is the
/// entity tag and caches may keep it for ever; `private` keeps it out of shared ones.
pub(super) async fn answer(
    (file, size): (std::fs::File, u64),
    digest: Digest,
    headers: &HeaderMap,
    private: bool,
) -> Result<Response, Refusal> {
    let etag = format!("\"{digest}\"");
    let caching = if private { "private, max-age=31536000, immutable" } else { "public, max-age=31536000, immutable" };
    let response = Response::builder()
        .header(ETAG, &etag)
        .header(CACHE_CONTROL, caching)
        .header(ACCEPT_RANGES, "bytes")
        .header(CONTENT_TYPE, "application/octet-stream");
    let (response, part) = match select(headers, &etag, size) {
        Selection::NotSatisfiable => return Err(Refusal::RangeNotSatisfiable { size_bytes: size }),
        Selection::NotModified => (response.status(StatusCode::NOT_MODIFIED), 0..0),
        Selection::Whole => (response.header(CONTENT_LENGTH, size), 0..size),
        Selection::Part(part) => {
            let range = format!("bytes {}-{}/{size}", part.start, part.end - 1);
            let response = response.status(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, range);
            (response.header(CONTENT_LENGTH, part.end - part.start), part)
        }
    };
    let mut file = tokio::fs::File::from_std(file);
    file.seek(SeekFrom::Start(part.start)).await.map_err(|error| {
        log::error!("{digest}: {error}");
        Refusal::Internal
    })?;
    let stream = ReaderStream::with_capacity(file.take(part.end - part.start), CHUNK_BYTES);
    Ok(response.body(Body::from_stream(stream)).expect("valid headers"))
}
