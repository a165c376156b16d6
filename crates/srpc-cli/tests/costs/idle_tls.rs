//! What does a connection cost over TLS that does nothing?

use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::pki::{Authority, Folder};
use crate::support::Process;
use crate::support::proc::need_files;
use crate::{IDLE, SERVE, connect, idle_cost, turn};

#[test]
#[ignore = "takes 70 s"]
fn five_thousand_idle_tls_connections_cost_64_kib_each_at_most() {
    let _turn = turn();
    need_files(2 * IDLE as u64);
    let (folder, authority) = (Folder::new(), Authority::new("ours"));
    let (chain, key) = (folder.file("server.pem"), folder.file("server.key"));
    authority.issue(&["127.0.0.1"]).write(&chain, &key);
    let [chain, key] = [&chain, &key].map(|path| path.to_str().unwrap());
    let tls = ["--tls-cert", chain, "--tls-key", key, "--max-connections-per-host", "6000"];
    let (server, address) = Process::listening(&[&SERVE[..], &tls].concat());
    let at = address.strip_prefix("tls@").unwrap();

    let config = Arc::new(trusting(&authority));
    let open = || {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let client = ClientConnection::new(Arc::clone(&config), name).unwrap();
        let stream = connect(at);
        // What follows the end of TLS's handshake would wait for an acknowledgement.
        stream.set_nodelay(true).unwrap();
        StreamOwned::new(client, stream)
    };
    let (shaken, called) = idle_cost(&server, open);
    println!("figure idle_tls kib_per_connection={shaken:.1} after_a_call={called:.1}");
    assert!(shaken <= 64.0 && called <= 64.0, "{shaken:.1} KiB, {called:.1} KiB after a call");
}

fn trusting(authority: &Authority) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.text().as_bytes()).unwrap()).unwrap();
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}
