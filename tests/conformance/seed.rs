//! A registry that knows the old contract alone: one path, one header, addresses and their times.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use srpc::Listener;
use srpc::transport::Stream;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long an address is kept after it was last sent.
pub(super) const TTL: Duration = Duration::from_secs(20);

type Seen = Arc<Mutex<BTreeMap<String, Instant>>>;

/// Serves until it is dropped, and all its connections with it.
pub(super) async fn serve(mut listener: Listener) {
    let seen = Seen::default();
    let mut connections = JoinSet::new();
    while let Ok(stream) = listener.accept().await {
        connections.spawn(converse(stream, Arc::clone(&seen)));
    }
}

/// Answers one request after the other.
async fn converse(stream: Stream, seen: Seen) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = Request::read(&mut stream).await? {
        stream.write_all(answer(&request, &seen).as_bytes()).await?;
        stream.flush().await?;
    }
    Ok(())
}

#[derive(Default)]
struct Request {
    method: String,
    path: String,
    servers: String,
}

impl Request {
    async fn read(stream: &mut BufReader<Stream>) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let method = words.next().unwrap_or_default();
        let target = words.next().unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let mut request = Self { method, path, servers: String::new() };
        let mut body = 0;
        loop {
            line.clear();
            stream.read_line(&mut line).await?;
            let Some((name, value)) = line.split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "srpc-servers" => request.servers = value.trim().to_owned(),
                "content-length" => body = value.trim().parse().unwrap_or_default(),
                _ => {}
            }
        }
        stream.read_exact(&mut vec![0; body]).await?;
        Ok(Some(request))
    }
}

fn answer(request: &Request, seen: &Seen) -> String {
    if request.path != "/srpc/registry" {
        return response("404 Not Found", "Content-Type: text/plain\r\n", "404 page not found\n");
    }
    let mut seen = seen.lock();
    match request.method.as_str() {
        "POST" if request.servers.is_empty() => response("500 Internal Server Error", "", ""),
        "POST" => {
            seen.insert(request.servers.clone(), Instant::now());
            response("200 OK", "", "")
        }
        "GET" => {
            seen.retain(|_, at| at.elapsed() < TTL);
            let alive: Vec<&str> = seen.keys().map(String::as_str).collect();
            response("200 OK", &format!("Srpc-Servers: {}\r\n", alive.join(",")), "")
        }
        _ => response("405 Method Not Allowed", "", ""),
    }
}

fn response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}
