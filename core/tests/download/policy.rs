//! Where requests may go and what they may carry.

use std::io::{Read, Write};
use std::net::TcpStream;

use edgeweld::download::{DownloadOptions, DownloadProgress};
use edgeweld::{CancelToken, Error, Result};

use crate::faults::{cache, options};
use crate::server::{Served, Server, content, read_request, respond};

fn fetch(url: &str, options: &DownloadOptions) -> Result<Vec<u8>> {
    let (_folder, cache) = cache();
    cache.fetch(url, None, options, &CancelToken::new(), &mut |_: DownloadProgress| {})?.read()
}

fn with_token() -> DownloadOptions {
    DownloadOptions { headers: vec![("Authorization".into(), "Bearer secret".into())], ..options() }
}

fn redirect(stream: &mut TcpStream, location: &str) -> std::io::Result<()> {
    respond(stream, "302 Found", &[("Location", location), ("Content-Length", "0")], b"")
}

#[test]
fn headers_follow_a_redirect_within_the_origin_and_not_beyond() {
    let body = content(1, 5000);
    let served = Served::new(body.clone());
    let other = Server::start(move |_, request, stream| served.answer(request, stream));
    let target = other.url("/elsewhere");
    let server = Server::start(move |_, request, stream| {
        redirect(stream, if request.line == "GET /file" { "second" } else { &target })
    });
    assert_eq!(fetch(&server.url("/file"), &with_token()).unwrap(), body);
    let own = server.requests();
    assert_eq!((own[0].line.as_str(), own[1].line.as_str()), ("GET /file", "GET /second"));
    assert!(own.iter().all(|request| request.header("authorization") == Some("Bearer secret")));
    assert_eq!(other.requests()[0].line, "GET /elsewhere");
    assert_eq!(other.requests()[0].header("authorization"), None, "the token leaked to another origin");
}

#[test]
fn redirects_are_limited() {
    let server = Server::start(|_, _, stream| redirect(stream, "/again"));
    let error = fetch(&server.url("/file"), &DownloadOptions { redirects_max: 3, ..options() }).unwrap_err();
    assert!(matches!(&error, Error::Network { reason, .. } if reason == "too many redirects"), "{error}");
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn plain_http_beyond_loopback_is_refused_also_as_a_redirect() {
    let error = fetch("http://192.0.2.1/file", &options()).unwrap_err();
    assert!(matches!(&error, Error::Network { reason, .. } if reason.contains("plain http")), "{error}");
    let server = Server::start(|_, _, stream| redirect(stream, "http://192.0.2.1/file"));
    let error = fetch(&server.url("/file"), &options()).unwrap_err();
    assert!(matches!(&error, Error::Network { reason, .. } if reason.contains("plain http")), "{error}");
}

#[test]
fn requests_go_through_the_proxy() {
    let body = content(2, 5000);
    let served = Served::new(body.clone());
    // A CONNECT proxy that answers in the target's place.
    let proxy = Server::start(move |_, request, stream| {
        if !request.line.starts_with("CONNECT target.example:80") {
            return respond(stream, "400 Bad Request", &[("Content-Length", "0")], b"");
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        let inner = read_request(stream).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        served.answer(&inner, stream)
    });
    let options = DownloadOptions { proxy: Some(proxy.url.clone()), danger_allow_http: true, ..options() };
    assert_eq!(fetch("http://target.example/file", &options).unwrap(), body);
    let error =
        fetch("http://target.example/file", &DownloadOptions { proxy: Some("::".into()), ..options }).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "proxy", .. }), "{error}");
}

#[test]
fn an_encoded_body_is_refused() {
    let server = Server::start(|_, _, stream| {
        respond(stream, "200 OK", &[("Content-Encoding", "gzip"), ("Content-Length", "3")], b"abc")
    });
    let error = fetch(&server.url("/file"), &options()).unwrap_err();
    assert!(matches!(&error, Error::Network { reason, .. } if reason.contains("encoded")), "{error}");
    assert_eq!(server.requests()[0].header("accept-encoding"), Some("identity"));
}

#[test]
fn answers_that_are_no_http_end_as_a_network_error() {
    let server = Server::start(|_, _, stream| {
        stream.write_all(b"220 mail.example ESMTP\r\n")?;
        stream.read(&mut [0; 16]).map(drop)
    });
    assert!(matches!(fetch(&server.url("/file"), &options()), Err(Error::Network { .. })));
}
