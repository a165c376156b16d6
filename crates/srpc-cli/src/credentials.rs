//! What does the command show to a registry?

use std::env::{self, VarError};
use std::path::PathBuf;

use clap::Args;
use srpc::backend::http::Token;

use crate::exit::Exit;

/// Holds the token itself.
const TOKEN: &str = "SRPC_TOKEN";

// Who asks. A secret is never an argument: every process of the machine can read those.
#[derive(Debug, Args)]
pub(crate) struct Credentials {
    /// A file with the token that is shown to the registry; without it SRPC_TOKEN is
    #[arg(long, env = "SRPC_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Credentials {
    /// The token, if there is one: the file's, or else the environment's.
    pub(crate) fn token(&self) -> Result<Option<Token>, Exit> {
        if let Some(path) = &self.token_file {
            let wrong = |error| Exit::usage(format!("{}: {error}", path.display()));
            return Token::read(path).map(Some).map_err(wrong);
        }
        match env::var(TOKEN) {
            Err(VarError::NotPresent) => Ok(None),
            Ok(text) if text.is_empty() => Ok(None),
            Ok(text) => Token::new(&text)
                .map(Some)
                .map_err(|error| Exit::usage(format!("{TOKEN}: {error}"))),
            Err(VarError::NotUnicode(_)) => Err(Exit::usage(format!("{TOKEN}: it is not UTF-8"))),
        }
    }
}
