//! From a URL to a complete partial file: attempts, resumption, limits, progress.

use std::hash::{BuildHasher, Hasher};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use ureq::{Agent, Body};

use super::http::{self, Answer, Fault, Head, broken, transient};
use super::partial::{Partial, free_bytes};
use super::{DownloadListener, DownloadOptions, DownloadProgress};
use crate::{CancelToken, Digest, Error, Result};

const BACKOFF_MAX: Duration = Duration::from_secs(30);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
const CANCEL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(PartialEq, Eq)]
pub(super) enum Outcome {
    /// The partial file holds the whole file, of the expected digest if there is one.
    Complete,
    /// The server still has what `Validators::cached_etag` names.
    NotModified,
}

pub(super) struct Transfer<'a> {
    pub(super) url: &'a str,
    pub(super) expected: Option<Digest>,
    pub(super) options: &'a DownloadOptions,
    pub(super) cancel: &'a CancelToken,
    pub(super) listener: &'a mut dyn DownloadListener,
    /// Folder whose free space counts.
    pub(super) folder: &'a Path,
}

impl Transfer<'_> {
    pub(super) fn run(&mut self, partial: &mut Partial) -> Result<Outcome> {
        let agent = http::agent(self.options)?;
        let cancel = self.cancel.clone();
        let (finished, is_finished) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            // Blocked in a read, this thread cannot see the token; closing its sockets from outside wakes it.
            let watched = agent.clone();
            scope.spawn(move || {
                while is_finished.recv_timeout(CANCEL_INTERVAL) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    if cancel.is_cancelled() {
                        return watched.shutdown();
                    }
                }
            });
            let outcome = self.attempts(&agent, partial);
            drop(finished);
            // What a closed socket looks like from inside is of no interest to the caller.
            self.cancel.check()?;
            outcome
        })
    }

    fn attempts(&mut self, agent: &Agent, partial: &mut Partial) -> Result<Outcome> {
        let mut meter = Meter::new(partial.len());
        let (mut failures, mut furthest) = (0, partial.len());
        let mut may_start_over = true;
        loop {
            self.cancel.check()?;
            match self.attempt(agent, partial, &mut meter) {
                Ok(outcome) => {
                    let digest = partial.digest();
                    match self.expected.filter(|expected| outcome == Outcome::Complete && *expected != digest) {
                        None => return Ok(outcome),
                        // Bytes from an earlier run may have been damaged on disk; bytes of one piece were sent so.
                        Some(_) if partial.is_resumed && may_start_over => {
                            may_start_over = false;
                            partial.clear()?;
                        }
                        Some(expected) => {
                            partial.clear()?;
                            return Err(Error::DigestMismatch { expected, actual: digest });
                        }
                    }
                }
                Err(Fault::Permanent(error)) => return Err(error),
                Err(Fault::Transient(error, after)) => {
                    // Only bytes beyond all earlier ones count as success, so a server that always starts over and
                    // always fails comes to an end.
                    if partial.len() > furthest {
                        (furthest, failures) = (partial.len(), 0);
                    }
                    if failures == self.options.retries_max {
                        return Err(error);
                    }
                    self.pause(after.unwrap_or_else(|| self.backoff(failures)))?;
                    failures += 1;
                }
            }
        }
    }

    fn attempt(&mut self, agent: &Agent, partial: &mut Partial, meter: &mut Meter) -> Result<Outcome, Fault> {
        if partial.is_complete() {
            return Ok(Outcome::Complete);
        }
        // Without a tag and without a digest, nothing would show that the rest is of another version.
        if partial.validators.etag.is_none() && self.expected.is_none() {
            partial.clear()?;
        }
        let answer = http::request(agent, self.url, partial.len(), &partial.validators, self.options);
        let (response, head) = match answer {
            Ok(Answer::NotModified) => return Ok(Outcome::NotModified),
            Ok(Answer::PastEnd(size)) if size == Some(partial.len()) => return Ok(Outcome::Complete),
            Ok(Answer::PastEnd(_)) => {
                partial.clear()?;
                return Err(transient(self.url, "the file became shorter"));
            }
            Ok(Answer::Whole(response, head)) => {
                self.check_size(0, head.size_bytes)?;
                partial.restart(head.etag.clone(), head.size_bytes)?;
                (response, head)
            }
            Ok(Answer::Rest(response, head)) => {
                self.check_size(partial.len(), head.size_bytes)?;
                partial.learn_size(head.size_bytes)?;
                partial.is_resumed = true;
                (response, head)
            }
            Err(fault) => {
                // A range that the server answers wrongly will be wrong again: start over.
                if matches!(&fault, Fault::Transient(Error::Network { reason, .. }, _) if reason.starts_with("206")) {
                    partial.clear()?;
                }
                return Err(fault);
            }
        };
        if !head.is_delimited && self.expected.is_none() {
            return Err(broken(self.url, "the end of the body cannot be recognised: no length, no chunks, no digest"));
        }
        self.receive(response.into_body(), &head, partial, meter)
    }

    fn receive(
        &mut self,
        mut body: Body,
        head: &Head,
        partial: &mut Partial,
        meter: &mut Meter,
    ) -> Result<Outcome, Fault> {
        let mut reader = body.as_reader();
        let mut buffer = vec![0; 64 << 10];
        self.listener.on_progress(meter.progress(partial.len(), head.size_bytes));
        loop {
            self.cancel.check()?;
            let count = match reader.read(&mut buffer) {
                Ok(count) => count,
                Err(error) => return Err(transient(self.url, &format!("the body was cut: {error}"))),
            };
            if count == 0 {
                break;
            }
            self.check_limit(partial.len() + count as u64)?;
            partial.append(&buffer[..count])?;
            if meter.is_due() {
                self.listener.on_progress(meter.progress(partial.len(), head.size_bytes));
            }
        }
        match head.size_bytes {
            Some(size) if partial.len() < size => Err(transient(self.url, "the body was cut")),
            Some(size) if partial.len() > size => {
                partial.clear()?;
                Err(transient(self.url, "the body was longer than declared"))
            }
            _ => {
                self.listener.on_progress(meter.progress(partial.len(), Some(partial.len())));
                Ok(Outcome::Complete)
            }
        }
    }

    /// Refuses a declared size over the limit or over what the disk has left.
    fn check_size(&self, done: u64, size_bytes: Option<u64>) -> Result<()> {
        let Some(size_bytes) = size_bytes else { return Ok(()) };
        self.check_limit(size_bytes)?;
        let required_bytes = size_bytes - done.min(size_bytes);
        match free_bytes(self.folder) {
            Some(available_bytes) if available_bytes < required_bytes => {
                Err(Error::DiskFull { required_bytes, available_bytes })
            }
            _ => Ok(()),
        }
    }

    fn check_limit(&self, actual_bytes: u64) -> Result<()> {
        let limit_bytes = self.options.size_bytes_max;
        if actual_bytes > limit_bytes { Err(Error::TooLarge { actual_bytes, limit_bytes }) } else { Ok(()) }
    }

    /// Doubling, and between half and all of it at random, so that many devices do not return in step.
    fn backoff(&self, failures: u32) -> Duration {
        let full =
            Duration::from_millis(self.options.backoff_ms).saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
        full.mul_f64(0.5 + 0.5 * (random >> 11) as f64 / (1_u64 << 53) as f64)
    }

    fn pause(&self, duration: Duration) -> Result<()> {
        let end = Instant::now() + duration;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.cancel.check()?;
            std::thread::sleep(left.min(CANCEL_INTERVAL));
        }
        Ok(())
    }
}

/// Rate of the bytes of this run.
struct Meter {
    start: Instant,
    start_bytes: u64,
    last: Instant,
}

impl Meter {
    fn new(start_bytes: u64) -> Self {
        Self { start: Instant::now(), start_bytes, last: Instant::now() }
    }

    fn is_due(&self) -> bool {
        self.last.elapsed() >= PROGRESS_INTERVAL
    }

    fn progress(&mut self, bytes_done: u64, bytes_total: Option<u64>) -> DownloadProgress {
        self.last = Instant::now();
        // A restart from zero goes below the start.
        self.start_bytes = self.start_bytes.min(bytes_done);
        let received = (bytes_done - self.start_bytes) as f64;
        let bytes_per_second = received / self.start.elapsed().as_secs_f64().max(1e-3);
        DownloadProgress { bytes_done, bytes_total, bytes_per_second }
    }
}
