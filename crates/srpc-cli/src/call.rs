//! What does `srpc call` do?

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use srpc::call::Codec;
use srpc::discovery::Resolver;
use srpc::{Address, Call, Error, Reply, XClient};
use tokio::time::Instant;

use crate::args::{self, Shared};
use crate::exit::Exit;
use crate::output::{self, Format};
use crate::target::{self, Target};

/// A server says that it listens a little before the registry knows it, and scripts call it then.
const APPEARING: Duration = Duration::from_secs(1);

/// Makes one call, or one to each instance, and prints what was answered.
pub(crate) async fn run(shared: &Shared, args: &args::Call) -> Result<(), Exit> {
    let argument = target::argument(&args.json)?;
    let transport = args.dialling.transport()?;
    let target = Target::parse(shared, &args.credentials, transport, &args.target, &args.method)?;
    let deadline = Instant::now() + shared.timeout;
    let mut call = Call::new(target.method().to_owned())
        .args_in(&Codec::Json, &*argument)?
        // The earlier of the two holds, and the client's default is a timeout.
        .timeout(shared.timeout)
        .deadline(deadline)
        .idempotent(args.idempotent);
    for (key, value) in &args.meta {
        call = call.metadata(key.as_str(), value.as_str())?;
    }
    if let Some(key) = &args.hash_key {
        call = call.hash_key(key);
    }
    let resolver = target.resolver(args.hash_key.is_some());
    target.first_instance(&resolver, deadline, APPEARING).await?;
    let client = XClient::with_resolver(resolver.clone()).transport(target.transport()).build()?;
    let ended = if args.broadcast {
        broadcast(&client, &resolver, call, shared.output).await
    } else {
        one(&client, call).await
    };
    client.close().await;
    ended
}

async fn one(client: &XClient, call: Call) -> Result<(), Exit> {
    let reply = client.send(call).await?;
    output::print(&output::inert(result_of(&reply)?.get()))
}

async fn broadcast(
    client: &XClient,
    resolver: &Resolver,
    call: Call,
    format: Format,
) -> Result<(), Exit> {
    let legs = client.gather_call(call).await?;
    for endpoint in resolver.snapshot().endpoints.iter() {
        let instance = endpoint.instance();
        if !legs.iter().any(|(address, _)| *address == instance.address) {
            output::note(&format!("left out: {} ({})", instance.address, instance.health));
        }
    }
    let legs: Vec<(Address, Result<Box<RawValue>, Error>)> = legs
        .into_iter()
        .map(|(address, reply)| (address, reply.and_then(|reply| result_of(&reply))))
        .collect();
    let outcomes: Vec<Outcome<'_>> = legs.iter().map(Outcome::of).collect();
    match format {
        Format::Json => output::print_json(&outcomes)?,
        Format::Jsonl => outcomes.iter().try_for_each(output::print_json)?,
        Format::Table | Format::Wide | Format::Name => output::print(&table(&outcomes))?,
    }
    let failures: Vec<&Error> = legs.iter().filter_map(|(_, reply)| reply.as_ref().err()).collect();
    if failures.is_empty() { Ok(()) } else { Err(Exit::broadcast(&failures, legs.len())) }
}

/// The result's JSON, as the service wrote it.
fn result_of(reply: &Reply) -> Result<Box<RawValue>, Error> {
    reply.decode()
}

/// What became of a broadcast at one instance.
#[derive(Serialize)]
struct Outcome<'a> {
    address: &'a str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure<'a>>,
}

#[derive(Serialize)]
struct Failure<'a> {
    kind: &'static str,
    execution: &'static str,
    message: &'a str,
}

impl<'a> Outcome<'a> {
    fn of((address, reply): &'a (Address, Result<Box<RawValue>, Error>)) -> Self {
        Self {
            address: address.as_str(),
            ok: reply.is_ok(),
            reply: reply.as_deref().ok(),
            error: reply.as_ref().err().map(|error| Failure {
                kind: error.kind().as_str(),
                execution: error.execution().as_str(),
                message: error.message(),
            }),
        }
    }
}

fn table(outcomes: &[Outcome<'_>]) -> String {
    let cells = |outcome: &Outcome<'_>| {
        let (state, result) = match (&outcome.reply, &outcome.error) {
            (Some(reply), _) => ("ok", reply.get().to_owned()),
            (None, Some(error)) => {
                let (kind, execution) = (error.kind, error.execution);
                ("failed", format!("{kind}, {execution}: {}", error.message))
            }
            (None, None) => ("failed", String::new()),
        };
        vec![outcome.address.to_owned(), state.to_owned(), result]
    };
    let rows: Vec<Vec<String>> = outcomes.iter().map(cells).collect();
    output::table(&["ADDRESS", "STATE", "RESULT"], &rows)
}
