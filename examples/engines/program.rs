//! A program of others, run by a test and ended with it.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use parking_lot::Mutex;

/// A program and the folder that it keeps its data in. Dropping it kills it and removes the folder.
pub(crate) struct Program {
    child: Mutex<Option<Child>>,
    pub(crate) folder: PathBuf,
}

impl Program {
    /// A program that does not run yet.
    pub(crate) fn new(name: &str) -> Self {
        let unique = format!("srpc-{name}-{}-{}", std::process::id(), free_port());
        let folder = std::env::temp_dir().join(unique);
        fs::create_dir_all(&folder).unwrap();
        Self { child: Mutex::new(None), folder }
    }

    /// Runs it. What it says goes to a file in its folder.
    pub(crate) fn run(&self, command: &mut Command, package: &str) {
        let log = fs::File::create(self.folder.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let started = command.spawn();
        let child = started.unwrap_or_else(|error| {
            let program = command.get_program().to_string_lossy().into_owned();
            panic!("{program} does not start ({error}): apt-get install {package}")
        });
        assert!(self.child.lock().replace(child).is_none(), "it runs already");
    }

    /// Ends it as `kill -9` does.
    pub(crate) fn kill(&self) {
        let child = self.child.lock().take();
        if let Some(mut child) = child {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops it, or lets it go on, by `kill -STOP` and `kill -CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.lock().as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// What it has said since it was started last.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.get_mut().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A port that was free a moment ago, for programs that cannot be told to take any.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
