//! What may a peer cost a server, in memory, files and time?
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper's failure is the test's")]
#![allow(clippy::disallowed_types, reason = "processes run on the machine's clock")]

#[path = "../../../tests/bad_input/frames.rs"]
mod frames;
#[cfg(feature = "tls")]
#[path = "costs/idle_tls.rs"]
mod idle_tls;
#[cfg(feature = "tls")]
#[path = "../../../tests/support/pki.rs"]
mod pki;
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use frames::{Call, good_hello, named, ping};
use serde_json::json;
use srpc::XClient;
use srpc::backend::static_list::StaticList;
use support::proc::{cpu_time, limit_files, need_files, resident_kib};
use support::{PATIENCE, Process, eventually};

/// Each measures processes: they take turns.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

const SERVE: [&str; 3] = ["serve", "--bind", "127.0.0.1:0"];
const MIB: u64 = 1024;
const HEADER: usize = 16;
const IDLE: usize = 5000;
/// What waits to be written to a connection before no more is read from it.
const WINDOW: u64 = 8 * MIB;
const LARGEST_BODY: u64 = 4 * MIB;

/// A server of the demo service, and where it listens, without the protocol.
fn serve(args: &[&str]) -> (Process, String) {
    let (server, address) = Process::listening(&[&SERVE, args].concat());
    (server, address.strip_prefix("tcp@").unwrap().to_owned())
}

/// The same, where what is resident is what is held.
fn serve_exact() -> (Process, String) {
    let (server, address) = Process::listening_exact(&SERVE);
    (server, address.strip_prefix("tcp@").unwrap().to_owned())
}

fn connect(at: &str) -> TcpStream {
    let stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends the handshake and reads the server's; whether it came.
fn shake_hands(stream: &mut (impl Read + Write)) -> bool {
    let mut answer = good_hello();
    stream.write_all(&answer).is_ok() && stream.read_exact(&mut answer).is_ok()
}

/// Sends a frame that is answered with one, and reads the answer.
fn ask(stream: &mut (impl Read + Write), frame: &[u8]) {
    stream.write_all(frame).unwrap();
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).unwrap();
    let length = u32::from_be_bytes(header[..4].try_into().unwrap());
    stream.read_exact(&mut vec![0; length as usize]).unwrap();
}

/// Opens connections, which shake hands and then do nothing, and tells what each costs the server
/// in KiB: as they are, and once each has made a call.
fn idle_cost<S: Read + Write>(server: &Process, open: impl Fn() -> S) -> (f64, f64) {
    let before = resident_kib(server.id());
    let mut idle: Vec<S> = (0..IDLE)
        .map(|_| {
            let mut stream = open();
            assert!(shake_hands(&mut stream), "no handshake");
            stream
        })
        .collect();
    // Whoever is answered is served.
    idle.iter_mut().for_each(|stream| ask(stream, &ping(b"12345678")));
    let each = |kib: u64| kib.saturating_sub(before) as f64 / IDLE as f64;
    let shaken = each(resident_kib(server.id()));
    idle.iter_mut().for_each(|stream| ask(stream, &Call::sum().frame(1)));
    (shaken, each(resident_kib(server.id())))
}

#[test]
fn five_thousand_idle_connections_cost_16_kib_each_at_most() {
    let _turn = turn();
    need_files(2 * IDLE as u64);
    let (server, at) = serve(&["--max-connections-per-host", "6000"]);
    let (shaken, called) = idle_cost(&server, || connect(&at));
    println!("figure idle_plain kib_per_connection={shaken:.1} after_a_call={called:.1}");
    assert!(shaken <= 16.0 && called <= 16.0, "{shaken:.1} KiB, {called:.1} KiB after a call");
}

#[test]
fn a_large_call_leaves_no_large_connection() {
    const USED: usize = 100;
    let _turn = turn();
    let (server, at) = serve_exact();
    let before = resident_kib(server.id());
    let large = Call::echo(4 << 20);
    let mut used: Vec<TcpStream> = Vec::with_capacity(USED);
    for _ in 0..USED {
        // Opened and used at once: a connection without a handshake is closed after 5 s.
        let mut stream = connect(&at);
        assert!(shake_hands(&mut stream));
        ask(&mut stream, &large.frame(1));
        ask(&mut stream, &Call::sum().frame(2));
        used.push(stream);
    }
    let each = || resident_kib(server.id()).saturating_sub(before) / USED as u64;
    // The buffers of the last replies may still be held.
    eventually(PATIENCE, "128 KiB at most for each connection", || each() <= 128);
    println!("figure after_4_mib kib_per_connection={}", each());
    drop(used);
}

