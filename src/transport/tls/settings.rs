//! What each side of a handshake proves, and by which authorities it checks the other.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, ServerConfig, client};

use super::pem::Reader;
use super::verifier::Named;
use super::{Pem, TlsError};

/// How servers are checked that are dialled, and what this client shows them.
///
/// A server must prove the host that is dialled: a certificate names host names and IP addresses in
/// its subject alternative names. Where instances are registered by addresses that no certificate
/// names, give all of them one name of their own, and say it by [`server_name`](Self::server_name).
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientTls {
    roots: Vec<Pem>,
    own: Option<(Pem, Pem)>,
    server_name: Option<String>,
}

impl ClientTls {
    /// Trusts servers whose certificates are signed by one of these authorities, and no others: the
    /// system's are not looked at.
    pub fn new(authorities: Pem) -> Self {
        Self { roots: vec![authorities], own: None, server_name: None }
    }

    /// Trusts these authorities as well. Default: none but the first.
    pub fn authorities(mut self, more: Pem) -> Self {
        self.roots.push(more);
        self
    }

    /// Shows this certificate to servers that ask for one: a chain with the client's own first, and
    /// its private key (PKCS#8, PKCS#1 or SEC1, not encrypted). Default: none.
    pub fn certificate(mut self, chain: Pem, key: Pem) -> Self {
        self.own = Some((chain, key));
        self
    }

    /// What every server must prove, instead of the host that is dialled: a host name or an IP
    /// address. Default: the host of the address.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }
}

/// What a server shows its clients, and by which authorities it checks them.
#[derive(Clone, Debug)]
#[must_use]
pub struct ServerTls {
    chain: Pem,
    key: Pem,
    client_roots: Vec<Pem>,
    anonymous: bool,
}

impl ServerTls {
    /// Shows this certificate: a chain with the server's own first, and its private key (PKCS#8,
    /// PKCS#1 or SEC1, not encrypted). Clients are not asked for one.
    pub fn new(chain: Pem, key: Pem) -> Self {
        Self { chain, key, client_roots: Vec::new(), anonymous: false }
    }

    /// Lets only clients in whose certificate is signed by one of these authorities (mutual TLS);
    /// given again, by one of these too. Default: clients are not asked.
    pub fn client_ca(mut self, authorities: Pem) -> Self {
        self.client_roots.push(authorities);
        self
    }

    /// Lets clients without a certificate in as well; a wrong one is refused all the same. Without
    /// effect unless there is a [`client_ca`](Self::client_ca). Default: no.
    pub fn anonymous_clients(mut self, allowed: bool) -> Self {
        self.anonymous = allowed;
        self
    }
}

/// One side's settings, which become what a handshake needs.
pub(super) trait Settings {
    type Config;

    /// Reads all that they name.
    fn config(&self, reader: &mut Reader) -> Result<Self::Config, TlsError>;
}

/// What a client's handshake needs.
pub(super) struct Dialling {
    pub(super) config: Arc<ClientConfig>,
    /// What every server must prove; `None`: the host that is dialled.
    pub(super) name: Option<ServerName<'static>>,
}

impl Settings for ClientTls {
    type Config = Dialling;

    fn config(&self, reader: &mut Reader) -> Result<Dialling, TlsError> {
        let name = match &self.server_name {
            Some(name) => Some(
                ServerName::try_from(name.clone())
                    .map_err(|_| TlsError::ServerName(name.clone()))?,
            ),
            None => None,
        };
        let roots = roots(reader, &self.roots)?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&self.roots[0], &error))?
            .with_root_certificates(roots);
        let mut config = match &self.own {
            Some((chain, key)) => builder
                .with_client_auth_cert(reader.certificates(chain)?, reader.key(key)?)
                .map_err(|error| mismatch(chain, key, &error))?,
            None => builder.with_no_client_auth(),
        };
        // Connections live long: each one checks both certificates anew.
        config.resumption = client::Resumption::disabled();
        Ok(Dialling { config: Arc::new(config), name })
    }
}

impl Settings for ServerTls {
    type Config = ServerConfig;

    fn config(&self, reader: &mut Reader) -> Result<ServerConfig, TlsError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&self.chain, &error))?;
        let builder = match self.client_roots.first() {
            None => builder.with_no_client_auth(),
            Some(first) => {
                let roots = Arc::new(roots(reader, &self.client_roots)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let verifier =
                    if self.anonymous { verifier.allow_unauthenticated() } else { verifier };
                let verifier = verifier.build().map_err(|error| unusable(first, &error))?;
                builder.with_client_cert_verifier(Arc::new(Named(verifier)))
            }
        };
        let (chain, key) = (reader.certificates(&self.chain)?, reader.key(&self.key)?);
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| mismatch(&self.chain, &self.key, &error))?;
        // Connections live long: each one checks both certificates anew, and none of a client's is
        // kept beyond its connection.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// Given to each config: the process's default, a global, is left to others.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(reader: &mut Reader, pems: &[Pem]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for pem in pems {
        for certificate in reader.certificates(pem)? {
            roots.add(certificate).map_err(|error| unusable(pem, &error))?;
        }
    }
    Ok(roots)
}

fn unusable(pem: &Pem, reason: &impl ToString) -> TlsError {
    TlsError::Unusable { from: pem.to_string(), reason: reason.to_string() }
}

fn mismatch(chain: &Pem, key: &Pem, error: &rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::Mismatch { certificate: chain.to_string(), key: key.to_string() }
        }
        // Of the two, the certificate is the one whose faults have a type.
        rustls::Error::InvalidCertificate(_) => unusable(chain, error),
        _ => unusable(key, error),
    }
}
