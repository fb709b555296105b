//! 220 SIGKILLs at random moments of a download and its cache write. After each, every finished file is whole; at the
//! end a clean run completes. Then processes share one cache while some of them are killed.
//!
//! Has its own `main`, because it starts itself as the process to be killed.

#[path = "../download/server.rs"]
#[allow(dead_code, reason = "shared with the download tests, which use all of it")]
mod server;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use edgeweld::download::{Cache, DownloadOptions, DownloadProgress};
use edgeweld::{CancelToken, Digest};
use server::{Served, Server, content};

const KILLS: usize = 220;

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, mode, folder, url, seeds] = &arguments[..]
        && mode == "child"
    {
        return child(Path::new(folder), url, seeds);
    }
    killed_downloads_resume_and_leave_no_damage();
    killed_processes_do_not_disturb_those_that_share_the_cache();
    println!("download_kills: ok");
}

/// Even files take about 60 ms to arrive, odd ones no time: there the kill falls into hashing, syncing and renaming.
fn file(seed: u64) -> Served {
    if seed.is_multiple_of(2) {
        Served { pause: Duration::from_millis(2), ..Served::new(content(seed, 480_000)) }
    } else {
        Served::new(content(seed, 300_000))
    }
}

fn serve() -> Server {
    Server::start(|_, request, stream| {
        let seed = request.line.rsplit('/').next().and_then(|seed| seed.parse().ok()).unwrap_or(0);
        file(seed).answer(request, stream)
    })
}

/// Downloads the files whose seeds are given, each by its digest.
fn child(folder: &Path, url: &str, seeds: &str) {
    let cache = Cache::open(folder, 1 << 30).unwrap();
    for seed in seeds.split(',') {
        let body = file(seed.parse().unwrap()).body;
        let options = DownloadOptions { backoff_ms: 5, ..DownloadOptions::default() };
        let url = format!("{url}/{seed}");
        let mut listener = |_: DownloadProgress| {};
        let done = cache.fetch(&url, Some(Digest::of(&body)), &options, &CancelToken::new(), &mut listener).unwrap();
        assert_eq!(done.read().unwrap(), body);
    }
}

fn start(folder: &Path, url: &str, seeds: &str) -> Child {
    let program = std::env::current_exe().unwrap();
    Command::new(program)
        .args(["child".as_ref(), folder.as_os_str(), url.as_ref(), seeds.as_ref()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Names tell the truth: no kill may leave a wrong or half file among the finished ones.
fn assert_finished_files_are_whole(folder: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(folder.join("sha256")).into_iter().flatten() {
        let entry = entry.unwrap();
        let digest = Digest::of(&std::fs::read(entry.path()).unwrap());
        assert_eq!(entry.file_name().to_str(), Some(digest.hex().as_str()));
        count += 1;
    }
    count
}

fn random(state: &mut u64, limit: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % limit
}

fn killed_downloads_resume_and_leave_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve();
    let (mut seed, mut killed, mut rounds, mut state) = (0u32, 0, 0, 5);
    while killed < KILLS {
        rounds += 1;
        assert!(rounds < 10 * KILLS, "the children are never killed in time");
        let mut child = start(folder.path(), &server.url("/files"), &seed.to_string());
        let wait_us = random(&mut state, if seed.is_multiple_of(2) { 60_000 } else { 12_000 });
        std::thread::sleep(Duration::from_micros(wait_us));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            // It finished first: on to the next file.
            seed += 1;
        } else {
            killed += 1;
        }
        // Only now and then: hashing all files would be most of the test's time.
        if rounds % 10 == 0 {
            assert_finished_files_are_whole(folder.path());
        }
    }
    let seeds: Vec<_> = (0..=seed).map(|seed| seed.to_string()).collect();
    assert!(start(folder.path(), &server.url("/files"), &seeds.join(",")).wait().unwrap().success());
    assert_eq!(assert_finished_files_are_whole(folder.path()), seed as usize + 1);
    let left = std::fs::read_dir(folder.path().join("partial")).unwrap().count();
    assert_eq!(left, 0, "partial files stayed after a clean run");
    let resumed = server.requests().iter().filter(|request| request.range_start().is_some()).count();
    assert!(resumed > 20, "only {resumed} downloads were resumed");
    println!("{killed} kills, {} files finished, {resumed} requests resumed", seed + 1);
}

fn killed_processes_do_not_disturb_those_that_share_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve();
    let orders = ["0,1,2,3,4,5", "5,4,3,2,1,0", "2,3,0,1,5,4"];
    let mut workers: Vec<_> = orders.iter().map(|seeds| start(folder.path(), &server.url("/files"), seeds)).collect();
    let mut state = 6;
    for round in 0..8 {
        let mut victim = start(folder.path(), &server.url("/files"), orders[round % 3]);
        std::thread::sleep(Duration::from_millis(random(&mut state, 60)));
        victim.kill().unwrap();
        victim.wait().unwrap();
    }
    for worker in &mut workers {
        assert!(worker.wait().unwrap().success());
    }
    assert_eq!(assert_finished_files_are_whole(folder.path()), 6);
}
