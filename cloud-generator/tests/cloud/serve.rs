//! What a client of the server gets, over loopback.

use std::io::Write;

use edgeweld::download::{Cache, DownloadOptions, DownloadProgress, PackStore, Source};
use edgeweld::pack::{self, RawPack};
use edgeweld::verify::verify;
use edgeweld::{CancelToken, Digest, Error as EdgeError};
use edgeweld_cloud::Error;
use edgeweld_cloud::publish::{Payload, Publisher, PublisherOptions};
use edgeweld_cloud::serve::{ServeOptions, Server};
use serde_json::{Value, json};

use crate::server::{Running, read_until};
use crate::tiny::{PROMPT, Tiny, request, trust};

pub(crate) fn body() -> Value {
    json!({ "edge": "tiny-llama", "system_prompt": PROMPT, "payload": "dense", "labels": { "title": "a test" } })
}

#[test]
fn a_prompt_becomes_a_pack_once_and_is_served_by_digest() {
    let server = Running::start(ServeOptions::default());
    let made = server.post(&body());
    assert_eq!(made.status, 201, "{}", made.json());
    let answer = made.json();
    let file = server.get(answer["url"].as_str().unwrap(), &[]);
    assert_eq!(file.status, 200);
    assert_eq!(answer["digest"], Digest::of(&file.body).to_string());
    assert_eq!(answer["size_bytes"], file.body.len());
    let raw = RawPack::read(file.body).unwrap();
    assert_eq!(answer["manifest"], serde_json::to_value(raw.unverified_manifest().unwrap()).unwrap());
    let model = raw.unverified_manifest().unwrap().model;
    verify(&raw, &trust(), &model, None).unwrap();

    let again = server.post(&body());
    assert_eq!(again.status, 200, "made before");
    assert_eq!(again.json(), answer);
    assert_eq!(made.header("location"), answer["url"]);
}

#[test]
fn the_edges_download_takes_a_gates_pack_and_its_pool_from_the_server() {
    let token = "0123456789abcdef";
    let options = ServeOptions { token: Some(Digest::of(token.as_bytes())), ..ServeOptions::default() };
    let server = Running::start(options);
    let headers = vec![("Authorization".to_owned(), format!("Bearer {token}"))];
    let mut body = body();
    body["payload"] = "gates".into();
    let answer = server.send("POST", "/v1/packs", &[("authorization", &headers[0].1)], &body.to_string());
    assert_eq!(answer.status, 201, "{}", answer.json());
    let answer = answer.json();
    assert!(answer["manifest"]["payload"]["size_bytes"].as_u64().unwrap() <= 1024);

    let publisher = server.tiny.publisher();
    let store = PackStore {
        cache: Cache::open(server.tiny.path("cache"), u64::MAX).unwrap(),
        options: DownloadOptions { headers, ..DownloadOptions::default() },
        trust: trust(),
        pool_source: None,
    };
    let source: Source = answer["url"].as_str().unwrap().parse().unwrap();
    let digest = answer["digest"].as_str().unwrap().parse().unwrap();
    let mut listener = |_: DownloadProgress| {};
    let pack = store.load(&source, Some(digest), publisher.edge(), &CancelToken::new(), &mut listener).unwrap();
    assert!(pack.gates().is_some());
    assert_eq!(answer["pool"]["digest"], Digest::of(publisher.pool_file().unwrap()).to_string());

    // The store's folder is a source, too, without the server.
    let path = server.tiny.path("store").join("sha256").join(format!("{}.pack", digest.hex()));
    let pack = store.load(&Source::File(path), Some(digest), publisher.edge(), &CancelToken::new(), &mut listener);
    assert_eq!(pack.unwrap().digest(), digest);
}

#[test]
fn parts_of_a_file_are_served_and_cached_for_ever() {
    let server = Running::start(ServeOptions::default());
    let answer = server.post(&body()).json();
    let url = answer["url"].as_str().unwrap().to_owned();
    let (etag, size) = (format!("\"{}\"", answer["digest"].as_str().unwrap()), answer["size_bytes"].as_u64().unwrap());
    let whole = server.get(&url, &[]);
    assert_eq!((whole.header("etag"), whole.header("accept-ranges")), (etag.as_str(), "bytes"));
    assert_eq!(whole.header("cache-control"), "public, max-age=31536000, immutable");
    assert_eq!(whole.header("content-length"), size.to_string());

    let part = server.get(&url, &[("range", "bytes=100-"), ("if-range", &etag)]);
    assert_eq!((part.status, &part.body[..]), (206, &whole.body[100..]));
    assert_eq!(part.header("content-range"), format!("bytes 100-{}/{size}", size - 1));
    let part = server.get(&url, &[("range", "bytes=8-15")]);
    assert_eq!((part.status, &part.body[..], part.header("content-length")), (206, &b"EDGEWELD"[..], "8"));
    let other = server.get(&url, &[("range", "bytes=100-"), ("if-range", "\"other\"")]);
    assert_eq!((other.status, other.body.len()), (200, whole.body.len()));
    let cached = server.get(&url, &[("if-none-match", &etag)]);
    assert_eq!((cached.status, cached.body.len(), cached.header("etag")), (304, 0, etag.as_str()));
    let outside = server.get(&url, &[("range", &format!("bytes={size}-"))]);
    assert_eq!((outside.status, outside.header("content-range")), (416, format!("bytes */{size}").as_str()));
    assert_eq!(outside.json()["error"], "range_not_satisfiable");
    let head = server.send("HEAD", &url, &[], "");
    assert_eq!((head.status, head.body.len(), head.header("content-length")), (200, 0, size.to_string().as_str()));
}

