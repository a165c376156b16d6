//! What do connections go over, TLS or plain sockets?

// The same names without the feature: their arguments are gone, and what needs TLS says so.
#[cfg_attr(feature = "tls", path = "tls/on.rs")]
#[cfg_attr(not(feature = "tls"), path = "tls/off.rs")]
mod gate;

use std::sync::Arc;

use srpc::backend::masked_url;
use srpc::instance::{Address, InvalidAddress};
use srpc::transport::{Listener, Transport};

use self::gate::LACKS_CERTIFICATE;
pub(crate) use self::gate::{Dialling, LACKS_AUTHORITY, Listening};
use crate::exit::Exit;

impl Listening {
    /// Where to listen: with a certificate, TCP is TLS.
    pub(crate) fn address(&self, given: &Address) -> Result<Address, Exit> {
        match (given.protocol(), self.is_given()) {
            ("tls", false) => Err(Exit::usage(format!("{given}: {LACKS_CERTIFICATE}"))),
            ("tcp", true) => with_tls(given).map_err(|error| Exit::usage(error.to_string())),
            ("tls", true) | (_, false) => Ok(given.clone()),
            (_, true) => Err(Exit::usage(format!("{given}: a certificate is for tls@host:port"))),
        }
    }

    /// Listens at what [`address`](Self::address) has answered.
    pub(crate) async fn bind(&self, address: &Address) -> Result<Listener, Exit> {
        self.transport()?
            .bind(address)
            .await
            .map_err(|error| Exit::failed(format!("cannot listen on {address}: {error}")))
    }
}

/// Says what is missing if one of these addresses or URLs, separated by commas, is one of TLS and
/// the transport does not speak it.
pub(crate) fn check(transport: &Arc<dyn Transport>, several: &str) -> Result<(), Exit> {
    let is_tls = |one: &str| {
        let start = one.trim_start().to_ascii_lowercase();
        start.starts_with("https://") || start.starts_with("tls@")
    };
    match several.split(',').find(|one| is_tls(one)) {
        Some(one) if !transport.speaks("tls") => {
            let one = one.trim();
            // In an address `@` ends the protocol.
            let one = if one.contains("://") { masked_url(one) } else { one.to_owned() };
            Err(Exit::usage(format!("{one}: {LACKS_AUTHORITY}")))
        }
        _ => Ok(()),
    }
}

fn with_tls(address: &Address) -> Result<Address, InvalidAddress> {
    // Port 0 is an address to bind.
    Address::to_bind(&format!("tls@{}", address.target()))
}

#[cfg(test)]
mod tests {
    use srpc::transport::Net;

    use super::*;

    #[test]
    fn without_tls_what_is_missing_is_named() {
        let plain: Arc<dyn Transport> = Arc::new(Net::default());
        for (several, is_tls) in [
            ("http://a,HTTPS://b/r", true),
            ("https://u:secret@b/r?t=secret", true),
            ("tls@a:1,tcp@b:1", true),
            ("http://a,http://https", false),
            ("tcp@tls:1", false),
        ] {
            let told = check(&plain, several).map_err(|exit| exit.message().to_owned());
            assert_eq!(told.is_err(), is_tls, "{several}: {told:?}");
            let told = told.err().unwrap_or_default();
            assert!(!is_tls || told.ends_with(LACKS_AUTHORITY), "{several}: {told}");
            assert!(!told.contains("secret"), "{told}");
        }
    }
}
