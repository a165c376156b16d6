//! ZooKeeper as a registry: ephemeral nodes, and watches on their parent.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use srpc::backend::zookeeper::ZooKeeperRegistry;
//! use srpc::registry::Registrar;
//! use srpc::{Server, XClient};
//!
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let zookeeper = ZooKeeperRegistry::new("10.0.0.1:2181,10.0.0.2:2181,10.0.0.3:2181")?;
//! let server = Server::new().registrar(Registrar::new(Arc::new(zookeeper.clone())));
//! let client = XClient::new("Foo", zookeeper)?;
//! # drop((server, client));
//! # Ok(())
//! # }
//! ```
//!
//! # Nodes
//! An instance is one node, `<prefix>/<service>/<id>`, whose data is its JSON without the id, or its
//! address alone. What is registered here also has a node `<prefix>/@addresses/<service>/<address>`, whose
//! data is the id that holds the address, and leaves `<prefix>/@deregistered/<service>/<id>` when it is
//! deregistered; `docs/BACKENDS.md` says all of it. A change is told by a node that is made anew: data that is
//! changed in place is seen with the next change of any other.

mod failure;
mod keeper;
mod listing;
mod marks;
mod paths;
mod registering;
mod session;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use self::failure::Failure;
use self::keeper::Keeper;
use self::listing::{History, children, read, services};
use self::paths::Paths;
use self::session::Session;
use super::hosts::hosts;
use super::mass_expiry::MassExpiry;
use super::url::{InvalidUrl, masked};
use crate::discovery::{Discovery, DiscoveryError, Resolved, UpdateStream};
use crate::instance::{Address, InstanceId, ServiceName};
use crate::registry::{
    HealthOverride, Held, Lease, Registration, Registry, RegistryError, Renewal,
};

/// Where instances are, if no prefix is named.
pub const DEFAULT_PREFIX: &str = "/srpc";
/// Where ZooKeeper listens, if no port is named.
const PORT: u16 = 2181;

/// ZooKeeper, 3.6 or newer, as a registry. Cheap to clone.
///
/// # Leases
/// Nodes end with the session that made them: when the process dies, after the
/// [session's timeout](ZooKeeperRegistryBuilder::session_timeout), which servers clamp to between 2 and 20
/// of their ticks of 2 s. While it lives, a registration that is not renewed is deleted from here, up to
/// a quarter of a second after its TTL. A session that was lost is replaced, and its registrations are
/// `Lost`.
///
/// # Lists
/// They have the id of their last change, and so prove what is gone, but for a service that nobody has
/// registered yet. Where a service's node is another than before, the servers have lost what they had:
/// for 15 s its lists prove nothing. Nor do those of a service, for 15 s, more than half of whose instances
/// vanished within 15 s without having been deregistered, as when ZooKeeper stood still for longer than
/// sessions last.
///
/// # Errors
/// What the rights of nodes forbid is `NotAllowed`, a quota that is used up is `Full`, the rest is
/// `Unavailable`.
///
/// # Cancellation
/// What was asked may be done after its future was dropped, as the client library sends it when it is
/// made. A registration that nobody renews ends all the same. Dropping the last clone ends both sessions,
/// one for registrations and one for lists, and the task that deletes what is not renewed.
///
/// Must be used within a tokio runtime, whose end is the end of the sessions. The next request, within
/// another runtime, makes new ones.
#[derive(Clone)]
pub struct ZooKeeperRegistry {
    inner: Arc<Inner>,
}

struct Inner {
    servers: Vec<Address>,
    paths: Paths,
    /// The session whose nodes are what is registered here.
    keeping: Session,
    /// The session that lists.
    looking: Session,
    keeper: Keeper,
    history: History,
    mass_expiry: MassExpiry,
    timeout: Duration,
}

impl ZooKeeperRegistry {
    /// The servers, `host` or `host:port` (2181), separated by commas, with instances at `/srpc`.
    ///
    /// # Errors
    /// [`InvalidUrl`].
    pub fn new(servers: &str) -> Result<Self, InvalidUrl> {
        Self::builder(servers).build()
    }

