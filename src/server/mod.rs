//! One peer from the callee's side: accepts connections, runs handlers, drains.

mod connection;
mod context;
mod handler;
mod handshake;
mod house;
mod intake;
mod job;
mod keeper;
mod limit;
mod methods;
mod reader;
mod reply;
mod running;
mod service;
mod session;
mod settings;
mod shared;
mod usage;
mod writer;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

pub use self::context::{Answered, Asked, Context, Request, Response, State};
pub use self::handler::{
    BlockingMethod, Failure, Handler, HandlerFuture, Method, MethodService, Outcome, Seat,
};
use self::house::House;
use self::limit::Limit;
pub use self::limit::{Adaptive, Concurrency, ServerStats};
pub use self::service::{InvalidService, Service};
pub use self::settings::ServerSettings;
use self::shared::{Entry, Phase, Shared};
use crate::call::{NO_RUNTIME, has_runtime};
use crate::instance::{Address, Instance, InstanceId, ServiceName};
use crate::registry::Registrar;
use crate::sync::event;
use crate::transport::{
    Budget, ConnectionCaps, ConnectionSlots, Listener, Refusals, close_stuck_connections,
};

/// How long a connection that was cut gets to write what it has.
const CUT: Duration = Duration::from_secs(1);
/// How often refusals that are not logged yet are looked for.
const LOG_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Offers services on a listener.
///
/// ```no_run
/// # use srpc::{Listener, Server, Service};
/// # async fn example() -> std::io::Result<()> {
/// let foo = Service::new("Foo").method("Echo", async |text: String| Ok::<_, String>(text));
/// let listener = Listener::bind("tcp@127.0.0.1:0").await?;
/// Server::new().service(foo).serve(listener, std::future::pending()).await
/// # }
/// ```
#[must_use]
pub struct Server {
    services: Vec<service::Parts>,
    /// The first thing that was wrong; `serve` tells it.
    invalid: Option<InvalidService>,
    settings: ServerSettings,
    registrar: Option<Registrar>,
    advertise: Option<Address>,
    describe: Box<dyn Fn(Instance) -> Instance + Send + Sync>,
    stats: ServerStats,
}

impl Server {
    /// A server that offers nothing yet.
    pub fn new() -> Self {
        Self {
            services: Vec::new(),
            invalid: None,
            settings: ServerSettings::default(),
            registrar: None,
            advertise: None,
            describe: Box::new(|instance| instance),
            stats: ServerStats::default(),
        }
    }

