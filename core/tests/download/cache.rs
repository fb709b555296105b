//! The cache folder: reuse, damage, eviction, sharing.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use edgeweld::download::{Cache, CachedFile, DownloadProgress};
use edgeweld::{CancelToken, Digest, Result};

use crate::faults::{cache, options};
use crate::server::{Served, Server, content};

fn fetch(cache: &Cache, url: &str, digest: Option<Digest>) -> Result<CachedFile> {
    cache.fetch(url, digest, &options(), &CancelToken::new(), &mut |_: DownloadProgress| {})
}

fn serve(body: &[u8]) -> Server {
    let served = Served::new(body.to_vec());
    Server::start(move |_, request, stream| served.answer(request, stream))
}

#[test]
fn a_known_digest_is_answered_without_the_network() {
    let body = content(1, 10_000);
    let server = serve(&body);
    let (_folder, cache) = cache();
    for _ in 0..3 {
        let file = fetch(&cache, &server.url("/file"), Some(Digest::of(&body))).unwrap();
        assert_eq!((file.digest(), file.read().unwrap()), (Digest::of(&body), body.clone()));
    }
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn an_unknown_digest_is_revalidated_and_not_sent_again() {
    let body = content(2, 10_000);
    let server = serve(&body);
    let (folder, cache) = cache();
    for _ in 0..2 {
        assert_eq!(fetch(&cache, &server.url("/file"), None).unwrap().read().unwrap(), body);
    }
    assert_eq!(server.requests()[1].header("if-none-match"), Some("\"v1\""));
    assert_eq!(fs::read_dir(folder.path().join("partial")).unwrap().count(), 0);
}

#[test]
fn a_damaged_file_is_deleted_and_downloaded_again() {
    let body = content(3, 10_000);
    let server = serve(&body);
    let (_folder, cache) = cache();
    let digest = Digest::of(&body);
    let path = fetch(&cache, &server.url("/file"), Some(digest)).unwrap().path().to_path_buf();
    fs::write(&path, content(4, 10_000)).unwrap();
    assert!(cache.find(digest).unwrap().is_none());
    assert_eq!(fetch(&cache, &server.url("/file"), Some(digest)).unwrap().read().unwrap(), body);
}

/// Leaves a partial file as a killed process would.
fn leave_partial(folder: &std::path::Path, digest: Digest, bytes: &[u8], sidecar: Option<&str>) {
    let path = folder.join("partial").join(format!("{}.part", digest.hex()));
    fs::write(&path, bytes).unwrap();
    if let Some(sidecar) = sidecar {
        fs::write(path.with_extension("json"), sidecar).unwrap();
    }
}

const SIDECAR: &str = r#"{"etag":"\"v1\"","size_bytes":100000}"#;

#[test]
fn a_partial_file_of_an_earlier_run_is_continued() {
    let body = content(5, 100_000);
    let server = serve(&body);
    let (folder, cache) = cache();
    leave_partial(folder.path(), Digest::of(&body), &body[..60_001], Some(SIDECAR));
    assert_eq!(fetch(&cache, &server.url("/file"), Some(Digest::of(&body))).unwrap().read().unwrap(), body);
    assert_eq!(server.requests()[0].range_start(), Some(60_001));
}

#[test]
fn a_complete_partial_file_needs_no_request() {
    let body = content(6, 100_000);
    let server = serve(&body);
    let (folder, cache) = cache();
    leave_partial(folder.path(), Digest::of(&body), &body, Some(SIDECAR));
    assert_eq!(fetch(&cache, &server.url("/file"), Some(Digest::of(&body))).unwrap().read().unwrap(), body);
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn a_damaged_partial_file_is_started_over_once() {
    let body = content(7, 100_000);
    let server = serve(&body);
    let (folder, cache) = cache();
    leave_partial(folder.path(), Digest::of(&body), &[0; 60_000], Some(SIDECAR));
    assert_eq!(fetch(&cache, &server.url("/file"), Some(Digest::of(&body))).unwrap().read().unwrap(), body);
    let ranges: Vec<_> = server.requests().iter().map(|request| request.range_start()).collect();
    assert_eq!(ranges, [Some(60_000), None]);
}

#[test]
fn a_partial_file_without_or_with_a_broken_sidecar_is_dropped() {
    let body = content(8, 100_000);
    for sidecar in [None, Some("{"), Some(r#"{"etag":null,"size_bytes":10}"#)] {
        let server = serve(&body);
        let (folder, cache) = cache();
        leave_partial(folder.path(), Digest::of(&body), &body[..60_000], sidecar);
        assert_eq!(fetch(&cache, &server.url("/file"), Some(Digest::of(&body))).unwrap().read().unwrap(), body);
        assert_eq!(server.requests()[0].range_start(), None, "{sidecar:?}");
    }
}

#[test]
fn eviction_deletes_the_least_recently_used_and_never_what_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 25_000).unwrap();
    let bodies: Vec<_> = (10..13).map(|seed| content(seed, 10_000)).collect();
    let age = |body: &[u8], seconds| {
        let file = fs::File::open(folder.path().join("sha256").join(Digest::of(body).hex())).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    };
    let fetch_body =
        |index: usize| fetch(&cache, &serve(&bodies[index]).url("/file"), Some(Digest::of(&bodies[index])));
    let held = fetch_body(0).unwrap();
    drop(fetch_body(1).unwrap());
    age(&bodies[0], 200);
    age(&bodies[1], 100);
    drop(fetch_body(2).unwrap());
    // 30,000 bytes are too many: the oldest is in use, so the second oldest goes.
    assert!(cache.find(Digest::of(&bodies[1])).unwrap().is_none());
    assert!(cache.find(Digest::of(&bodies[2])).unwrap().is_some());
    assert_eq!(held.read().unwrap(), bodies[0]);
    drop(held);
    age(&bodies[0], 200);
    drop(fetch_body(1).unwrap());
    assert!(cache.find(Digest::of(&bodies[0])).unwrap().is_none(), "released, so evicted");
}

#[test]
fn eviction_counts_abandoned_partial_files() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 25_000).unwrap();
    leave_partial(folder.path(), Digest::of(b"abandoned"), &[0; 20_000], Some(SIDECAR));
    drop(fetch(&cache, &serve(&content(14, 10_000)).url("/file"), None).unwrap());
    let total: u64 = ["partial", "sha256"]
        .iter()
        .flat_map(|name| fs::read_dir(folder.path().join(name)).unwrap())
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(total <= 25_000, "{total} bytes");
}

#[test]
fn threads_that_want_the_same_file_download_it_once() {
    let body = content(15, 100_000);
    let served = Served { pause: Duration::from_millis(10), ..Served::new(body.clone()) };
    let server = Server::start(move |_, request, stream| served.answer(request, stream));
    let (_folder, cache) = cache();
    let (cache, url) = (Arc::new(cache), server.url("/file"));
    let digest = Digest::of(&body);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (cache, url) = (cache.clone(), url.clone());
            std::thread::spawn(move || fetch(&cache, &url, Some(digest)).unwrap().read().unwrap())
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), body);
    }
    assert_eq!(server.requests().len(), 1);
}
