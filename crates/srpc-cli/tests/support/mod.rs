//! Real processes of the command, ended with the test that started them.
#![allow(dead_code, reason = "each file of tests uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper's failure is the test's")]
#![allow(clippy::disallowed_types, reason = "processes run on the machine's clock")]

#[cfg(target_os = "linux")]
pub(crate) mod proc;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long anything may take that is expected to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running command. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    /// Reads stderr to its end.
    stderr: Option<JoinHandle<()>>,
    /// What was said on stderr so far.
    said: Arc<Mutex<Vec<u8>>>,
    /// What was said on stdout so far.
    stdout: String,
}

/// A command that has ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Process {
    /// Starts `srpc` with these arguments.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::spawn(args, &[], Stdio::null())
    }

    /// The same with these variables in its environment.
    pub(crate) fn start_in(environment: &[(&str, &str)], args: &[&str]) -> Self {
        Self::spawn(args, environment, Stdio::null())
    }

    /// Starts a server and waits for its first line, of which the address is returned.
    pub(crate) fn listening(args: &[&str]) -> (Self, String) {
        Self::try_listening(args).unwrap_or_else(|ended| {
            panic!("`srpc {}` ended with {}: {}", args.join(" "), ended.status, ended.stderr)
        })
    }

    /// Like [`listening`](Self::listening), where glibc gives large blocks back to the system as
    /// soon as they are free: what is resident is what is held.
    pub(crate) fn listening_exact(args: &[&str]) -> (Self, String) {
        let mut command = Command::new(binary());
        command.args(args).env("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072");
        let mut process = Self::run(&mut command, Stdio::null());
        let address = process.address();
        (process, address)
    }

    /// Like [`listening`](Self::listening), by a process that may open this many files.
    #[cfg(target_os = "linux")]
    pub(crate) fn listening_with_files(files: u64, args: &[&str]) -> (Self, String) {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={files}:{files}")).arg(binary()).args(args);
        let mut process = Self::run(&mut command, Stdio::null());
        let address = process.address();
        (process, address)
    }

    /// Like [`listening`](Self::listening), for a port that may still be taken.
    pub(crate) fn try_listening(args: &[&str]) -> Result<(Self, String), Ended> {
        Self::try_listening_in(&[], args)
    }

    /// The same with these variables in its environment.
    pub(crate) fn try_listening_in(
        environment: &[(&str, &str)],
        args: &[&str],
    ) -> Result<(Self, String), Ended> {
        let mut process = Self::start_in(environment, args);
        match process.first_address() {
            Some(address) => Ok((process, address)),
            None => Err(process.finish()),
        }
    }

    /// Waits for its first line, which tells where it listens.
    pub(crate) fn address(&mut self) -> String {
        self.first_address().expect("it ends at once")
    }

    fn first_address(&mut self) -> Option<String> {
        let line = self.line()?;
        let address = line.strip_prefix("listening on ").map(str::to_owned);
        Some(address.unwrap_or_else(|| panic!("the first line is {line:?}")))
    }

    /// The next line of stdout; `None` if it ended.
    pub(crate) fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                self.stdout.push_str(&line);
                self.stdout.push('\n');
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line within {PATIENCE:?}"),
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What it has said on stderr so far.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap()).into_owned()
    }

    /// Sends it a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").arg(format!("-{name}")).arg(pid).status().unwrap();
        assert!(sent.success(), "kill -{name}: {sent}");
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it ends by itself, at most the usual time.
    pub(crate) fn finish(self) -> Ended {
        self.finish_within(PATIENCE)
    }

    /// Waits until it ends by itself.
    pub(crate) fn finish_within(mut self, limit: Duration) -> Ended {
        let mut status = None;
        eventually(limit, "the command ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        while self.line().is_some() {}
        if let Some(reader) = self.stderr.take() {
            reader.join().unwrap();
        }
        Ended {
            status: status.unwrap(),
            stdout: std::mem::take(&mut self.stdout),
            stderr: self.said(),
        }
    }

    fn spawn(args: &[&str], environment: &[(&str, &str)], stdin: Stdio) -> Self {
        let mut command = Command::new(binary());
        Self::run_in(command.args(args), environment, stdin)
    }

    /// Starts a command that runs `srpc` in the end.
    pub(crate) fn run(command: &mut Command, stdin: Stdio) -> Self {
        Self::run_in(command, &[], stdin)
    }

    fn run_in(command: &mut Command, environment: &[(&str, &str)], stdin: Stdio) -> Self {
        let mut child = command
            .env_remove("SRPC_REGISTRY")
            .env_remove("SRPC_LOG")
            .env_remove("SRPC_TOKEN")
            .env_remove("SRPC_TOKEN_FILE")
            .env_remove("SRPC_TOKENS")
            .env_remove("SRPC_TOKENS_FILE")
            .env_remove("SRPC_TLS_CERT")
            .env_remove("SRPC_TLS_KEY")
            .env_remove("SRPC_TLS_CLIENT_CA")
            .env_remove("SRPC_TLS_CA")
            .env_remove("SRPC_TLS_CLIENT_CERT")
            .env_remove("SRPC_TLS_CLIENT_KEY")
            .envs(environment.iter().copied())
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let said = Arc::<Mutex<Vec<u8>>>::default();
        let saying = Arc::clone(&said);
        let stderr = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            // What was said before a failure is all there is.
            while let Ok(read @ 1..) = stderr.read(&mut chunk) {
                saying.lock().unwrap().extend_from_slice(&chunk[..read]);
            }
        });
        Self { child, lines, stderr: Some(stderr), said, stdout: String::new() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The exit code; -1 if a signal ended it.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// The whole of stdout as one JSON value.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!("{error}: stdout is {:?}, stderr {:?}", self.stdout, self.stderr)
        })
    }
}

/// The command that is tested; `SRPC_TEST_BINARY` names another build of it.
pub(crate) fn binary() -> String {
    std::env::var("SRPC_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_srpc").to_owned())
}

/// Runs `srpc` to its end.
pub(crate) fn srpc(args: &[&str]) -> Ended {
    Process::start(args).finish()
}

/// Runs `srpc` to its end with this on its standard input.
pub(crate) fn srpc_reading(stdin: &str, args: &[&str]) -> Ended {
    let mut process = Process::spawn(args, &[], Stdio::piped());
    let mut pipe = process.child.stdin.take().unwrap();
    pipe.write_all(stdin.as_bytes()).unwrap();
    drop(pipe);
    process.finish()
}

/// Waits until `condition` holds, and fails by `what` if it does not within `limit`.
pub(crate) fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The addresses that a registry lists for `service`, as the command prints them.
pub(crate) fn listed(registry: &str, service: &str) -> Vec<String> {
    let list = srpc(&["list", service, "--registry", registry, "-o", "name"]);
    assert_eq!(list.code(), 0, "{}", list.stderr);
    list.stdout.lines().map(str::to_owned).collect()
}

/// Waits until a registry lists `n` instances of `service`.
pub(crate) fn wait_for(registry: &str, service: &str, n: usize) {
    eventually(PATIENCE, &format!("{n} instances of {service} are listed"), || {
        listed(registry, service).len() == n
    });
}

/// A port of 127.0.0.1 where nobody listens.
pub(crate) fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