/// Calls `Foo.Echo` with bodies of this many bytes until the server takes no more, reads nothing,
/// and tells by how many KiB the server has grown at most.
fn unread_cost(server: &Process, at: &str, body: usize) -> u64 {
    let mut stream = connect(at);
    assert!(shake_hands(&mut stream));
    // What a body costs whose answer is read is no matter of reading.
    ask(&mut stream, &Call::echo(body).frame(1));
    let before = resident_kib(server.id());
    // Longer than a busy machine keeps a server from running.
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut most = before;
    let mut sent = 0;
    for id in 2.. {
        match stream.write_all(&Call::echo(body).frame(id)) {
            Ok(()) => sent += body as u64 / 1024,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                break;
            }
        }
        assert!(sent < 512 * MIB, "the server takes whatever it is sent");
        most = most.max(resident_kib(server.id()));
    }
    assert!(sent > WINDOW, "{sent} KiB were taken");
    most.max(resident_kib(server.id())) - before
}

#[test]
fn a_client_that_stops_reading_costs_two_windows_and_a_body_at_most() {
    let _turn = turn();
    let bodies = [16 << 10, 256 << 10, 1 << 20, 4 << 20];
    let [small, medium, large, largest] = bodies.map(|body| {
        let (server, at) = serve_exact();
        unread_cost(&server, &at, body)
    });
    let (server, at) = serve(&[]);
    let kept = unread_cost(&server, &at, 4 << 20);
    println!(
        "figure unread_client kib_16k={small} kib_256k={medium} kib_1m={large} kib_4m={largest} \
         resident_kib_4m={kept}"
    );
    let held = small.max(medium).max(large).max(largest);
    // What waits to be written, and as much again of results that wait for room there: those of
    // handlers that had tasks of their own.
    assert!(held <= 2 * WINDOW + LARGEST_BODY + 2 * MIB, "{held} KiB are held");
    // The allocator keeps blocks that are free.
    assert!(kept <= 6 * WINDOW, "{kept} KiB are resident");
}

/// What all connections of a server may hold, and what their read buffers may take beside it.
const ALL_HELD: u64 = 256 * MIB;
const ALL_READ_BUFFERS: u64 = 48 * MIB;

/// Sends the same over many connections, as far as the server takes it, and reads nothing: the server holds no
/// more than it may, and serves others.
fn holds_no_more_than_it_may(name: &str, connections: usize, bytes: &[u8]) {
    let _turn = turn();
    let (server, at) = serve_exact();
    let before = resident_kib(server.id());
    let mut most = before;
    let mut held = Vec::new();
    for _ in 0..connections {
        let mut stream = connect(&at);
        if !shake_hands(&mut stream) {
            continue;
        }
        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        // The rest is not taken, or the connection is closed.
        let _ = stream.write_all(bytes);
        held.push(stream);
        most = most.max(resident_kib(server.id()));
    }
    let grown = most.saturating_sub(before);
    println!("figure {name} connections={connections} kib={grown}");
    assert!(grown <= ALL_HELD + ALL_READ_BUFFERS, "{grown} KiB are held");
    eventually(Duration::from_secs(5), "a call is served", || serves_calls(&at));
}

#[test]
fn half_read_bodies_hold_no_more_than_all_connections_may() {
    let frame = Call::echo(4 << 20).frame(1);
    holds_no_more_than_it_may("half_bodies", 100, &frame[..frame.len() - 90]);
}

#[test]
fn unread_replies_hold_no_more_than_all_connections_may() {
    let frames: Vec<u8> = (1..=3).flat_map(|id| Call::echo(4 << 20).frame(id)).collect();
    holds_no_more_than_it_may("unread_replies", 200, &frames);
}

const WORKERS: usize = 64;

