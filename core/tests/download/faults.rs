//! What servers and networks do wrong.

use std::io::{Read, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use edgeweld::download::{Cache, DownloadOptions, DownloadProgress};
use edgeweld::{CancelToken, Digest, Error, Result};

use crate::server::{Served, Server, content, respond};

/// Short waits; everything else as shipped.
pub(crate) fn options() -> DownloadOptions {
    DownloadOptions { backoff_ms: 5, stall_timeout_ms: 300, ..DownloadOptions::default() }
}

pub(crate) fn cache() -> (tempfile::TempDir, Cache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 1 << 30).unwrap();
    (folder, cache)
}

fn fetch(cache: &Cache, url: &str, digest: Option<Digest>, options: &DownloadOptions) -> Result<Vec<u8>> {
    cache.fetch(url, digest, options, &CancelToken::new(), &mut |_: DownloadProgress| {})?.read()
}

/// Downloads `body` from a server that answers as `answer` says, and must succeed.
fn arrives(
    body: &[u8],
    answer: impl Fn(usize, &crate::server::Request, &mut std::net::TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> Server {
    let server = Server::start(answer);
    let (_folder, cache) = cache();
    let read = fetch(&cache, &server.url("/file"), Some(Digest::of(body)), &options()).unwrap();
    assert_eq!(read, body);
    server
}

#[test]
fn a_cut_body_is_resumed_with_range_and_if_range() {
    let body = content(1, 200_000);
    let served = Served { cut_after: 70_000, ..Served::new(body.clone()) };
    let server = arrives(&body, move |_, request, stream| served.answer(request, stream));
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    assert_eq!((requests[0].range_start(), requests[0].header("if-range")), (None, None));
    for request in &requests[1..] {
        assert!(request.range_start().unwrap() >= 65_536, "{request:?}");
        assert_eq!(request.header("if-range"), Some("\"v1\""));
    }
}

#[test]
fn more_cuts_than_retries_succeed_as_long_as_each_brings_new_bytes() {
    let body = content(2, 2_000_000);
    let served = Served { cut_after: 150_000, ..Served::new(body.clone()) };
    let server = arrives(&body, move |_, request, stream| served.answer(request, stream));
    assert!(server.requests().len() > 10);
}

#[test]
fn a_changed_etag_restarts_the_file() {
    let body = content(3, 200_000);
    let old = Served { cut_after: 70_000, etag: "\"old\"", ..Served::new(content(4, 200_000)) };
    let new = Served { etag: "\"new\"", ..Served::new(body.clone()) };
    let server = arrives(
        &body,
        move |index, request, stream| {
            if index == 0 { old.answer(request, stream) } else { new.answer(request, stream) }
        },
    );
    assert_eq!(server.requests()[1].header("if-range"), Some("\"old\""));
}

#[test]
fn a_server_that_ignores_ranges_sends_the_whole_file() {
    let body = content(5, 200_000);
    let (cut, whole) = (Served { cut_after: 70_000, ..Served::new(body.clone()) }, Served::new(body.clone()));
    arrives(&body, move |index, request, stream| {
        let request = crate::server::Request { headers: Default::default(), ..request.clone() };
        if index == 0 { cut.answer(&request, stream) } else { whole.answer(&request, stream) }
    });
}

#[test]
fn a_206_with_another_range_is_not_appended() {
    let body = content(6, 200_000);
    let (cut, rest) = (Served { cut_after: 70_000, ..Served::new(body.clone()) }, body.clone());
    let server = arrives(&body, move |index, request, stream| match index {
        0 => cut.answer(request, stream),
        1 => {
            let range = format!("bytes 100-{}/{}", rest.len() - 1, rest.len());
            respond(stream, "206 Partial Content", &[("Content-Range", &range), ("ETag", "\"v1\"")], &rest[100..])
        }
        _ => Served::new(rest.clone()).answer(request, stream),
    });
    assert_eq!(server.requests()[2].range_start(), None, "a server with wrong ranges is asked for the whole file");
}

#[test]
fn a_206_of_another_version_is_not_appended() {
    let body = content(7, 200_000);
    let (cut, whole) = (Served { cut_after: 70_000, ..Served::new(body.clone()) }, Served::new(body.clone()));
    // A server that ignores If-Range, which is why the answer's own tag is compared too.
    let other = Served { etag: "\"v2\"", ..Served::new(content(8, 200_000)) };
    arrives(&body, move |index, request, stream| match index {
        0 => cut.answer(request, stream),
        1 => {
            let mut request = request.clone();
            request.headers.remove("if-range");
            other.answer(&request, stream)
        }
        _ => whole.answer(request, stream),
    });
}

#[test]
fn a_416_because_the_file_became_shorter_starts_over() {
    let body = content(9, 50_000);
    let long = Served { cut_after: 70_000, ..Served::new(content(10, 200_000)) };
    let short = Served::new(body.clone());
    arrives(
        &body,
        move |index, request, stream| {
            if index == 0 { long.answer(request, stream) } else { short.answer(request, stream) }
        },
    );
}

#[test]
fn a_416_at_the_end_of_a_complete_file_finishes_it() {
    let body = content(11, 70_000);
    let bytes = body.clone();
    // The first answer never says how long the file is, and ends without its last chunk.
    let server = arrives(&body, move |index, request, stream| {
        if index > 0 {
            return Served::new(bytes.clone()).answer(request, stream);
        }
        respond(stream, "200 OK", &[("Transfer-Encoding", "chunked"), ("ETag", "\"v1\"")], b"")?;
        stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes())?;
        stream.write_all(&bytes)?;
        stream.write_all(b"\r\n")
    });
    assert_eq!(server.requests()[1].range_start(), Some(70_000));
}

#[test]
fn a_503_is_retried_when_the_server_says() {
    let body = content(12, 1000);
    let served = Served::new(body.clone());
    let start = Instant::now();
    let server = arrives(&body, move |index, request, stream| match index {
        0 => respond(stream, "503 Service Unavailable", &[("Retry-After", "1"), ("Content-Length", "0")], b""),
        1 => respond(stream, "429 Too Many Requests", &[("Content-Length", "0")], b""),
        _ => served.answer(request, stream),
    });
    assert_eq!(server.requests().len(), 3);
    assert!(start.elapsed() >= Duration::from_secs(1), "Retry-After was not honoured");
}

#[test]
fn a_retry_after_of_hours_ends_the_download() {
    let server = Server::start(|_, _, stream| {
        respond(stream, "503 Service Unavailable", &[("Retry-After", "7200"), ("Content-Length", "0")], b"")
    });
    let (_folder, cache) = cache();
    let error = fetch(&cache, &server.url("/file"), None, &options()).unwrap_err();
    assert!(matches!(error, Error::HttpStatus { status: 503, .. }), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_503_that_stays_ends_after_the_retries() {
    let server =
        Server::start(|_, _, stream| respond(stream, "503 Service Unavailable", &[("Content-Length", "0")], b""));
    let (_folder, cache) = cache();
    let options = DownloadOptions { retries_max: 3, ..options() };
    let error = fetch(&cache, &server.url("/file"), None, &options).unwrap_err();
    assert!(matches!(error, Error::HttpStatus { status: 503, .. }), "{error}");
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn a_404_is_not_retried() {
    let server = Server::start(|_, _, stream| respond(stream, "404 Not Found", &[("Content-Length", "0")], b""));
    let (_folder, cache) = cache();
    let error = fetch(&cache, &server.url("/file?token=secret"), None, &options()).unwrap_err();
    assert!(matches!(&error, Error::HttpStatus { status: 404, url } if !url.contains("secret")), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_tls_fault_is_not_retried() {
    // Speaks plain HTTP where TLS is expected.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/file", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = respond(&mut stream, "400 Bad Request", &[], b"");
        }
    });
    let (_folder, cache) = cache();
    let slow = DownloadOptions { backoff_ms: 60_000, ..options() };
    let start = Instant::now();
    let error = fetch(&cache, &url, None, &slow).unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10), "the fault was retried");
}

#[test]
fn a_refused_connection_ends_as_a_network_error_after_the_retries() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_folder, cache) = cache();
    let error = fetch(&cache, &format!("http://{free}/file"), None, &options()).unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
}