    /// A client to be configured.
    pub fn builder(servers: &str) -> ZooKeeperRegistryBuilder {
        ZooKeeperRegistryBuilder {
            servers: servers.to_owned(),
            prefix: DEFAULT_PREFIX.to_owned(),
            session_timeout: Duration::from_secs(15),
            timeout: Duration::from_secs(5),
        }
    }
}

#[async_trait]
impl Registry for ZooKeeperRegistry {
    async fn register(&self, registration: &Registration) -> Result<Lease, RegistryError> {
        registering::register(&self.inner, registration).await
    }

    async fn renew(&self, held: &[Held]) -> Vec<Result<Renewal, RegistryError>> {
        registering::renew(&self.inner, held).await
    }

    async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError> {
        Ok(registering::deregister(&self.inner, held).await?)
    }

    async fn set_health(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        word: &HealthOverride,
    ) -> Result<bool, RegistryError> {
        registering::set_health(&self.inner, service, id, word).await
    }

    async fn name(&self) -> Result<Option<Arc<str>>, RegistryError> {
        let limit = self.inner.timeout;
        let name = timeout(limit, registering::name(&self.inner)).await;
        Ok(Some(name.unwrap_or_else(|_| Err(Failure::late(limit)))?))
    }
}

#[async_trait]
impl Discovery for ZooKeeperRegistry {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        let Inner { looking, paths, timeout: limit, .. } = &*self.inner;
        let listed = async {
            let client = looking.client(*limit).await?;
            let children = children(&client, &paths.service(service)).await?;
            read(&self.inner, &client, service, children).await
        };
        let listed = timeout(*limit, listed).await;
        Ok(listed.unwrap_or_else(|_| Err(Failure::late(*limit)))?)
    }

    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        let (inner, service) = (Arc::clone(&self.inner), service.clone());
        Some(UpdateStream::fed(1, |updates| watch::feed(inner, service, updates)))
    }

    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        let Inner { looking, paths, timeout: limit, .. } = &*self.inner;
        let listed = async { services(&looking.client(*limit).await?, paths).await };
        let listed = timeout(*limit, listed).await;
        Ok(listed.unwrap_or_else(|_| Err(Failure::late(*limit)))?)
    }
}

impl fmt::Debug for ZooKeeperRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeperRegistry")
            .field("servers", &self.inner.servers)
            .field("prefix", &self.inner.paths.prefix())
            .finish_non_exhaustive()
    }
}

/// Configures a [`ZooKeeperRegistry`].
#[must_use]
pub struct ZooKeeperRegistryBuilder {
    servers: String,
    prefix: String,
    session_timeout: Duration,
    timeout: Duration,
}

impl ZooKeeperRegistryBuilder {
    /// The node that all services are below; it is made if it is not there. Default: `/srpc`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long servers keep a session, and what it registered, while they hear nothing of it; they clamp
    /// it to what they allow. Default: 15 s.
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout;
        self
    }

    /// How long a request may take, connecting included. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The client. It connects when it is first used.
    ///
    /// # Errors
    /// [`InvalidUrl`].
    pub fn build(self) -> Result<ZooKeeperRegistry, InvalidUrl> {
        let servers = hosts(&self.servers, "tcp", PORT)?;
        let cluster: Vec<&str> = servers.iter().map(Address::target).collect();
        let cluster = cluster.join(",");
        // Each server is tried within one request.
        let share = self.timeout.mul_f64(0.9) / servers.len().max(1) as u32;
        let session = || Session::new(cluster.clone(), self.session_timeout, share);
        Ok(ZooKeeperRegistry {
            inner: Arc::new(Inner {
                keeping: session(),
                looking: session(),
                servers,
                paths: Paths::new(&self.prefix),
                keeper: Keeper::default(),
                history: History::default(),
                mass_expiry: MassExpiry::default(),
                timeout: self.timeout,
            }),
        })
    }
}

impl fmt::Debug for ZooKeeperRegistryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeperRegistryBuilder")
            .field("servers", &masked(&self.servers))
            .field("prefix", &self.prefix)
            .field("session_timeout", &self.session_timeout)
            .field("timeout", &self.timeout)
            .finish()
    }
}