/// Makes calls, 64 at a time.
async fn call(client: &XClient, calls: usize) {
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                for _ in 0..calls / WORKERS {
                    let args = json!({"num1": 1, "num2": 2});
                    assert_eq!(client.call::<_, i64>("Foo.Sum", &args).await.unwrap(), 3);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
}

#[test]
#[ignore = "takes 70 s"]
fn a_million_calls_leave_no_more_than_a_hundred_thousand() {
    let _turn = turn();
    let (server, at) = serve(&[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let list = StaticList::parse(&format!("tcp@{at}")).unwrap();
        let client = XClient::new("Foo", list).unwrap();
        let resident = || [server.id(), std::process::id()].map(resident_kib);
        call(&client, 100_000).await;
        let before = resident();
        let started = Instant::now();
        call(&client, 900_000).await;
        let took = started.elapsed();
        let after = resident();
        let [served, called] = [0, 1].map(|at| after[at] as i64 - before[at] as i64);
        println!(
            "figure million_calls server_kib={} client_kib={} server_growth_kib={served} \
             client_growth_kib={called} calls_per_s={:.0}",
            after[0],
            after[1],
            900_000.0 / took.as_secs_f64()
        );
        assert!(served <= 8 * MIB as i64, "the server: {before:?}, then {after:?} KiB");
        assert!(called <= 8 * MIB as i64, "the client: {before:?}, then {after:?} KiB");
    });
}

const FILES: u64 = 64;
const TOO_MANY: usize = 200;

/// Lets a process open 64 files, connects 200 times, and tells what share of a processor it used
/// then and how soon it served somebody new once those had gone.
fn out_of_files(process: &mut Process, at: &str, serves: impl Fn(&str) -> bool) -> (f64, Duration) {
    limit_files(process.id(), FILES);
    let crowd: Vec<TcpStream> = (0..TOO_MANY).map(|_| connect(at)).collect();
    // The first ones are taken in, and then accepting fails.
    std::thread::sleep(Duration::from_millis(500));
    let (started, used) = (Instant::now(), cpu_time(process.id()));
    std::thread::sleep(Duration::from_secs(2));
    let share = (cpu_time(process.id()) - used).as_secs_f64() / started.elapsed().as_secs_f64();
    assert!(process.is_running());
    let gone = Instant::now();
    drop(crowd);
    eventually(PATIENCE, "it accepts again", || serves(at));
    let again = gone.elapsed();
    assert!(process.is_running());
    (share, again)
}

fn survives_too_many_files(name: &str, process: &mut Process, at: &str, serves: fn(&str) -> bool) {
    eventually(PATIENCE, "it serves", || serves(at));
    let (share, again) = out_of_files(process, at, serves);
    println!(
        "figure out_of_files_{name} cpu_percent={:.1} accepts_again_ms={}",
        share * 100.0,
        again.as_millis()
    );
    assert!(share < 0.2, "it spins: {:.0} % of a processor", share * 100.0);
}

/// Whether somebody new is served, within a second.
fn serves_calls(at: &str) -> bool {
    const REPLY: u8 = 2;
    let mut stream = connect(at);
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    // A refusal comes behind a good handshake.
    let mut header = [0; HEADER];
    shake_hands(&mut stream)
        && stream.write_all(&Call::sum().frame(1)).is_ok()
        && stream.read_exact(&mut header).is_ok()
        && header[4] == REPLY
}

fn serves_http(at: &str) -> bool {
    let mut stream = connect(at);
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let request =
        b"GET /v1/instances?service=Foo HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n";
    let mut answer = String::new();
    stream.write_all(request).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200 ")
}

#[test]
fn a_server_out_of_files_does_not_spin_and_accepts_again() {
    let _turn = turn();
    let (mut server, at) = serve(&[]);
    survives_too_many_files("serve", &mut server, &at, serves_calls);
}

#[test]
fn a_registry_out_of_files_does_not_spin_and_accepts_again() {
    let _turn = turn();
    let (mut registry, url) = Process::listening(&["registry", "--bind", "127.0.0.1:0"]);
    let at = url.trim_start_matches("http://").trim_end_matches("/srpc/registry");
    survives_too_many_files("registry", &mut registry, at, serves_http);
}

const FEW_FILES: u64 = 128;
const CROWD: usize = 340;
/// Shorter than the timeouts of half a frame and of an idle connection. Half a handshake ends sooner in any
/// case: `hostile.rs` tests its eviction, on a paused clock.
const EVICTED_WITHIN: Duration = Duration::from_secs(20);

/// More connections than there are files, which send this and then nothing: somebody new is served.
fn keeps_nobody_out(silent: &[u8]) {
    let _turn = turn();
    let (mut server, address) = Process::listening_with_files(FEW_FILES, &SERVE);
    let at = address.strip_prefix("tcp@").unwrap();
    let crowd: Vec<TcpStream> = (0..CROWD)
        .map(|_| {
            let mut stream = connect(at);
            // What is refused may be closed by now.
            let _ = stream.write_all(silent);
            stream
        })
        .collect();
    eventually(EVICTED_WITHIN, "somebody new is served", || serves_calls(at));
    assert!(server.is_running());
    drop(crowd);
    server.signal("KILL");
    let said = server.finish().stderr;
    assert!(said.contains("connections are capped by the limit of open files"), "{said}");
    assert!(said.contains("too many connections from this host"), "{said}");
    assert!(said.lines().count() < 20, "{said}");
}

#[test]
fn half_frames_at_the_limit_of_files_keep_nobody_out() {
    keeps_nobody_out(&[&good_hello()[..], &[0, 0, 0, 90, 1]].concat());
}

#[test]
fn idle_connections_at_the_limit_of_files_keep_nobody_out() {
    keeps_nobody_out(&good_hello());
}

#[test]
fn half_handshakes_at_the_limit_of_files_keep_nobody_out() {
    keeps_nobody_out(&good_hello()[..7]);
}

const DROPPED: usize = 10_000;
const CONNECTIONS: usize = 10;

/// Ten connections with a thousand calls each that outlast the test.
fn with_calls_in_flight(at: &str) -> Vec<TcpStream> {
    let calls: Vec<Call> = (0..DROPPED / CONNECTIONS).map(|_| Call::wait()).collect();
    let frames = Call::frames(&calls);
    let open = || {
        let mut stream = connect(at);
        assert!(shake_hands(&mut stream));
        stream.write_all(&frames).unwrap();
        stream
    };
    (0..CONNECTIONS).map(|_| open()).collect()
}

/// Waits until the server has this many calls in flight beside the one that asks, and tells how
/// long that took.
fn until_in_flight(stream: &mut TcpStream, id: &mut u64, calls: u32, limit: Duration) -> Duration {
    let started = Instant::now();
    eventually(limit, &format!("{calls} calls are in flight"), || {
        *id += 1;
        stream.write_all(&Call { method: named("Foo.Echo"), ..Call::sum() }.frame(*id)).unwrap();
        let mut reply = [0; HEADER + 10];
        stream.read_exact(&mut reply).unwrap();
        // Behind the status and the class; the call that asks counts.
        let load = u32::from_be_bytes(reply[HEADER + 2..HEADER + 6].try_into().unwrap());
        load.saturating_sub(1) == calls
    });
    started.elapsed()
}

fn ten_thousand_calls_end(name: &str, end: impl Fn(Vec<TcpStream>) -> Vec<TcpStream>) {
    let _turn = turn();
    let (server, at) = serve(&[]);
    let mut observer = connect(&at);
    assert!(shake_hands(&mut observer));
    let mut id = 0;
    let mut round = || {
        let before = resident_kib(server.id());
        let open = with_calls_in_flight(&at);
        until_in_flight(&mut observer, &mut id, DROPPED as u32, PATIENCE);
        let most = resident_kib(server.id());
        let used = cpu_time(server.id());
        let open = end(open);
        let took = until_in_flight(&mut observer, &mut id, 0, PATIENCE);
        let used = cpu_time(server.id()).saturating_sub(used);
        // On a busy machine it takes as long as others let it.
        assert!(used <= Duration::from_secs(1), "{used:?} of a processor");
        (before, most, took, used, open)
    };
    // The first round fills what an allocator keeps for the next; the second must fit in.
    let (cold, ..) = round();
    let (before, most, took, used, _open) = round();
    let after = || resident_kib(server.id());
    // The last of it may still be held.
    eventually(PATIENCE, "memory is given back", || after() <= before + 8 * MIB);
    let after = after();
    println!(
        "figure dropped_calls_{name} none_in_flight_ms={} cpu_ms={} growth_kib={} cold_kib={cold} \
         most_kib={most} after_kib={after}",
        took.as_millis(),
        used.as_millis(),
        after as i64 - before as i64
    );
}

#[test]
fn ten_thousand_calls_whose_connections_close_end_within_a_second() {
    ten_thousand_calls_end("by_close", |open| {
        drop(open);
        Vec::new()
    });
}

#[test]
fn ten_thousand_calls_that_are_cancelled_end_within_a_second() {
    let cancel = |id| frames::frame(frames::CANCEL, 0, id, &[]);
    let cancels: Vec<u8> = (1..=(DROPPED / CONNECTIONS) as u64).flat_map(cancel).collect();
    ten_thousand_calls_end("by_cancel", |mut open| {
        open.iter_mut().for_each(|stream| stream.write_all(&cancels).unwrap());
        open
    });
}
