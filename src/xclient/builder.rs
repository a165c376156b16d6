//! The settings of a client.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use tower::{Layer, Service};

use super::attempt::{Attempt, AttemptService};
use super::channels::Channels;
use super::core::{Core, CoreService};
use super::retry::Retry;
use super::stack::{Boxed, BoxedLayer, Stack, boxed};
use super::{Inner, XClient};
use crate::call::{Call, Codec, Reply};
use crate::client::{ConnectionSettings, Lanes};
use crate::discovery::{Discovery, OutlierEjection, Probe, Resolver};
use crate::error::{BoxError, Error, Fate, Kind};
use crate::instance::ServiceName;
use crate::selector::Selector;
use crate::transport::{Net, Transport};

/// The settings of a client.
#[must_use]
pub struct XClientBuilder {
    source: Source,
    selector: Option<Arc<dyn Selector>>,
    timeout: Duration,
    attempt_timeout: Option<Duration>,
    retry: Retry,
    idempotent: bool,
    inherit: bool,
    codec: Codec,
    transport: Arc<dyn Transport>,
    connection: ConnectionSettings,
    zone: Option<String>,
    ejection: OutlierEjection,
    seed: Option<u64>,
    layers: Vec<BoxedLayer<Call>>,
    attempt_layers: Vec<BoxedLayer<Attempt>>,
}

enum Source {
    Discovery(String, Arc<dyn Discovery>),
    Resolver(Resolver),
}

impl XClientBuilder {
    pub(super) fn new(service: &str, discovery: Arc<dyn Discovery>) -> Self {
        Self::of(Source::Discovery(service.to_owned(), discovery))
    }

