//! Do servers and clients work with a registry that knows only the contract of one header?
//!
//! The registry here is written from that contract alone: `GET` and `POST` on one path.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper's failure is the test's")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use support::{PATIENCE, Process, eventually, srpc};

const PATH: &str = "/srpc/registry";

/// The registry. Dropping it frees its port and forgets everything.
struct SeedRegistry {
    address: SocketAddr,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    /// How often each address was posted.
    posts: Mutex<BTreeMap<String, usize>>,
    stopped: AtomicBool,
}

impl SeedRegistry {
    fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// Ends it and starts it again, empty, on the same port.
    fn restart(self) -> Self {
        let address = self.address;
        drop(self);
        let mut listener = None;
        eventually(PATIENCE, "the port is free again", || {
            listener = TcpListener::bind(address).ok();
            listener.is_some()
        });
        Self::on(listener.unwrap())
    }

    fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let accepting = std::thread::spawn({
            let state = Arc::clone(&state);
            move || {
                let mut answering = Vec::new();
                for stream in listener.incoming() {
                    if state.stopped.load(SeqCst) {
                        break;
                    }
                    let (Ok(stream), state) = (stream, Arc::clone(&state)) else {
                        continue;
                    };
                    answering.push(std::thread::spawn(move || {
                        // Whoever leaves in the middle gets no answer.
                        let _ = answer(stream, &state);
                    }));
                }
                drop(listener);
                for thread in answering {
                    thread.join().unwrap();
                }
            }
        });
        Self { address, state, accepting: Some(accepting) }
    }

    fn url(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }

    /// How often this address was posted since the start.
    fn posts(&self, address: &str) -> usize {
        self.state.posts.lock().unwrap().get(address).copied().unwrap_or(0)
    }
}

impl Drop for SeedRegistry {
    fn drop(&mut self) {
        self.state.stopped.store(true, SeqCst);
        // Wakes the thread that accepts; it may be gone already.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Reads one request, answers it and closes the connection.
fn answer(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut reader = BufReader::new(stream.try_clone()?.take(64 * 1024));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    std::io::copy(&mut reader.take(length), &mut std::io::sink())?;

    let mut words = request.split(' ');
    let (method, uri) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = uri.split('?').next().unwrap_or("");
    let (status, header) = match (method, path) {
        ("GET", PATH) => {
            let posts = state.posts.lock().unwrap();
            let servers: Vec<&str> = posts.keys().map(String::as_str).collect();
            ("200 OK", format!("Srpc-servers: {}\r\n", servers.join(",")))
        }
        ("POST", PATH) => match headers.get("srpc-servers") {
            Some(address) if !address.is_empty() => {
                *state.posts.lock().unwrap().entry(address.clone()).or_default() += 1;
                ("200 OK", String::new())
            }
            _ => ("500 Internal Server Error", String::new()),
        },
        (_, PATH) => ("405 Method Not Allowed", String::new()),
        _ => ("404 Not Found", "Content-Type: text/plain; charset=utf-8\r\n".to_owned()),
    };
    let body = if status.starts_with("404") { "404 page not found\n" } else { "" };
    let length = body.len();
    let head = format!("{header}Content-Length: {length}\r\nConnection: close\r\n");
    stream.write_all(format!("HTTP/1.1 {status}\r\n{head}\r\n{body}").as_bytes())
}

#[test]
fn a_server_stays_listed_and_is_called_through_a_restart() {
    let registry = SeedRegistry::start();
    let url = registry.url();
    let (server, address) = Process::listening(&[
        "serve",
        "--registry",
        &url,
        "--ttl",
        "3s",
        "--bind",
        "127.0.0.1:0",
        "--drain-delay",
        "0",
    ]);
    eventually(PATIENCE, "three heartbeats have come", || registry.posts(&address) >= 3);
    assert_sum_through(&url);

    let registry = registry.restart();
    assert_eq!(registry.url(), url);
    eventually(PATIENCE, "the server has registered again", || registry.posts(&address) >= 1);
    assert_sum_through(&url);
    eventually(PATIENCE, "heartbeats come again", || registry.posts(&address) >= 3);

    let list = srpc(&["list", "--registry", &url, "-o", "json"]);
    assert_eq!(list.code(), 0, "{}", list.stderr);
    assert_eq!(list.json()[0]["address"], address.as_str());

    server.signal("TERM");
    let ended = server.finish();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
}

fn assert_sum_through(url: &str) {
    let args = ["call", "Foo", "Sum", r#"{"num1":2,"num2":40}"#, "--registry", url];
    let call = srpc(&args);
    assert_eq!((call.code(), call.stdout.trim()), (0, "42"), "{}", call.stderr);
}
