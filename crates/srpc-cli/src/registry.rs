//! What does `srpc registry` do?

use std::net::IpAddr;

use srpc::backend::http::{DEFAULT_PATH, RegistryServer};
use srpc::instance::Address;
use srpc::transport::{Net, Transport};

use crate::args::{self, Shared};
use crate::exit::Exit;
use crate::output;
use crate::signals::{self, Signals};

/// Runs a registry until told to stop.
pub(crate) async fn run(shared: &Shared, args: &args::Registry) -> Result<(), Exit> {
    let bind = &args.bind;
    let listener = Net::default()
        .bind(bind)
        .await
        .map_err(|error| Exit::failed(format!("cannot listen on {bind}: {error}")))?;
    if !is_local(listener.address()) {
        output::note("warning: whoever reaches this registry may register and be sent calls");
    }
    let server = RegistryServer::builder().ttl((!args.ttl.is_zero()).then_some(args.ttl)).build();
    let signals = Signals::new()?;
    output::print_listening(shared.output, &url(listener.address()))?;
    signals::serve_until_told(signals, |stopped| {
        server.serve(listener, async move {
            // Whether told or left alone, it is over.
            let _ = stopped.await;
        })
    })
    .await
}

fn url(address: &Address) -> String {
    match address.host() {
        Some(_) => format!("http://{}{DEFAULT_PATH}", address.target()),
        None => address.to_string(),
    }
}

fn is_local(address: &Address) -> bool {
    match address.host() {
        None | Some("localhost") => true,
        Some(host) => host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_reach_is_told_apart() {
        for (address, local) in [
            ("tcp@127.0.0.1:1", true),
            ("tcp@[::1]:1", true),
            ("tcp@localhost:1", true),
            ("unix@/run/registry.sock", true),
            ("tcp@0.0.0.0:1", false),
            ("tcp@[::]:1", false),
            ("tcp@example.org:1", false),
        ] {
            assert_eq!(is_local(&address.parse().unwrap()), local, "{address}");
        }
        assert_eq!(url(&"tcp@[::1]:9".parse().unwrap()), "http://[::1]:9/srpc/registry");
    }
}
