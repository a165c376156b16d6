//! What is said about certificates, and the transport that follows from it.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use srpc::transport::{ClientTls, Net, Pem, ServerTls, Tls, TlsBuilder, Transport};

use crate::exit::Exit;

pub(crate) const LACKS_AUTHORITY: &str =
    "an authority to check the server by is missing: give --tls-ca FILE, or set SRPC_TLS_CA";
pub(super) const LACKS_CERTIFICATE: &str =
    "TLS needs a certificate to listen with: give --tls-cert FILE and --tls-key FILE";

// What is listened with. A key is in a file: every process of the machine can read arguments.
#[derive(Debug, Args)]
pub(crate) struct Listening {
    /// Speak TLS, with the chain of certificates in this file (PEM; read again when it changes)
    #[arg(long, env = "SRPC_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The file with its private key
    #[arg(long, env = "SRPC_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let only clients in whose certificate an authority in this file has signed
    #[arg(long, env = "SRPC_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
}

impl Listening {
    /// Whether clients must prove who they are.
    pub(crate) fn identifies(&self) -> bool {
        self.tls_client_ca.is_some()
    }

    pub(super) fn is_given(&self) -> bool {
        self.tls_cert.is_some()
    }

    /// Reads the files.
    pub(super) fn transport(&self) -> Result<Arc<dyn Transport>, Exit> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return Ok(Arc::new(Net::default()));
        };
        let mut server = ServerTls::new(Pem::file(certificate), Pem::file(key));
        if let Some(authorities) = &self.tls_client_ca {
            server = server.client_ca(Pem::file(authorities));
        }
        built(Tls::server(server))
    }
}

// What is dialled with.
#[derive(Debug, Args)]
pub(crate) struct Dialling {
    /// Trust servers and registries whose certificate an authority in this file has signed (PEM)
    #[arg(long, env = "SRPC_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The chain of certificates that is shown to those that ask for one
    #[arg(long, env = "SRPC_TLS_CLIENT_CERT", value_name = "FILE",
        requires_all = ["tls_ca", "tls_client_key"])]
    tls_client_cert: Option<PathBuf>,
    /// The file with its private key
    #[arg(long, env = "SRPC_TLS_CLIENT_KEY", value_name = "FILE", requires = "tls_client_cert")]
    tls_client_key: Option<PathBuf>,
}

impl Dialling {
    /// Reads the files.
    pub(crate) fn transport(&self) -> Result<Arc<dyn Transport>, Exit> {
        let Some(authorities) = &self.tls_ca else {
            return Ok(Arc::new(Net::default()));
        };
        let mut client = ClientTls::new(Pem::file(authorities));
        if let (Some(certificate), Some(key)) = (&self.tls_client_cert, &self.tls_client_key) {
            client = client.certificate(Pem::file(certificate), Pem::file(key));
        }
        built(Tls::client(client))
    }
}

fn built(tls: TlsBuilder) -> Result<Arc<dyn Transport>, Exit> {
    match tls.build() {
        Ok(tls) => Ok(Arc::new(tls)),
        Err(error) => Err(Exit::usage(error.to_string())),
    }
}
