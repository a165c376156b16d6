//! What does `srpc serve` do?

use srpc::Server;
use srpc::backend::masked_url;
use srpc::registry::Registrar;

use crate::args::{self, Shared};
use crate::exit::Exit;
use crate::signals::{self, Signals};
use crate::{demo, output, target};

/// Runs the demo service until told to stop.
pub(crate) async fn run(shared: &Shared, args: &args::Serve) -> Result<(), Exit> {
    if args.bind.is_unspecified() && args.advertise.is_none() && shared.registry().is_some() {
        return Err(Exit::usage(format!(
            "{} cannot be dialled by others: name an address that can with --advertise",
            args.bind
        )));
    }
    let server = with_registry(with_limits(server(args), args), shared, args)?;
    let listener = args.listening.bind(&args.listening.address(&args.bind)?).await?;
    let signals = Signals::new()?;
    output::print_listening(shared.output, listener.address().as_str())?;
    signals::serve_until_told(signals, |stopped| {
        server.serve(listener, async move {
            // Whether told or left alone, it is over.
            let _ = stopped.await;
        })
    })
    .await
    .map_err(Exit::after_data)
}

fn server(args: &args::Serve) -> Server {
    let (zone, weight, meta) = (args.zone.clone(), args.weight, args.meta.clone());
    Server::new().service(demo::service(&args.service)).instance(move |instance| {
        let mut instance = instance.weight(weight).version(env!("CARGO_PKG_VERSION"));
        if let Some(zone) = &zone {
            instance = instance.zone(zone.clone());
        }
        meta.iter()
            .fold(instance, |instance, (key, value)| instance.meta(key.clone(), value.clone()))
    })
}

fn with_limits(mut server: Server, args: &args::Serve) -> Server {
    if let Some(delay) = args.drain_delay {
        server = server.drain_delay(delay);
    }
    if let Some(grace) = args.grace {
        server = server.grace(grace);
    }
    if let Some(concurrency) = &args.concurrency {
        server = server.concurrency(concurrency.clone());
    }
    if let Some(connections) = args.max_connections_per_host {
        server = server.max_connections_per_host(connections.try_into().unwrap_or(usize::MAX));
    }
    server
}

fn with_registry(mut server: Server, shared: &Shared, args: &args::Serve) -> Result<Server, Exit> {
    if let Some(urls) = shared.registry() {
        let transport = args.dialling.transport()?;
        let opened = target::open(urls, shared.timeout, &args.credentials, transport)?;
        let registry = opened.registry.ok_or_else(|| {
            let urls = masked_url(urls);
            Exit::usage(format!("{urls} is only read: nothing can be registered there"))
        })?;
        server = server.registrar(Registrar::builder(registry).ttl(args.ttl).build());
    }
    if let Some(address) = &args.advertise {
        server = server.advertise(args.listening.address(address)?);
    }
    Ok(server)
}
