//! The cluster: a registry, three servers and two clients, each on a host of its own.

use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use srpc::backend::http::{HttpRegistry, RegistryServer};
use srpc::client::ConnectionSettings;
use srpc::discovery::{Endpoint, OutlierEjection, Resolver};
use srpc::instance::InstanceId;
use srpc::registry::Registrar;
use srpc::transport::Transport;
use srpc::xclient::Retry;
use srpc::{Address, Call, Error, Instance, Server, Service, XClient};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use turmoil::Builder;

use super::ledger::{Ledger, Outcome, answer};
use super::plan::{CLIENTS, Fault, HEALED, REGISTRY, SERVERS};
use super::transport::Simulated;

/// How long a call may take.
pub(crate) const DEADLINE: Duration = Duration::from_millis(1500);

const SECOND: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(10);
/// How long after the last fault everybody must be listed and called again. The longest way there:
/// a registrar's request hangs (1 s) and is tried again (1 s); a client's poll hangs (2 + 1 s) and
/// is made again (2 s); a connection that lost a message is silent for 4 s before it is dialled
/// anew; an ejection lasts 2.4 s, and its probes 1 s each.
const MENDED: Duration = Duration::from_secs(12);
/// How often a client looks whether it is so.
const LOOK: Duration = Duration::from_millis(500);
/// How long it must stay so.
const STEADY: Duration = Duration::from_secs(2);

/// What a client does with a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Habit {
    /// As the library does, with calls that are marked.
    Idempotent,
    /// As the library does, with calls that are not.
    Careful,
    /// Sends it again whatever became of it, marked or not: wrong, and the judge must see it.
    Blind,
}

/// Runs the cluster through these faults to its end.
pub(crate) fn run(seed: u64, faults: &[Fault], habits: [Habit; 2]) -> Ledger {
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
    let mut sim = Builder::new()
        .rng_seed(seed)
        .epoch(SystemTime::UNIX_EPOCH + SECOND * 1_700_000_000)
        .enable_random_order()
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(3600))
        .tcp_capacity(4096)
        .min_message_latency(Duration::from_micros(200))
        .max_message_latency(Duration::from_millis(rng.random_range(1..40)))
        .build();
    sim.host(REGISTRY, || async { registry().await });
    for name in SERVERS {
        let (ledger, lives) = (Arc::clone(&ledger), Rc::new(Cell::new(0)));
        sim.host(name, move || {
            lives.set(lives.get() + 1);
            server(name, lives.get(), seed, Arc::clone(&ledger))
        });
    }
    for (at, name) in CLIENTS.into_iter().enumerate() {
        let (ledger, habit) = (Arc::clone(&ledger), habits[at]);
        sim.host(name, move || client(name, at as u64, habit, seed, Arc::clone(&ledger)));
    }

    let (mut coming, mut going): (Vec<_>, Vec<_>) = (faults.to_vec(), Vec::<Fault>::new());
    let over = HEALED + MENDED + 2 * STEADY;
    while sim.elapsed() < over && ledger.lock().looked.len() < CLIENTS.len() {
        let now = sim.elapsed();
        going.retain(|fault| {
            let over = fault.until <= now;
            if over {
                fault.what.end(&mut sim);
            }
            !over
        });
        coming.retain(|fault| {
            let due = fault.from <= now;
            if due {
                fault.what.begin(&mut sim);
                going.push(fault.clone());
            }
            !due
        });
        sim.step().unwrap();
    }
    assert!(coming.is_empty() && going.is_empty());
    drop(sim);
    Arc::try_unwrap(ledger).ok().unwrap().into_inner()
}

async fn registry() -> turmoil::Result {
    let listener = Simulated.bind(&"tcp@registry:80".parse()?).await?;
    let server = RegistryServer::builder().insecure(true).build();
    server.serve(listener, pending()).await?;
    Ok(())
}

/// The registry as one host's client sees it.
fn known_registry() -> HttpRegistry {
    HttpRegistry::builder("http://registry:80")
        .transport(Arc::new(Simulated))
        .timeout(SECOND)
        .long_poll(2 * SECOND)
        .build()
        .unwrap()
}

async fn server(
    name: &'static str,
    life: u64,
    seed: u64,
    ledger: Arc<Mutex<Ledger>>,
) -> turmoil::Result {
    let address: Address = format!("tcp@{name}:70").parse()?;
    let listener = Simulated.bind(&address).await?;
    let work = move |id: u64| {
        let ledger = Arc::clone(&ledger);
        async move {
            ledger.lock().ran(id, name, turmoil::sim_elapsed().unwrap());
            sleep(Duration::from_millis(answer(id) % 20)).await;
            Ok::<_, String>(answer(id))
        }
    };
    let registrar = Registrar::builder(Arc::new(known_registry()))
        .ttl(TTL)
        .request_timeout(SECOND)
        .seed(seed ^ life)
        .build();
    let epoch = u64::try_from(turmoil::since_epoch().unwrap().as_millis())?;
    let named = move |mut instance: Instance| {
        instance.id = InstanceId::from(format!("{name}-{life}"));
        instance.epoch(epoch)
    };
    Server::new()
        .service(Service::new("Foo").method("Do", work))
        .instance(named)
        .registrar(registrar)
        .serve(listener, pending())
        .await?;
    Ok(())
}

