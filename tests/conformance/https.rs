//! The HTTP registry over TLS, with certificates on both sides.

#[path = "../support/pki.rs"]
mod pki;

use std::sync::Arc;

use srpc::testing::{discovery_suite, registry_suite};
use srpc::transport::{ClientTls, Memory, ServerTls, Tls};

use self::pki::Authority;
use super::http::{Kind, OverHttp};
use crate::left_out;

#[tokio::test(start_paused = true)]
async fn over_its_own_server() {
    let authority = Authority::new("ours");
    let (chain, key) = authority.issue(&["registry"]).pems();
    let (client_chain, client_key) = authority.issue(&["client"]).pems();
    let network = Tls::server(ServerTls::new(chain, key).client_ca(authority.pem()))
        .client(ClientTls::new(authority.pem()).certificate(client_chain, client_key))
        .over(Arc::new(Memory::new()))
        .build()
        .unwrap();
    let url = "https://registry/srpc/registry";
    let harness = OverHttp::start_at(Kind::Own, Arc::new(network), "tls@registry:443", url).await;
    assert_eq!(left_out(&registry_suite(&harness).await), [""; 0]);
    assert_eq!(left_out(&discovery_suite(&harness).await), [""; 0]);
}
