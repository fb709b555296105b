//! A server on the loopback interface that behaves badly in the ways the scenario needs.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::packs::Packs;

/// More than any disk has.
pub(crate) const HUGE_SIZE_BYTES: u64 = 1 << 50;
const CHUNK_BYTES: usize = 16 << 10;
/// Pause per chunk of a slow answer: about 1 MB/s.
const PAUSE: Duration = Duration::from_millis(15);

/// Starts the server, which lives as long as the process; returns its address, such as `http://127.0.0.1:4711`.
///
/// `/{anything}/good.pack` cuts each connection that asks for the whole file after half of it; `slow.pack` is the same file,
/// slowly, but its rest at once.
pub(crate) fn start(packs: Packs) -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    let packs = Arc::new(packs);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let packs = packs.clone();
            // A client that goes away is part of the scenario.
            std::thread::spawn(move || answer(&packs, stream).ok());
        }
    });
    Ok(url)
}

fn answer(packs: &Packs, mut stream: TcpStream) -> io::Result<()> {
    let Some((path, start)) = read_request(&stream) else { return Ok(()) };
    let (body, cut, pause) = match path.rsplit('/').next() {
        Some("good.pack") => (&packs.good, start == 0, false),
        Some("slow.pack") => (&packs.good, false, start == 0),
        Some("stranger.pack") => (&packs.stranger, false, false),
        Some("other-model.pack") => (&packs.other_model, false, false),
        Some("tampered.pack") => (&packs.tampered, false, false),
        Some("huge.pack") => return write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {HUGE_SIZE_BYTES}\r\n\r\n"),
        _ => return write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    };
    let (size, start) = (body.len(), start.min(body.len()));
    let status = match start {
        0 => "200 OK".to_owned(),
        _ => format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{size}", size - 1),
    };
    let length = size - start;
    write!(stream, "HTTP/1.1 {status}\r\nETag: \"v1\"\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    for chunk in body[start..if cut { size / 2 } else { size }].chunks(CHUNK_BYTES) {
        stream.write_all(chunk)?;
        if pause {
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// The path, and the offset of `Range: bytes=offset-`.
fn read_request(stream: &TcpStream) -> Option<(String, usize)> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let range = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok())
        .last();
    Some((path, range.unwrap_or(0)))
}
