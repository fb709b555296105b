//! A small HTTP server whose every answer is scripted by the test.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Method and target, such as `GET /file`.
    pub(crate) line: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Offset of `Range: bytes=offset-`.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

pub(crate) struct Server {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers the n-th request (from 0) with `answer`, each connection in its own thread, one request each.
    pub(crate) fn start(
        answer: impl Fn(usize, &Request, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (requests.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || {
                    let Ok(mut stream) = stream else { return };
                    let Some(request) = read_request(&stream) else { return };
                    let index = {
                        let mut log = log.lock().unwrap();
                        log.push(request.clone());
                        log.len() - 1
                    };
                    // The client may be gone; that is its right.
                    let _ = answer(index, &request, &mut stream);
                });
            }
        });
        Self { url, requests }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }
}

pub(crate) fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next()?.ok()?;
    let mut headers = HashMap::new();
    for header in lines.map_while(Result::ok).take_while(|header| !header.is_empty()) {
        let (name, value) = header.split_once(':')?;
        headers.insert(name.to_lowercase(), value.trim().to_string());
    }
    let line = line.strip_suffix(" HTTP/1.1").unwrap_or(&line).to_string();
    Some(Request { line, headers })
}

/// Writes a head and then `body`.
pub(crate) fn respond(
    stream: &mut TcpStream,
    status: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    stream.write_all(body)
}

/// A file as a correct server has it.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) body: Vec<u8>,
    pub(crate) etag: &'static str,
    /// Bytes of each answer's body before the connection is cut.
    pub(crate) cut_after: usize,
    /// Pause after each 16 KiB.
    pub(crate) pause: Duration,
}

impl Served {
    pub(crate) fn new(body: Vec<u8>) -> Self {
        Self { body, etag: "\"v1\"", cut_after: usize::MAX, pause: Duration::ZERO }
    }

    pub(crate) fn answer(&self, request: &Request, stream: &mut TcpStream) -> std::io::Result<()> {
        let etag = ("ETag", self.etag);
        if request.header("if-none-match") == Some(self.etag) {
            return respond(stream, "304 Not Modified", &[etag], b"");
        }
        let size = self.body.len();
        let is_same = request.header("if-range").is_none_or(|tag| tag == self.etag);
        let start = request.range_start().filter(|_| is_same);
        if start.is_some_and(|start| start >= size) {
            return respond(stream, "416 Range Not Satisfiable", &[("Content-Range", &format!("bytes */{size}"))], b"");
        }
        let rest = &self.body[start.unwrap_or(0)..];
        let length = rest.len().to_string();
        let length = ("Content-Length", length.as_str());
        match start {
            Some(start) => {
                let range = format!("bytes {start}-{}/{size}", size - 1);
                respond(stream, "206 Partial Content", &[etag, length, ("Content-Range", &range)], b"")?;
            }
            None => respond(stream, "200 OK", &[etag, length], b"")?,
        }
        for chunk in rest[..rest.len().min(self.cut_after)].chunks(16 << 10) {
            stream.write_all(chunk)?;
            std::thread::sleep(self.pause);
        }
        Ok(())
    }
}

/// `size` bytes that differ for every seed and place.
pub(crate) fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..size)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}