#[test]
fn packs_made_elsewhere_are_served_after_the_checks_of_a_device() {
    let other = Tiny::new();
    let made = |publisher: &Publisher, payload| {
        publisher.publish(&[request("made elsewhere", payload)], &CancelToken::new()).unwrap().packs.remove(0).bytes
    };
    let publisher = other.publisher();
    let dense = made(&publisher, Payload::Dense);
    let (generator, cloud, edge) = (other.generator(), other.cloud(), other.edge());
    let options = PublisherOptions { generator, cloud, edge, signer: None, device: Default::default() };
    let unsigned = made(&Publisher::load(options).unwrap(), Payload::Dense);
    let mut tampered = dense.clone();
    *tampered.last_mut().unwrap() ^= 1;
    let mut url = String::new();
    let file = other.path("unsigned.pack");
    std::fs::write(&file, &unsigned).unwrap();
    let server = Running::start_with(ServeOptions::default(), |server: &Server| {
        url = server.publish(dense.clone()).unwrap();
        match server.publish_file(&file) {
            Err(Error::FileRefused { path, source }) => {
                assert_eq!(path, file);
                assert!(matches!(*source, EdgeError::UnsignedPack), "{source}");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(server.publish(unsigned), Err(Error::Edge(EdgeError::UnsignedPack))));
        assert!(matches!(server.publish(tampered), Err(Error::Edge(EdgeError::DigestMismatch { .. }))));
        assert!(matches!(server.publish(b"PK".to_vec()), Err(Error::Edge(EdgeError::InvalidPack { .. }))));
    });
    assert_eq!(server.get(&url, &[]).body, dense);
}

#[test]
fn a_gates_pack_made_elsewhere_needs_its_pool_first() {
    let tiny = Tiny::new();
    let publisher = tiny.publisher();
    // The same experts under another key are another pool file.
    let stranger = pack::SecretKey::from_seed(&[9; 32]);
    let (generator, cloud, edge) = (tiny.generator(), tiny.cloud(), tiny.edge());
    let options = PublisherOptions { generator, cloud, edge, signer: Some(stranger), device: Default::default() };
    let publisher_of_stranger = Publisher::load(options).unwrap();
    let requests = [request("made elsewhere", Payload::Gates)];
    let gates = publisher_of_stranger.publish(&requests, &CancelToken::new()).unwrap().packs.remove(0).bytes;
    let pool = publisher_of_stranger.pool_file().unwrap().to_vec();
    let digest = Digest::of(&pool);
    let server = Running::start_with(ServeOptions::default(), |server: &Server| {
        let error = server.publish(gates.clone()).unwrap_err();
        assert!(matches!(error, Error::Edge(EdgeError::PoolMissing { digest: missing }) if missing == digest));
        server.publish(pool.clone()).unwrap();
        server.publish(gates.clone()).unwrap();
    });
    assert_eq!(server.get(&format!("/v1/pools/{digest}"), &[]).body, pool);
    assert_eq!(server.get(&format!("/v1/pools/{}", Digest::of(publisher.pool_file().unwrap())), &[]).status, 200);
}

#[test]
fn a_stopping_server_finishes_what_is_in_progress() {
    let mut server = Running::start(ServeOptions::default());
    let body = body().to_string();
    let mut stream = server.connect();
    let head = format!(
        "POST /v1/packs HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The server asks for the body, so the request is in progress when the server is told to stop.
    read_until(&mut stream, "100 Continue\r\n\r\n");
    server.stop.cancel();
    stream.write_all(body.as_bytes()).unwrap();
    let answer = read_until(&mut stream, "\"manifest\"");
    assert!(answer.starts_with("HTTP/1.1 201 Created"), "{answer}");
    server.end().unwrap();
    assert!(std::net::TcpStream::connect(server.url.strip_prefix("http://").unwrap()).is_err(), "nobody listens");
}
