//! From a source to a verified pack, its pool included.

use std::collections::BTreeMap;

use edgeweld::download::{DownloadProgress, PackStore, Source};
use edgeweld::pack::*;
use edgeweld::verify::TrustPolicy;
use edgeweld::{CancelToken, Digest, Error};
use ndarray::{Array3, array};

use crate::faults::{cache, options};
use crate::server::{Served, Server, respond};

fn model() -> ModelIdentity {
    let digest = Digest::of(b"");
    ModelIdentity {
        architecture: "llama".into(),
        quantization: "Q4_0".into(),
        base: digest,
        tokenizer: digest,
        template: None,
    }
}

fn secret() -> SecretKey {
    SecretKey::from_seed(&[3; 32])
}

/// A gates pack of two layers and its pool.
fn gates_pack() -> (Vec<u8>, Vec<u8>) {
    let info = PackInfo {
        model: model(),
        prompt: None,
        residual_prompt: None,
        generator: GeneratorInfo { name: "test".into(), version: "1".into(), settings: BTreeMap::new() },
        quality: vec![],
        labels: BTreeMap::new(),
    };
    let up = ExpertPair { a: Array3::from_elem((2, 1, 4), 0.5), b: Array3::from_elem((2, 6, 1), 0.25) };
    let pool = ExpertPool { alpha: 1.0, gate: None, up: Some(up), down: None };
    let pool_file = write_pool(&pool, 2, Precision::F16, info.clone(), Some(&secret())).unwrap();
    let info = PackInfo { prompt: Some(PromptInfo { digest: Digest::of(b"p"), token_count: 1 }), ..info };
    let gates = Gates { weights: array![[1.0, 0.0], [0.5, 0.5]] };
    let digest = Digest::of(&pool_file);
    let pack = write_gates(&gates, Composition::Average, &pool, digest, info, Some(&secret())).unwrap();
    (pack, pool_file)
}

fn store() -> (tempfile::TempDir, PackStore) {
    let (folder, cache) = cache();
    let trust = TrustPolicy::trusting([secret().public_key()]);
    (folder, PackStore { cache, options: options(), trust, pool_source: None })
}

fn serve() -> (Server, Digest) {
    let (pack, pool) = gates_pack();
    let pool_path = format!("GET /v1/pools/{}", Digest::of(&pool));
    let digest = Digest::of(&pack);
    let (pack, pool) = (Served::new(pack), Served::new(pool));
    let server = Server::start(move |_, request, stream| match &request.line {
        line if *line == pool_path => pool.answer(request, stream),
        line if line.starts_with("GET /v1/packs/") => pack.answer(request, stream),
        _ => respond(stream, "404 Not Found", &[("Content-Length", "0")], b""),
    });
    (server, digest)
}

#[test]
fn a_gates_pack_brings_its_pool_once() {
    let (server, digest) = serve();
    let (_folder, store) = store();
    let source = Source::Url(server.url(&format!("/v1/packs/{digest}")));
    for _ in 0..2 {
        let mut listener = |_: DownloadProgress| {};
        let pack = store.load(&source, Some(digest), &model(), &CancelToken::new(), &mut listener).unwrap();
        assert_eq!(pack.lora().layers.len(), 2);
        assert_eq!(pack.digest(), digest);
    }
    assert_eq!(server.requests().len(), 2, "the second load needs no network");
}

#[test]
fn a_pool_may_come_from_elsewhere() {
    let (server, digest) = serve();
    let (folder, mut store) = store();
    store.pool_source = Some(format!("{}/pool-{{hex}}", folder.path().display()));
    let (_, pool) = gates_pack();
    std::fs::write(folder.path().join(format!("pool-{}", Digest::of(&pool).hex())), &pool).unwrap();
    let source = Source::Url(server.url("/v1/packs/latest"));
    let pack = store.load(&source, None, &model(), &CancelToken::new(), &mut |_: DownloadProgress| {}).unwrap();
    assert_eq!((pack.digest(), server.requests().len()), (digest, 1));
}

#[test]
fn files_are_read_with_their_pool_beside_them_and_within_the_limit() {
    let (folder, mut store) = store();
    let (pack, pool) = gates_pack();
    let path = folder.path().join("task.pack");
    std::fs::write(&path, &pack).unwrap();
    std::fs::write(folder.path().join(format!("{}.pool", Digest::of(&pool).hex())), &pool).unwrap();
    let source: Source = format!("file://{}", path.display()).parse().unwrap();
    let load = |store: &PackStore, digest| {
        store.load(&source, digest, &model(), &CancelToken::new(), &mut |_: DownloadProgress| {})
    };
    assert_eq!(load(&store, None).unwrap().digest(), Digest::of(&pack));
    let other = Digest::of(b"other");
    assert!(matches!(load(&store, Some(other)), Err(Error::DigestMismatch { expected, .. }) if expected == other));
    store.options.size_bytes_max = 100;
    assert!(matches!(load(&store, None), Err(Error::TooLarge { limit_bytes: 100, .. })));
}

#[test]
fn a_download_that_is_no_pack_is_refused() {
    let page = Served::new(b"<html>Please log in to the airport's network</html>".to_vec());
    let server = Server::start(move |_, request, stream| page.answer(request, stream));
    let (_folder, store) = store();
    let source = Source::Url(server.url("/v1/packs/x"));
    let error = store.download(&source, None, &CancelToken::new(), &mut |_: DownloadProgress| {}).unwrap_err();
    assert!(matches!(error, Error::InvalidPack { reason: PackDefect::NotAPack }), "{error}");
}
