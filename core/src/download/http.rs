//! One request: range, validators, redirects; and which failures deserve another try.

use std::io;
use std::time::Duration;

use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use super::source::{checked_url, origin, resolve, shown};
use super::{DownloadOptions, partial::Validators};
use crate::{Error, Result};

/// Longest `Retry-After` that we honour; a server that asks for more gets a failed download instead.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Why an attempt ended.
pub(super) enum Fault {
    /// Another try may succeed; the server may have said when.
    Transient(Error, Option<Duration>),
    /// It will not get better.
    Permanent(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Permanent(error)
    }
}

/// What the server answered.
pub(super) enum Answer {
    /// The whole file follows.
    Whole(Response<Body>, Head),
    /// The bytes from the requested offset follow.
    Rest(Response<Body>, Head),
    /// 416: the file is this long, if the server said so.
    PastEnd(Option<u64>),
    /// 304 to `If-None-Match`.
    NotModified,
}

/// What the headers say about the file.
pub(super) struct Head {
    pub(super) etag: Option<String>,
    /// Size of the whole file.
    pub(super) size_bytes: Option<u64>,
    /// Whether the end of the body is recognisable: a length or chunks.
    pub(super) is_delimited: bool,
}

pub(super) fn agent(options: &DownloadOptions) -> Result<Agent> {
    let proxy = match &options.proxy {
        None => None,
        Some(text) => Some(
            ureq::Proxy::new(text)
                .map_err(|_| Error::InvalidOption { option: "proxy", reason: "not a proxy URL".into() })?,
        ),
    };
    let connect = Duration::from_millis(options.connect_timeout_ms);
    let stall = Duration::from_millis(options.stall_timeout_ms);
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .accept_encoding("identity")
        .user_agent(concat!("edgeweld/", env!("CARGO_PKG_VERSION")))
        .proxy(proxy)
        .timeout_resolve(Some(connect))
        .timeout_connect(Some(connect))
        .timeout_recv_response(Some(stall))
        .timeout_per_read(Some(stall))
        .timeout_per_write(Some(stall));
    Ok(config.build().into())
}

/// Asks for `url` from `offset` on.
pub(super) fn request(
    agent: &Agent,
    url: &str,
    offset: u64,
    known: &Validators,
    options: &DownloadOptions,
) -> Result<Answer, Fault> {
    let mut target = url.to_string();
    for _ in 0..=options.redirects_max {
        checked_url(&target, options.danger_allow_http)?;
        let mut request = agent.get(&target);
        if origin(&target) == origin(url) {
            for (name, value) in &options.headers {
                request = request.header(name, value);
            }
        }
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
            if let Some(etag) = &known.etag {
                request = request.header(header::IF_RANGE, etag);
            }
        } else if let Some(etag) = &known.cached_etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        let response = request.call().map_err(|error| classify(url, error))?;
        let status = response.status();
        if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            return answer(url, response, offset, known);
        }
        let location = text(&response, header::LOCATION).ok_or_else(|| broken(url, "a redirect without a target"))?;
        let next = resolve(&target, location);
        if target.starts_with("https://") && !next.starts_with("https://") {
            return Err(broken(url, "a redirect from https to plain http"));
        }
        target = next;
    }
    Err(broken(url, "too many redirects"))
}

fn answer(url: &str, response: Response<Body>, offset: u64, known: &Validators) -> Result<Answer, Fault> {
    let status = response.status();
    if text(&response, header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(broken(url, "the body is encoded although only identity was accepted"));
    }
    let length = text(&response, header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    let is_chunked = text(&response, header::TRANSFER_ENCODING).is_some_and(|encoding| encoding.contains("chunked"));
    let etag = text(&response, header::ETAG).map(str::to_string);
    let is_delimited = length.is_some() || is_chunked;
    match status {
        StatusCode::OK => Ok(Answer::Whole(response, Head { etag, size_bytes: length, is_delimited })),
        StatusCode::PARTIAL_CONTENT => {
            let range = text(&response, header::CONTENT_RANGE).and_then(content_range);
            let Some((start, end, size_bytes)) = range else {
                return Err(transient(url, "206 without a usable Content-Range"));
            };
            let same_file = size_bytes.is_none() || known.size_bytes.is_none() || size_bytes == known.size_bytes;
            let same_tag = etag.is_none() || known.etag.is_none() || etag == known.etag;
            let fits = start == offset
                && length.is_none_or(|length| Some(length) == (end + 1).checked_sub(start))
                && size_bytes.is_none_or(|size| end < size);
            if !(fits && same_file && same_tag) {
                return Err(transient(url, "206 with another range or file than asked for"));
            }
            let size_bytes = size_bytes.or(known.size_bytes);
            Ok(Answer::Rest(response, Head { etag, size_bytes, is_delimited }))
        }
        StatusCode::NOT_MODIFIED if known.cached_etag.is_some() && offset == 0 => Ok(Answer::NotModified),
        StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => {
            let range = text(&response, header::CONTENT_RANGE);
            Ok(Answer::PastEnd(range.and_then(|range| range.strip_prefix("bytes */")?.trim().parse().ok())))
        }
        status => {
            let error = Error::HttpStatus { url: shown(url), status: status.as_u16() };
            let deserves_retry = match status.as_u16() {
                408 | 425 | 429 => true,
                501 | 505 => false,
                other => other >= 500,
            };
            if !deserves_retry {
                return Err(Fault::Permanent(error));
            }
            let seconds = text(&response, header::RETRY_AFTER).and_then(|seconds| seconds.trim().parse().ok());
            match seconds.map(Duration::from_secs) {
                Some(after) if after > RETRY_AFTER_MAX => Err(Fault::Permanent(error)),
                after => Err(Fault::Transient(error, after)),
            }
        }
    }
}

/// `bytes start-end/size`, both ends included; `*` for an unknown size.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (start.trim().parse().ok()?, end.trim().parse::<u64>().ok()?);
    let size = if size == "*" { None } else { Some(size.trim().parse().ok()?) };
    (start <= end && end < u64::MAX).then_some((start, end, size))
}

fn text(response: &Response<Body>, name: header::HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

fn classify(url: &str, error: ureq::Error) -> Fault {
    use ureq::Error::{ConnectProxyFailed, ConnectionFailed, HostNotFound, Io, Protocol, Timeout};
    let failed = Error::Network { url: shown(url), reason: error.to_string() };
    match error {
        // rustls reports certificates and protocol faults as invalid data.
        Io(source) if source.kind() == io::ErrorKind::InvalidData => Fault::Permanent(failed),
        Io(_) | Timeout(_) | HostNotFound | ConnectionFailed | ConnectProxyFailed(_) | Protocol(_) => {
            Fault::Transient(failed, None)
        }
        _ => Fault::Permanent(failed),
    }
}

pub(super) fn transient(url: &str, reason: &str) -> Fault {
    Fault::Transient(Error::Network { url: shown(url), reason: reason.into() }, None)
}

pub(super) fn broken(url: &str, reason: &str) -> Fault {
    Fault::Permanent(Error::Network { url: shown(url), reason: reason.into() })
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, 9, None)));
        for bad in ["", "bytes */10", "bytes 9-5/10", "5-9/10", "bytes -5/10", "bytes 1-18446744073709551615/*"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