#[test]
fn a_stalled_body_times_out_and_is_resumed() {
    let body = content(13, 200_000);
    let (stalls, good) = (body.clone(), Served::new(body.clone()));
    let server = arrives(&body, move |index, request, stream| {
        if index > 0 {
            return good.answer(request, stream);
        }
        let length = stalls.len().to_string();
        respond(stream, "200 OK", &[("Content-Length", &length), ("ETag", "\"v1\"")], &stalls[..100_000])?;
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    });
    assert!(server.requests()[1].range_start().is_some());
}

#[test]
fn a_declared_size_over_the_limit_is_refused_before_the_body() {
    let server = Server::start(|_, _, stream| respond(stream, "200 OK", &[("Content-Length", "1001")], &[0; 10]));
    let (_folder, cache) = cache();
    let options = DownloadOptions { size_bytes_max: 1000, ..options() };
    let error = fetch(&cache, &server.url("/file"), None, &options).unwrap_err();
    assert!(matches!(error, Error::TooLarge { actual_bytes: 1001, limit_bytes: 1000 }), "{error}");
}

#[test]
fn an_endless_body_stops_at_the_limit() {
    let server = Server::start(|_, _, stream| {
        respond(stream, "200 OK", &[("Transfer-Encoding", "chunked")], b"")?;
        loop {
            stream.write_all(b"1000\r\n")?;
            stream.write_all(&[7; 0x1000])?;
            stream.write_all(b"\r\n")?;
        }
    });
    let (folder, cache) = cache();
    let options = DownloadOptions { size_bytes_max: 1 << 20, ..options() };
    let error = fetch(&cache, &server.url("/file"), None, &options).unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit_bytes: 0x10_0000, .. }), "{error}");
    assert_eq!(std::fs::read_dir(folder.path().join("partial")).unwrap().count(), 0, "the bytes stayed");
}