    pub(super) fn with_resolver(resolver: Resolver) -> Self {
        Self::of(Source::Resolver(resolver))
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            selector: None,
            timeout: Duration::from_secs(10),
            attempt_timeout: None,
            retry: Retry::default(),
            idempotent: false,
            inherit: true,
            codec: Codec::default(),
            transport: Arc::new(Net::default()),
            connection: ConnectionSettings::default(),
            zone: None,
            ejection: OutlierEjection::default(),
            seed: None,
            layers: Vec::new(),
            attempt_layers: Vec::new(),
        }
    }

    /// Sets the policy that selects an instance for each attempt. It has no effect with
    /// [`XClient::with_resolver`]: a shared resolver has a policy of its own.
    /// Default: [`P2c`](crate::selector::P2c).
    pub fn selector(mut self, selector: impl Selector) -> Self {
        self.selector = Some(Arc::new(selector));
        self
    }

    /// Sets how long a call may take in all, if it does not say. Default: 10 s.
    pub fn deadline(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Says whether calls made inside a handler end by the deadline of the call that it handles
    /// ([`within`](crate::call::within)). Default: true.
    pub fn inherit_deadline(mut self, inherit: bool) -> Self {
        self.inherit = inherit;
        self
    }

    /// Sets how long one attempt may take, if the call does not say. Default: none, since a slow
    /// handler is no dead process: pings tell them apart.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// Sets how many attempts of a call may reach the wire. Default: 3.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.retry = self.retry.attempts(attempts);
        self
    }

    /// Sets when calls are tried again. Default: [`Retry::default`].
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Says of all calls that a second execution does no harm. Default: false.
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = idempotent;
        self
    }

    /// Sets how typed calls are encoded. Default: MessagePack.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Sets what connections are made of. Default: [`Net`].
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = transport;
        self
    }

    /// Sets how many connections one endpoint gets. Default: 1; more of them batch less.
    pub fn connections_per_endpoint(mut self, connections: usize) -> Self {
        self.connection.connections = connections.max(1);
        self
    }

    /// Sets how connections are made, watched and limited. Default:
    /// [`ConnectionSettings::default`].
    pub fn connection(mut self, settings: ConnectionSettings) -> Self {
        self.connection = settings;
        self
    }

    /// Names the client's own zone, for selectors that ask for it. Default: none.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets when instances are ejected for how calls to them go, and how they come back. It has no
    /// effect with [`XClient::with_resolver`]: a shared resolver has settings of its own. Default:
    /// [`OutlierEjection::default`].
    pub fn outlier_ejection(mut self, ejection: OutlierEjection) -> Self {
        self.ejection = ejection;
        self
    }

    /// Sets what the selector's random numbers start from. Default: random.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Adds a tower layer around each call, outside of retry: the one added first is the outermost,
    /// as in tower's `ServiceBuilder`. Default: none.
    ///
    /// A layer whose service is not ready is awaited within the call, within its deadline.
    ///
    /// A call ends by its deadline, whatever its layers do. They may shorten the deadline. Calls that they make
    /// themselves end by it too, also in tasks that they spawn with a clone of the service that they wrap.
    ///
    /// An error of a layer that did not pass the call on is told as not sent ([`Error::refused`]).
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Boxed<Call>> + Send + 'static,
        L::Service: Service<Call, Response = Reply> + Clone + Send + 'static,
        <L::Service as Service<Call>>::Error: Into<BoxError>,
        <L::Service as Service<Call>>::Future: Send,
    {
        self.layers.push(boxed(layer));
        self
    }

    /// Adds a tower layer around each attempt, inside of retry and selection: the one added first
    /// is the outermost. Default: none.
    ///
    /// What [`layer`](Self::layer) says of deadlines and errors holds here too.
    pub fn attempt_layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Boxed<Attempt>> + Send + 'static,
        L::Service: Service<Attempt, Response = Reply> + Clone + Send + 'static,
        <L::Service as Service<Attempt>>::Error: Into<BoxError>,
        <L::Service as Service<Attempt>>::Future: Send,
    {
        self.attempt_layers.push(boxed(layer));
        self
    }

    /// Makes the client and starts to resolve its service.
    ///
    /// # Errors
    /// `InvalidArgument` if the service's name breaks the rule.
    pub fn build(self) -> Result<XClient, Error> {
        let seeded = self.seed.is_some();
        let seed = self.seed.unwrap_or_else(rand::random);
        let resolver = match self.source {
            Source::Resolver(resolver) => resolver,
            Source::Discovery(service, discovery) => {
                let service: ServiceName = service.parse().map_err(|error| {
                    Error::new(Kind::InvalidArgument, Fate::NotEncodable, format!("{error}"))
                })?;
                let transport = Arc::clone(&self.transport);
                let resolver = Resolver::builder(service, discovery)
                    .seed(seed)
                    .outlier_ejection(self.ejection)
                    .speaks(move |protocol: &str| transport.speaks(protocol));
                match self.selector {
                    Some(selector) => resolver.selector(selector).build(),
                    None => resolver.build(),
                }
            }
        };
        let channels = Arc::new(Channels::new(self.transport, self.connection));
        let probe: Arc<dyn Probe> = Arc::<Channels>::clone(&channels);
        resolver.lend_probe(Arc::downgrade(&probe));
        let base = AttemptService::new(Arc::clone(&channels));
        let service = resolver.service().clone();
        let zone = self.zone.or_else(|| resolver.zone().map(str::to_owned));
        // A seed that was given decides everything, whatever threads there are: one lane.
        let mut lane = seed;
        let seeds = Lanes::at_most(if seeded { 1 } else { usize::MAX }, || {
            lane = lane.rotate_left(23).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            AtomicU64::new(lane)
        });
        let core = Arc::new(Core {
            resolver,
            channels,
            attempts: Stack::new(base, self.attempt_layers),
            retry: self.retry.of(&service),
            inherit: self.inherit,
            timeout: self.timeout,
            attempt_timeout: self.attempt_timeout,
            idempotent: self.idempotent,
            zone,
            seeds,
            closed: AtomicBool::new(false),
        });
        let stack = Stack::new(CoreService::new(Arc::clone(&core)), self.layers);
        Ok(XClient { inner: Arc::new(Inner { core, codec: self.codec, stack }) })
    }
}

impl fmt::Debug for XClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XClientBuilder").field("timeout", &self.timeout).finish()
    }
}
