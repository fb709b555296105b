use std::path::{Path, PathBuf};
use std::str::FromStr;

use ureq::http::Uri;

use crate::{Digest, Error, Result};

/// Where a pack or pool comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `https://…`, or `http://…` on the loopback interface.
    Url(String),
    /// A local file.
    File(PathBuf),
}

impl FromStr for Source {
    type Err = Error;

    /// `https://…`, `http://…`, `file:///…` or a path.
    fn from_str(text: &str) -> Result<Self> {
        if text.starts_with("https://") || text.starts_with("http://") {
            return Ok(Self::Url(text.into()));
        }
        if let Some(path) = text.strip_prefix("file://") {
            let path = path.strip_prefix("localhost").unwrap_or(path);
            if !path.starts_with('/') {
                let reason = format!("{text}: a file URL needs an absolute path");
                return Err(Error::InvalidOption { option: "source", reason });
            }
            return Ok(Self::File(percent_decode(path).into()));
        }
        if text.is_empty() || text.contains("://") {
            let reason = format!("{}: neither a path nor a URL of a known scheme", shown(text));
            return Err(Error::InvalidOption { option: "source", reason });
        }
        Ok(Self::File(text.into()))
    }
}

impl Source {
    /// Where a pool with `digest` lies beside a pack from this source: `{origin}/v1/pools/{digest}` on a server, `{hex}.pool`
    /// in the folder of a file.
    pub fn pool(&self, digest: Digest) -> Self {
        match self {
            Self::Url(url) => Self::Url(format!("{}/v1/pools/{digest}", origin(url))),
            Self::File(path) => {
                Self::File(path.parent().unwrap_or(Path::new("")).join(format!("{}.pool", digest.hex())))
            }
        }
    }
}

/// Parses a URL and refuses what we would not send a request to.
pub(super) fn checked_url(url: &str, danger_allow_http: bool) -> Result<Uri> {
    let refuse = |reason: &str| Error::Network { url: shown(url), reason: reason.into() };
    let uri: Uri = url.parse().map_err(|_| refuse("not a valid URL"))?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| refuse("the URL has no host"))?;
    match uri.scheme_str() {
        Some("https") => Ok(uri),
        Some("http") if danger_allow_http || is_loopback(host) => Ok(uri),
        Some("http") => Err(refuse("plain http is refused except on the loopback interface")),
        _ => Err(refuse("the URL's scheme is neither https nor http")),
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Scheme, host and port.
pub(super) fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// The target of a redirect from `base`.
pub(super) fn resolve(base: &str, location: &str) -> String {
    if location.contains("://") {
        return location.into();
    }
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{}://{rest}", base.split("://").next().unwrap_or("https"));
    }
    let origin = origin(base);
    if location.starts_with('/') {
        return format!("{origin}{location}");
    }
    let path = base[origin.len()..].split(['?', '#']).next().unwrap_or("");
    let folder = path.rfind('/').map_or("/", |at| &path[..=at]);
    format!("{origin}{folder}{location}")
}

/// The URL as errors and logs may show it: without credentials, and without the query, which may hold a signed token.
pub(super) fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or("");
    let origin = origin(url);
    match (url.split_once("://"), origin.rfind('@')) {
        (Some((scheme, _)), Some(at)) => format!("{scheme}://{}{}", &origin[at + 1..], &url[origin.len()..]),
        _ => url.into(),
    }
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| std::str::from_utf8(tail.get(..2)?).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok()))
            .flatten();
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_urls_or_paths() {
        assert_eq!("https://a/b".parse::<Source>().unwrap(), Source::Url("https://a/b".into()));
        assert_eq!("file:///a%20b/c".parse::<Source>().unwrap(), Source::File("/a b/c".into()));
        assert_eq!("packs/task.pack".parse::<Source>().unwrap(), Source::File("packs/task.pack".into()));
        for bad in ["", "ftp://a/b", "file://relative"] {
            assert!(matches!(bad.parse::<Source>(), Err(Error::InvalidOption { option: "source", .. })), "{bad}");
        }
    }

    #[test]
    fn plain_http_is_refused_except_on_loopback() {
        for url in ["https://example.com/x", "http://127.0.0.1:80/x", "http://[::1]:8080/x", "http://localhost/x"] {
            assert!(checked_url(url, false).is_ok(), "{url}");
        }
        for url in
            ["http://example.com/x", "http://127.0.0.1.example.com/x", "http://localhost.example.com/", "http:///x"]
        {
            assert!(matches!(checked_url(url, false), Err(Error::Network { .. })), "{url}");
        }
        assert!(checked_url("http://example.com/x", true).is_ok());
    }

    #[test]
    fn redirect_targets_resolve_against_the_page() {
        let base = "https://a.example:444/x/y?z=1";
        for (location, target) in [
            ("https://b/c", "https://b/c"),
            ("//b/c", "https://b/c"),
            ("/c", "https://a.example:444/c"),
            ("c?d", "https://a.example:444/x/c?d"),
        ] {
            assert_eq!(resolve(base, location), target);
        }
        assert_eq!(resolve("https://a", "c"), "https://a/c");
    }

    #[test]
    fn shown_urls_hold_no_secrets() {
        assert_eq!(shown("https://me:secret@a.example/x?token=1#f"), "https://a.example/x");
        assert_eq!(shown("https://a.example/x@y"), "https://a.example/x@y");
    }

    #[test]
    fn a_pool_lies_beside_its_pack() {
        let digest = Digest::of(b"");
        assert_eq!(
            Source::Url("https://a:1/v1/packs/x?y".into()).pool(digest),
            Source::Url(format!("https://a:1/v1/pools/{digest}"))
        );
        assert_eq!(
            Source::File("dir/x.pack".into()).pool(digest),
            Source::File(format!("dir/{}.pool", digest.hex()).into())
        );
    }
}
