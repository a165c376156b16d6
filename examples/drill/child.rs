//! A process of the drill, from its parent's side.

use std::fs::File;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{self, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::Fallible;
use crate::netns::Network;
use crate::roles::{self, Role};

/// How long anything may take that a process does when told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process of the drill. It is killed when this is dropped, and ends by itself when its standard
/// input closes, as it does if the drill itself is killed.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) name: String,
    pid: u32,
    process: process::Child,
    orders: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// The number of the last order.
    ordered: u64,
}

impl Child {
    /// Starts a process, in its own network namespace if there is one. What it says on standard
    /// error goes into a file `NAME.log` in `dir`.
    pub(crate) fn start(
        name: &str,
        role: &Role,
        zero: u64,
        dir: &Path,
        network: Option<(&Network, usize)>,
    ) -> Fallible<Self> {
        let program = std::env::current_exe()?;
        let mut command = match network {
            Some((network, host)) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &network.namespace(host)]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args([roles::WORD, &serde_json::to_string(role)?, &zero.to_string()]);
        let log = File::create_new(dir.join(format!("{name}.log")))?;
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // An interrupt is for the drill alone, which then ends its processes.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = process.id().ok_or("it has ended at once")?;
        let orders = process.stdin.take().ok_or("no standard input")?;
        let stdout = process.stdout.take().ok_or("no standard output")?;
        let lines = BufReader::new(stdout).lines();
        Ok(Self { name: name.to_owned(), pid, process, orders, lines, ordered: 0 })
    }

    /// Waits for a line that begins with this word; tells the rest of it.
    pub(crate) async fn says(&mut self, word: &str) -> Fallible<String> {
        let said = async {
            loop {
                let line = self.lines.next_line().await?;
                let line = line.ok_or_else(|| format!("{} has ended; see its log", self.name))?;
                match line.strip_prefix(word) {
                    Some(rest) => return Ok(rest.trim_start().to_owned()),
                    // The late answer to an order that was given up.
                    None => continue,
                }
            }
        };
        let late = || format!("{} did not say {word:?} within {PATIENCE:?}", self.name);
        match timeout(PATIENCE, said).await {
            Ok(said) => said,
            Err(_) => Err(late().into()),
        }
    }

    /// Gives an order and waits for the answer.
    pub(crate) async fn ask(&mut self, order: &str) -> Fallible<String> {
        self.ordered += 1;
        let number = self.ordered.to_string();
        let line = format!("{number} {order}\n");
        timeout(PATIENCE, self.orders.write_all(line.as_bytes())).await??;
        self.says(&format!("{number} ")).await
    }

    /// Sends a signal, such as `STOP`.
    pub(crate) async fn signal(&self, signal: &str) -> Fallible<()> {
        // The shell's own `kill` is everywhere.
        let command = format!("kill -{signal} {}", self.pid);
        let mut command = Command::new("sh").args(["-c", &command]).kill_on_drop(true).spawn()?;
        let status = timeout(PATIENCE, command.wait()).await??;
        if !status.success() {
            return Err(format!("{} cannot be sent {signal}: {status}", self.name).into());
        }
        Ok(())
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub(crate) async fn kill(mut self) -> Fallible<()> {
        Ok(timeout(PATIENCE, self.process.kill()).await??)
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(mut self) -> Fallible<ExitStatus> {
        let status = timeout(PATIENCE, self.process.wait()).await;
        let late = |_| format!("{} did not end within {PATIENCE:?}", self.name);
        Ok(status.map_err(late)??)
    }

    /// Whether it has ended although nobody told it to.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }
}