async fn client(
    name: &'static str,
    number: u64,
    habit: Habit,
    seed: u64,
    ledger: Arc<Mutex<Ledger>>,
) -> turmoil::Result {
    let start = Instant::now();
    let client = connected(habit, seed ^ number)?;
    client.resolver().ready(2 * SECOND).await?;
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(2) + number);
    let mut calls = JoinSet::new();
    let mut id = number << 32;
    // Beyond the last fault, so that those who are back get calls again.
    while start.elapsed() < HEALED + SECOND {
        if client.resolver().snapshot().endpoints.is_empty() {
            ledger.lock().empty.push((name, start.elapsed()));
        }
        id += 1;
        ledger.lock().sent(id, name, habit == Habit::Idempotent, start.elapsed());
        let (client, ledger) = (client.clone(), Arc::clone(&ledger));
        calls.spawn(async move {
            let began = Instant::now();
            let outcome = outcome(id, call(&client, habit, id).await);
            ledger.lock().ended(id, began.elapsed(), outcome);
        });
        sleep(rng.random_range(Duration::from_millis(10)..Duration::from_millis(70))).await;
    }
    // Each ends by its deadline; what does not is found without an outcome.
    let _ = timeout(2 * DEADLINE, calls.join_all()).await;
    look(name, &client, &ledger, start + HEALED + MENDED).await;
    pending::<()>().await;
    Ok(())
}

/// Looks until everybody is listed and answers, which must be so by `end`, and stay so.
async fn look(name: &'static str, client: &XClient, ledger: &Mutex<Ledger>, end: Instant) {
    loop {
        match missing(client).await {
            None => break,
            Some(what) if Instant::now() > end => {
                ledger.lock().not_healed.push(format!("{name} {what}"));
                break;
            }
            Some(_) => sleep(LOOK).await,
        }
    }
    sleep(STEADY).await;
    if let Some(what) = missing(client).await {
        ledger.lock().not_healed.push(format!("{name}, at its last look, {what}"));
    }
    ledger.lock().looked.push(name);
}

/// What is not as it should be; `None`: every server is listed once, and answers, and so does
/// whoever is selected.
async fn missing(client: &XClient) -> Option<String> {
    let probe = || Call::new("Foo.Do").args(&0_u64).unwrap().timeout(SECOND / 2);
    let snapshot = client.resolver().snapshot();
    for server in SERVERS {
        let address: Address = format!("tcp@{server}:70").parse().unwrap();
        let at_it = |listed: &&Endpoint| listed.instance().address == address;
        let times = snapshot.endpoints.iter().filter(at_it).count();
        if times != 1 {
            return Some(format!("lists {server} {times} times"));
        }
        if let Err(error) = client.send(probe().only(address)).await {
            return Some(format!("calls {server}: {error}"));
        }
    }
    for _ in 0..10 {
        if let Err(error) = client.send(probe()).await {
            return Some(format!("calls anybody: {error}"));
        }
    }
    None
}

async fn call(client: &XClient, habit: Habit, id: u64) -> Result<u64, Error> {
    let call = Call::new("Foo.Do").args(&id)?.timeout(DEADLINE);
    if habit != Habit::Blind {
        return client.send(call).await?.decode();
    }
    let mut tries = 0;
    loop {
        tries += 1;
        match client.send(call.clone().timeout(DEADLINE / 3)).await {
            Err(_) if tries < 3 => {}
            answer => return answer?.decode(),
        }
    }
}

fn outcome(id: u64, reply: Result<u64, Error>) -> Outcome {
    match reply {
        Ok(reply) if reply == answer(id) => Outcome::Right,
        Ok(_) => Outcome::Wrong,
        Err(error) => Outcome::Failed(error.kind(), error.execution(), error.to_string()),
    }
}

/// A client whose times suit a lease of 3 s, and whose budget is its own, as in a process.
fn connected(habit: Habit, seed: u64) -> Result<XClient, Error> {
    let mut ejection = OutlierEjection::default();
    ejection.base_time = SECOND;
    ejection.max_time = 2 * SECOND;
    ejection.probe_interval = SECOND / 2;
    ejection.probe_timeout = SECOND;
    let resolver = Resolver::builder("Foo".parse().unwrap(), Arc::new(known_registry()))
        .poll_interval(2 * SECOND)
        .resync_interval(6 * SECOND)
        .resolve_timeout(SECOND)
        .lease(TTL)
        .outlier_ejection(ejection)
        .speaks(|protocol: &str| Simulated.speaks(protocol))
        .seed(seed)
        .build();
    let mut connection = ConnectionSettings::default();
    connection.connect_timeout = SECOND;
    connection.reconnect_cap = SECOND;
    connection.ping_busy = SECOND / 4;
    connection.ping_idle = SECOND;
    connection.ping_timeout = SECOND / 2;
    connection.dead_after = 3 * SECOND;
    connection.sweep = 2 * TICK;
    XClient::with_resolver(resolver)
        .transport(Arc::new(Simulated))
        .connection(connection)
        .retry(Retry::new(if habit == Habit::Blind { 1 } else { 3 }).budget(0.2, 10))
        .idempotent(habit == Habit::Idempotent)
        .seed(seed)
        .build()
}
