//! What does `srpc registry` do?

use srpc::backend::http::{DEFAULT_PATH, RegistryServer, RegistryServerBuilder};
use srpc::backend::{OpenOptions, masked_url};
use srpc::instance::Address;

use crate::args::{self, REGISTRY_VARIABLE, Shared};
use crate::exit::Exit;
use crate::output;
use crate::signals::{self, Signals};

/// Runs a registry until told to stop.
pub(crate) async fn run(shared: &Shared, args: &args::Registry) -> Result<(), Exit> {
    // In the environment it is there for the other commands.
    if let Some(given) = shared.registry()
        && std::env::var(REGISTRY_VARIABLE).ok().as_deref() != Some(given)
    {
        let given = masked_url(given);
        let why = format!("this starts a registry: to keep all in {given}, give --backend {given}");
        return Err(Exit::usage(why));
    }
    let bind = &args.listening.address(&args.bind)?;
    let builder = RegistryServer::builder().ttl((!args.ttl.is_zero()).then_some(args.ttl));
    let builder = match &args.backend {
        Some(url) => in_front_of(url, shared, args, builder)?,
        None => builder,
    };
    let server =
        args.caps.apply(args.access.apply(bind, args.listening.identifies(), builder)?).build();
    let listener = args.listening.bind(bind).await?;
    let signals = Signals::new()?;
    output::print_listening(shared.output, &url(listener.address()))?;
    let serving = signals::serve_until_told(signals, |stopped| {
        server.clone().serve(listener, async move {
            // Whether told or left alone, it is over.
            let _ = stopped.await;
        })
    });
    tokio::select! {
        ended = serving => ended.map_err(Exit::after_data),
        () = args.access.reload(&server) => Ok(()),
    }
}

/// Keeps all in another registry.
fn in_front_of(
    url: &str,
    shared: &Shared,
    args: &args::Registry,
    builder: RegistryServerBuilder,
) -> Result<RegistryServerBuilder, Exit> {
    if args.ttl.is_zero() {
        return Err(Exit::usage("with --backend nothing lives for ever: give --ttl"));
    }
    let options = OpenOptions::new().timeout(shared.timeout).lease_each(true);
    let opened = options.open(url).map_err(|error| Exit::usage(error.to_string()))?;
    let registry = opened.registry.ok_or_else(|| {
        let url = masked_url(url);
        Exit::usage(format!("{url} is only read: nothing can be registered there"))
    })?;
    // What one request may take, and as long again for its turn.
    let timeout = shared.timeout.saturating_mul(2);
    Ok(builder.backend(opened.discovery, registry).backend_timeout(timeout))
}

fn url(address: &Address) -> String {
    match address.protocol() {
        "tls" => format!("https://{}{DEFAULT_PATH}", address.target()),
        "tcp" => format!("http://{}{DEFAULT_PATH}", address.target()),
        _ => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_what_a_client_is_given() {
        assert_eq!(url(&"tcp@[::1]:9".parse().unwrap()), "http://[::1]:9/srpc/registry");
        assert_eq!(url(&"tls@r:9".parse().unwrap()), "https://r:9/srpc/registry");
        assert_eq!(url(&"unix@/run/r.sock".parse().unwrap()), "unix@/run/r.sock");
    }
}
