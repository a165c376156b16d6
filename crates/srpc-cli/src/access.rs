//! Whom does `srpc registry` answer?

use std::env::{self, VarError};
use std::path::PathBuf;

use clap::Args;
use srpc::backend::http::{RegistryServer, RegistryServerBuilder, Tokens};
use srpc::instance::Address;

use crate::exit::Exit;
use crate::output;

/// Holds what a file of tokens does.
const TOKENS: &str = "SRPC_TOKENS";

// Who may do what.
#[derive(Debug, Args)]
pub(crate) struct Access {
    /// A file that says who may do what, a line each: NAME SCOPES TOKEN; read again on SIGHUP.
    /// SRPC_TOKENS holds the same, and adds to it
    #[arg(long, env = "SRPC_TOKENS_FILE", value_name = "FILE")]
    tokens_file: Option<PathBuf>,
    /// Listen where others reach the registry although nobody has to show a token
    #[arg(long)]
    insecure: bool,
    /// Let everybody use /srpc/registry without a token: older programs have none to show
    #[arg(long)]
    open_seed_path: bool,
    /// Another name, beside localhost and IP addresses, by which a registry on loopback may be asked
    /// without a token; may be repeated
    #[arg(long, value_name = "HOST")]
    allow_host: Vec<String>,
}

impl Access {
    /// Sets it up, if it may listen there. `identified`: nobody connects without proving who he is.
    pub(crate) fn apply(
        &self,
        bind: &Address,
        identified: bool,
        builder: RegistryServerBuilder,
    ) -> Result<RegistryServerBuilder, Exit> {
        let builder = builder.insecure(self.insecure).open_seed_path(self.open_seed_path);
        let builder =
            self.allow_host.iter().fold(builder, |builder, host| builder.allow_host(host));
        match self.tokens()? {
            Some(tokens) => Ok(builder.tokens(tokens)),
            None if identified => Ok(builder.identified(true)),
            None if bind.is_local() => Ok(builder),
            None if self.insecure => {
                output::note(
                    "warning: whoever reaches this registry may register and be sent calls",
                );
                Ok(builder)
            }
            None => Err(Exit::usage(format!(
                "others reach {bind}, and nobody would have to show a token: give --tokens-file \
                 FILE or set {TOKENS}, or say --insecure"
            ))),
        }
    }

    /// Reads the file again at every SIGHUP. Without a file that signal ends the process, as always.
    #[cfg(unix)]
    pub(crate) async fn reload(&self, server: &RegistryServer) {
        use tokio::signal::unix::{SignalKind, signal};
        if self.tokens_file.is_none() {
            return std::future::pending().await;
        }
        let Ok(mut hangup) = signal(SignalKind::hangup()) else {
            output::note("SIGHUP cannot be waited for: tokens are not read again");
            return std::future::pending().await;
        };
        while hangup.recv().await.is_some() {
            match self.tokens() {
                Ok(Some(tokens)) => {
                    server.replace_tokens(tokens);
                    output::note("the tokens have been read again");
                }
                Ok(None) => {}
                Err(exit) => {
                    output::note(&format!("the tokens stay as they are: {}", exit.message()));
                }
            }
        }
        std::future::pending().await
    }

    /// There is no signal for it here.
    #[cfg(not(unix))]
    pub(crate) async fn reload(&self, _: &RegistryServer) {
        std::future::pending().await
    }

    /// Those of the file and of the environment. An empty list is an error, and not an open door.
    fn tokens(&self) -> Result<Option<Tokens>, Exit> {
        let from_file = self.tokens_file.as_ref().map(|path| {
            let wrong = |error| Exit::usage(format!("{}: {error}", path.display()));
            Tokens::read(path).map_err(wrong)
        });
        let wrong = |error: &dyn std::fmt::Display| Exit::usage(format!("{TOKENS}: {error}"));
        let from_environment = match env::var(TOKENS) {
            Ok(text) => Some(Tokens::parse(&text).map_err(|error| wrong(&error))),
            Err(VarError::NotPresent) => None,
            Err(VarError::NotUnicode(_)) => Some(Err(wrong(&"it is not UTF-8"))),
        };
        match (from_file.transpose()?, from_environment.transpose()?) {
            (Some(file), Some(more)) => file.and(more).map(Some).map_err(|error| wrong(&error)),
            (one, other) => Ok(one.or(other)),
        }
    }
}