    /// Offers a service. One of the same name gets the methods of both.
    pub fn service<S: Send + Sync + 'static>(mut self, service: Service<S>) -> Self {
        match service.into_parts() {
            Ok(parts) => self.services.push(parts),
            Err(error) => self.invalid = self.invalid.or(Some(error)),
        }
        self
    }

    /// Registers every service once the server listens, and takes the registrations through the
    /// drain. Default: none.
    pub fn registrar(mut self, registrar: Registrar) -> Self {
        self.registrar = Some(registrar);
        self
    }

    /// Names the address that others can reach. Default: the listener's.
    pub fn advertise(mut self, address: Address) -> Self {
        self.advertise = Some(address);
        self
    }

    /// Completes the instance that is registered: weight, zone, version, metadata. Default: as is.
    pub fn instance(
        mut self,
        describe: impl Fn(Instance) -> Instance + Send + Sync + 'static,
    ) -> Self {
        self.describe = Box::new(describe);
        self
    }

    /// Replaces all settings. Default: [`ServerSettings::default`].
    pub fn settings(mut self, settings: ServerSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Sets how many calls may be at work at once, over all connections; what is beyond is turned
    /// away at once. Default: unlimited.
    pub fn concurrency(mut self, concurrency: impl Into<Concurrency>) -> Self {
        self.settings.concurrency = concurrency.into();
        self
    }

    /// The server's load, to be read while it serves.
    pub fn stats(&self) -> ServerStats {
        self.stats.clone()
    }

    /// Sets the most connections. Default: 10,000.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.settings.max_connections = connections;
        self
    }

    /// Sets the most connections from one host. Default: 256.
    pub fn max_connections_per_host(mut self, connections: usize) -> Self {
        self.settings.max_connections_per_host = connections;
        self
    }

    /// Sets the most calls in flight on a connection. Default: 1,024; at least 64, at most
    /// 1,048,575.
    pub fn window_calls(mut self, calls: u32) -> Self {
        self.settings.limits.window_calls = calls;
        self
    }

    /// Sets the most bytes in flight on a connection. Default: 8 MiB; never below 4 MiB.
    pub fn window_bytes(mut self, bytes: u32) -> Self {
        self.settings.limits.window_bytes = bytes;
        self
    }

    /// Sets the largest body. Default: 4 MiB; at least 64 KiB, at most 32 KiB less than 64 MiB.
    pub fn max_body(mut self, bytes: u32) -> Self {
        self.settings.limits.max_body = bytes;
        self
    }

    /// Sets how long a connection may be without calls. Default: 5 min.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = timeout;
        self
    }

    /// Sets how long a draining server that is registered goes on accepting. Default: 2 s.
    pub fn drain_delay(mut self, delay: Duration) -> Self {
        self.settings.drain_delay = delay;
        self
    }

    /// Sets how long calls in flight get to end when the server drains. Default: 10 s.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace;
        self
    }

    /// Serves until `shutdown` is ready, then drains: marks the registrations as draining, goes on
    /// accepting for the drain delay, tells every connection, lets calls in flight end within the
    /// grace, cuts the rest, and deregisters.
    ///
    /// A handler that computes without ever awaiting cannot be dropped. Its caller is told all the
    /// same, and this does not wait for it; but dropping a runtime does, unless it is shut down with
    /// `Runtime::shutdown_timeout` or the process exits.
    ///
    /// Dropping the future stops at once: connections are closed and handlers dropped.
    ///
    /// # Errors
    /// `InvalidInput` if a service's or method's name breaks the rule; `Other` outside of a tokio runtime.
    /// Failures to accept do not end it: they are logged and waited out.
    pub async fn serve(
        mut self,
        mut listener: Listener,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        if !has_runtime() {
            return Err(io::Error::other(NO_RUNTIME));
        }
        if let Some(error) = self.invalid.take() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        self.settings.limits = self.settings.limits.clamped();
        let address = self.advertise.take().unwrap_or_else(|| listener.address().clone());
        let registrar = self.registrar.take();
        if let Some(registrar) = &registrar {
            // A value is there already only if this server's stats are those of another one.
            let _ = self.stats.0.registrations.set(registrar.reader());
        }
        let instances = self.instances(&address);
        let ServerSettings { max_connections, max_connections_per_host, .. } = self.settings;
        let caps =
            ConnectionCaps::for_listener(&listener, max_connections, max_connections_per_host);
        let shared = Arc::new(self.into_shared(caps));
        let (phase, phases) = watch::channel(Phase::Serving);
        let mut house = House {
            shared: Arc::clone(&shared),
            phases,
            connections: JoinSet::new(),
            refused: JoinSet::new(),
            watchdog: JoinSet::new(),
            log_check: interval(LOG_CHECK_INTERVAL),
        };
        let server = Arc::clone(&shared);
        house.watchdog.spawn(async move {
            close_stuck_connections(&server.budget, &server.slots, &server.refusals).await;
        });
        house.log_check.set_missed_tick_behavior(MissedTickBehavior::Delay);

        let registering = async {
            if let Some(registrar) = &registrar {
                register(registrar, instances).await;
            }
            std::future::pending::<()>().await;
        };
        {
            let mut until = pin!(shutdown);
            let mut registering = pin!(registering);
            tokio::select! {
                () = house.accept_from(&mut listener) => {}
                () = &mut until => {}
                () = &mut registering => {}
            }
        }
        if let Some(registrar) = &registrar {
            let delay = shared.settings.drain_delay;
            let draining = async {
                tokio::join!(registrar.drain(), sleep(delay));
            };
            tokio::select! {
                () = house.accept_from(&mut listener) => {}
                () = draining => {}
            }
        }
        // Connections are told before the listener goes: whoever connects from here on is refused
        // by the system, which proves that nothing was sent.
        phase.send_replace(Phase::Draining);
        drop(listener);
        if timeout(shared.settings.grace, house.empty()).await.is_err() {
            phase.send_replace(Phase::Cut);
            // What is not written by then is lost; its calls were cut all the same.
            let _ = timeout(CUT, house.empty()).await;
        }
        // It holds the handlers too: they are gone when this ends.
        house.watchdog.shutdown().await;
        drop(house);
        if let Some(registrar) = &registrar {
            registrar.close().await;
        }
        Ok(())
    }

    fn instances(&self, address: &Address) -> Vec<(ServiceName, Instance)> {
        let id = InstanceId::from(format!("{:016x}", rand::random::<u64>()));
        let describe = || (self.describe)(Instance::new(id.clone(), address.clone()));
        let names: BTreeSet<_> = self.services.iter().map(|parts| &parts.name).collect();
        names.into_iter().map(|name| (name.clone(), describe())).collect()
    }

    fn into_shared(self, caps: ConnectionCaps) -> Shared {
        let mut methods = HashMap::new();
        let mut number = 0;
        for parts in self.services {
            for (name, handler) in parts.methods {
                let name: Arc<str> = format!("{}.{name}", parts.name).into();
                let codecs = Arc::clone(&parts.codecs);
                let entry = Entry::new(Arc::clone(&name), number, handler, codecs);
                number += 1;
                methods.insert(name, Arc::new(entry));
            }
        }
        let limit = Limit::new(&self.settings.concurrency, number, &self.stats);
        let max_bytes = self.settings.max_bytes_in_flight;
        let host_bytes = self.settings.max_bytes_in_flight_per_host.unwrap_or(max_bytes / 4);
        Shared {
            methods,
            settings: self.settings,
            limit,
            budget: Arc::new(Budget::new(max_bytes, host_bytes)),
            slots: ConnectionSlots::new(caps.total, caps.per_host),
            refusals: Refusals::default(),
            farewells: Arc::new(Semaphore::new(caps.refusing)),
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services: Vec<_> = self.services.iter().map(|parts| &parts.name).collect();
        f.debug_struct("Server").field("services", &services).finish()
    }
}

async fn register(registrar: &Registrar, instances: Vec<(ServiceName, Instance)>) {
    for (service, instance) in instances {
        if let Err(error) = registrar.register(service.clone(), instance).await {
            event!(WARN, %service, %error, "not registered at the first try");
        }
    }
}
