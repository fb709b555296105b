//! What the server refuses, and by which name.

use std::time::Duration;

use edgeweld::Digest;
use edgeweld_cloud::Error;
use edgeweld_cloud::serve::{ServeOptions, Server, Store};
use serde_json::{Value, json};

use crate::serve::body;
use crate::server::{Running, raw};

fn with(field: &str, value: impl Into<Value>) -> String {
    let mut body = body();
    body[field] = value.into();
    body.to_string()
}

#[test]
fn bad_requests_are_refused_by_name() {
    let options = ServeOptions { prompt_size_bytes_max: 100, ..ServeOptions::default() };
    let server = Running::start(options);
    let unknown = Digest::of(b"unknown");
    let pack = server.post(&body()).json()["digest"].as_str().unwrap().to_owned();
    let without_edge = json!({ "system_prompt": "x" }).to_string();
    let get = |path: String| ("GET", path, String::new());
    let post = |body: String| ("POST", "/v1/packs".to_owned(), body);
    let cases = [
        (get(format!("/v1/packs/{unknown}")), 404, "unknown_digest"),
        (get(format!("/v1/pools/{unknown}")), 404, "unknown_digest"),
        (get(format!("/v1/pools/{pack}")), 404, "unknown_digest"),
        (get("/v1/packs/latest".into()), 400, "malformed_digest"),
        (get(format!("/v1/packs/{}", pack.to_uppercase())), 400, "malformed_digest"),
        (get("/v1/packs/..%2F..%2Fkeys%2Fsecret".into()), 400, "malformed_digest"),
        (get("/v1/packs".into()), 405, "method_not_allowed"),
        (get("/".into()), 404, "not_found"),
        (("PUT", format!("/v1/packs/{pack}"), "x".into()), 405, "method_not_allowed"),
        (post(String::new()), 400, "invalid_request"),
        (post("{\"edge\":".into()), 400, "invalid_request"),
        (post("[]".into()), 400, "invalid_request"),
        (post(without_edge), 400, "invalid_request"),
        (post(with("temperature", 1)), 400, "invalid_request"),
        (post(with("payload", "sparse")), 400, "invalid_request"),
        (post(with("system_prompt", 7)), 400, "invalid_request"),
        (post(with("edge", "gemma")), 422, "unknown_edge"),
        (post(with("edge", "")), 422, "unknown_edge"),
        (post(with("system_prompt", " ")), 422, "empty_prompt"),
        (post(with("system_prompt", "a".repeat(50))), 422, "prompt_too_long"),
        (post(with("system_prompt", "a".repeat(101))), 413, "prompt_too_large"),
        (post(with("residual_prompt", "a".repeat(65))), 422, "residual_prompt_too_long"),
        (post(with("labels", json!({ "title": "a".repeat(2000) }))), 422, "invalid_field"),
    ];
    for ((method, path, body), status, name) in cases {
        let answer = server.send(method, &path, &[], &body);
        let json = answer.json();
        assert_eq!((answer.status, &json["error"]), (status, &name.into()), "{method} {path} {body}");
        assert!(json["message"].as_str().is_some_and(|text| !text.is_empty()));
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("cache-control"), "no-store");
    }
    let facts = server.send("POST", "/v1/packs", &[], &with("system_prompt", "a".repeat(50))).json();
    assert_eq!((&facts["actual"], &facts["limit"]), (&51.into(), &40.into()), "fields are facts");
}

#[test]
fn a_wrong_or_missing_token_opens_nothing_but_health() {
    let options = ServeOptions { token: Some(Digest::of(b"0123456789abcdef")), ..ServeOptions::default() };
    let server = Running::start(options);
    let path = format!("/v1/packs/{}", Digest::of(b""));
    for token in ["", "Bearer", "Bearer 0123456789abcdeF", "Basic 0123456789abcdef", "Bearer 0123456789abcdef x"] {
        let answer = server.get(&path, &[("authorization", token)]);
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Bearer"), "{token}");
        assert_eq!(answer.json()["error"], "unauthorized");
        assert_eq!(server.send("POST", "/v1/packs", &[("authorization", token)], "{}").status, 401);
    }
    let answer = server.get(&path, &[("authorization", "bearer 0123456789abcdef")]);
    assert_eq!(answer.json()["error"], "unknown_digest", "the right token passes");
    let health = server.get("/healthz", &[]);
    assert_eq!((health.status, &health.json()["status"]), (200, &"ok".into()));
}

#[test]
fn rejects_bodies_beyond_the_limit_before_reading_them() {
    let server = Running::start(ServeOptions { body_size_bytes_max: 1000, ..ServeOptions::default() });
    let head = "POST /v1/packs HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
    let declared = raw(server.connect(), &format!("{head}Content-Length: 1001\r\n\r\n"), "body_too_large");
    assert!(declared.starts_with("HTTP/1.1 413"), "{declared}");
    let chunk = format!("{head}Transfer-Encoding: chunked\r\n\r\n3e9\r\n{}", "x".repeat(1001));
    let chunked = raw(server.connect(), &chunk, "body_too_large");
    assert!(chunked.starts_with("HTTP/1.1 413") && chunked.contains("\"limit_bytes\":1000"), "{chunked}");
}

#[test]
fn rejects_bodies_that_do_not_arrive_in_time() {
    let server = Running::start(ServeOptions { body_timeout: Duration::from_millis(200), ..ServeOptions::default() });
    let request = "POST /v1/packs HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 10\r\n\r\n{";
    let answer = raw(server.connect(), request, "body_timeout");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[test]
fn rejects_more_requests_than_may_wait() {
    let server = Running::start(ServeOptions { concurrency: 0, queue: 0, ..ServeOptions::default() });
    let answer = server.post(&body());
    assert_eq!((answer.status, &answer.json()["error"]), (503, &"busy".into()));
    assert_eq!(answer.header("retry-after"), "5");
}

#[test]
fn rejects_a_port_in_use_and_a_folder_that_cannot_be() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = Server::bind(&address).unwrap_err();
    assert!(matches!(&error, Error::Listen { address: named, .. } if *named == address), "{error}");
    assert!(matches!(Server::bind("nonsense"), Err(Error::Listen { .. })));
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(Store::open(file.path()), Err(Error::Io { .. })));
}