#[test]
fn a_length_longer_than_the_body_ends_as_a_network_error() {
    let server = Server::start(|_, _, stream| respond(stream, "200 OK", &[("Content-Length", "5000")], &[1; 4000]));
    let (_folder, cache) = cache();
    let error = fetch(&cache, &server.url("/file"), None, &options()).unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
}

#[test]
fn a_length_shorter_than_the_file_is_a_digest_mismatch() {
    let body = content(14, 5000);
    let digest = Digest::of(&body);
    let server = Server::start(move |_, _, stream| respond(stream, "200 OK", &[("Content-Length", "4000")], &body));
    let (folder, cache) = cache();
    let error = fetch(&cache, &server.url("/file"), Some(digest), &options()).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { expected, .. } if expected == digest), "{error}");
    assert_eq!(server.requests().len(), 1);
    for name in ["partial", "sha256"] {
        assert_eq!(std::fs::read_dir(folder.path().join(name)).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn a_body_whose_end_cannot_be_seen_is_refused_unless_the_digest_is_known() {
    let body = content(15, 5000);
    let bytes = body.clone();
    let server = Server::start(move |_, _, stream| respond(stream, "200 OK", &[], &bytes));
    let (_folder, cache) = cache();
    assert!(matches!(fetch(&cache, &server.url("/file"), None, &options()), Err(Error::Network { .. })));
    assert_eq!(fetch(&cache, &server.url("/file"), Some(Digest::of(&body)), &options()).unwrap(), body);
}

#[test]
fn a_file_larger_than_the_disk_is_refused_before_the_body() {
    let server =
        Server::start(|_, _, stream| respond(stream, "200 OK", &[("Content-Length", "1152921504606846976")], b""));
    let (_folder, cache) = cache();
    let options = DownloadOptions { size_bytes_max: u64::MAX, ..options() };
    let error = fetch(&cache, &server.url("/file"), None, &options).unwrap_err();
    assert!(matches!(error, Error::DiskFull { required_bytes, .. } if required_bytes == 1 << 60), "{error}");
}

#[test]
fn cancelling_ends_a_stalled_download_at_once_and_keeps_its_bytes() {
    let body = content(16, 200_000);
    let (started, has_started) = mpsc::channel();
    let (bytes, good) = (body.clone(), Served::new(body.clone()));
    let server = Server::start(move |index, request, stream| {
        if index > 0 {
            return good.answer(request, stream);
        }
        let length = bytes.len().to_string();
        respond(stream, "200 OK", &[("Content-Length", &length), ("ETag", "\"v1\"")], &bytes[..100_000])?;
        started.send(()).unwrap();
        std::thread::sleep(Duration::from_secs(20));
        Ok(())
    });
    let (_folder, cache) = cache();
    let patient = DownloadOptions { stall_timeout_ms: 60_000, ..options() };
    let cancel = CancelToken::new();
    let token = cancel.clone();
    let canceller = std::thread::spawn(move || {
        has_started.recv().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        token.cancel();
        Instant::now()
    });
    let digest = Digest::of(&body);
    let result = cache.fetch(&server.url("/file"), Some(digest), &patient, &cancel, &mut |_: DownloadProgress| {});
    let delay = canceller.join().unwrap().elapsed();
    assert!(matches!(result, Err(Error::Cancelled)));
    assert!(delay < Duration::from_secs(1), "cancelling took {delay:?}");
    assert_eq!(fetch(&cache, &server.url("/file"), Some(digest), &options()).unwrap(), body);
    assert!(server.requests()[1].range_start().unwrap() > 0);
}

#[test]
fn progress_counts_up_to_the_total() {
    let served = Served { pause: Duration::from_millis(20), ..Served::new(content(17, 300_000)) };
    let server = Server::start(move |_, request, stream| served.answer(request, stream));
    let (_folder, cache) = cache();
    let mut seen = Vec::new();
    let mut listener = |progress: DownloadProgress| seen.push(progress);
    cache.fetch(&server.url("/file"), None, &options(), &CancelToken::new(), &mut listener).unwrap();
    assert!(seen.len() >= 3 && seen.is_sorted_by(|a, b| a.bytes_done <= b.bytes_done), "{seen:?}");
    let last = seen.last().unwrap();
    assert_eq!((last.bytes_done, last.bytes_total), (300_000, Some(300_000)));
    // 300 kB in 19 steps of 20 ms.
    assert!((1e5..1e6).contains(&last.bytes_per_second), "{last:?}");
}
