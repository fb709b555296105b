//! A server on a free port of the loopback interface, and a client that takes any status.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::Duration;

use edgeweld::CancelToken;
use edgeweld_cloud::serve::{ServeOptions, Server, Store};
use serde_json::Value;

use crate::tiny::Tiny;

pub(crate) struct Running {
    pub(crate) tiny: Tiny,
    pub(crate) url: String,
    pub(crate) stop: CancelToken,
    thread: Option<JoinHandle<edgeweld_cloud::Result<()>>>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: ureq::http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&self.body)))
    }
}

impl Running {
    pub(crate) fn start(options: ServeOptions) -> Self {
        Self::start_with(options, |_| {})
    }

    pub(crate) fn start_with(options: ServeOptions, prepare: impl FnOnce(&Server)) -> Self {
        let tiny = Tiny::new();
        let listener = Server::bind("127.0.0.1:0").unwrap();
        let store = Store::open(&tiny.path("store")).unwrap();
        let options = ServeOptions { edge_file: tiny.edge(), grace: Duration::from_secs(20), ..options };
        let server = Server::new(listener, tiny.publisher(), store, options).unwrap();
        prepare(&server);
        let (url, stop) = (server.url(), CancelToken::new());
        let token = stop.clone();
        Self { tiny, url, stop, thread: Some(std::thread::spawn(move || server.run(&token))) }
    }

    pub(crate) fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send("GET", path, headers, "")
    }

    pub(crate) fn post(&self, body: &Value) -> Answer {
        self.send("POST", "/v1/packs", &[], &body.to_string())
    }

    /// `path` may be a whole URL of this server.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let path = path.strip_prefix(&self.url).unwrap_or(path);
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = match method {
            "POST" | "PUT" => agent.run(request.body(body.to_owned()).unwrap()).unwrap(),
            _ => agent.run(request.body(()).unwrap()).unwrap(),
        };
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, body: response.body_mut().read_to_vec().unwrap() }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.url.strip_prefix("http://").unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Stops the server and returns how `run` ended.
    pub(crate) fn end(&mut self) -> edgeweld_cloud::Result<()> {
        self.stop.cancel();
        self.thread.take().map_or(Ok(()), |thread| thread.join().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Sends bytes as they are and reads until the server says enough or closes.
pub(crate) fn raw(mut stream: TcpStream, request: &str, enough: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    read_until(&mut stream, enough)
}

pub(crate) fn read_until(stream: &mut TcpStream, enough: &str) -> String {
    let (mut text, mut piece) = (String::new(), [0; 4096]);
    while !text.contains(enough) {
        match stream.read(&mut piece).unwrap() {
            0 => break,
            count => text += &String::from_utf8_lossy(&piece[..count]),
        }
    }
    text
}
