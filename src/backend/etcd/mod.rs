//! etcd as a registry: leases, and a watch.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use srpc::backend::etcd::EtcdRegistry;
//! use srpc::registry::Registrar;
//! use srpc::{Server, XClient};
//!
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let etcd = EtcdRegistry::new("10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379")?;
//! let server = Server::new().registrar(Registrar::new(Arc::new(etcd.clone())));
//! let client = XClient::new("Foo", etcd)?;
//! # drop((server, client));
//! # Ok(())
//! # }
//! ```
//!
//! # Keys and values
//! An instance is one key, `<prefix>/<service>/<id>`, whose value is its JSON without the id, or its
//! address alone. A program in any language is an instance with
//! `etcdctl put /srpc/Foo/worker-1 tcp@10.0.0.7:7001 --lease=$ID`. What is registered here also has a key
//! `<prefix>/@addresses/<service>/<address>`, whose value is the id that holds the address, and leaves
//! `<prefix>/@deregistered/<service>/<id>` when it is deregistered; `docs/BACKENDS.md` says all of it.

mod api;
mod failure;
mod gateway;
mod keys;
mod leases;
mod listing;
mod marks;
mod registering;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use self::failure::Failure;
use self::gateway::{Gateway, Member, User};
use self::keys::Keys;
use self::leases::Leases;
use self::listing::{History, list, services};
use super::hosts::hosts;
use super::mass_expiry::MassExpiry;
use super::url::{InvalidUrl, masked};
use crate::discovery::{Discovery, DiscoveryError, Resolved, UpdateStream};
use crate::instance::{InstanceId, ServiceName};
use crate::registry::{
    HealthOverride, Held, Lease, Registration, Registry, RegistryError, Renewal,
};
use crate::transport::{Net, Transport};

/// Where instances are, if no prefix is named.
pub const DEFAULT_PREFIX: &str = "/srpc";
/// Where etcd listens, if no port is named.
const PORT: u16 = 2379;

/// etcd, 3.4 or newer, as a registry. Cheap to clone.
///
/// It is asked over its HTTP gateway, which is on by default (`--enable-grpc-gateway`). Of several
/// members the one that answered last is asked first, and the others if it fails.
///
/// # Leases
/// All that one value registers with the same TTL shares one lease of etcd's: one request renews them, and
/// deletes those of them that nobody has renewed in time. A
/// lease is of whole seconds, and a second longer than is told; etcd ends it up to half a second late. So
/// a registration ends within TTL and TTL + 2.5 s. A registry server in front of etcd takes a lease for
/// [each](EtcdRegistryBuilder::lease_each).
///
/// # Lists
/// They have etcd's revision, and so prove what is gone. An etcd whose revision goes back was restored
/// or restarted empty: for 15 s its lists prove nothing. Nor do those of a service, for 15 s, more than half
/// of whose instances vanished within 15 s without having been deregistered, as when etcd stood still for
/// longer than leases last.
///
/// # Errors
/// Permission denied and a wrong password are `NotAllowed`, no space is `Full`. Everything else is
/// `Unavailable`: etcd says of a server on its way down that it is unknown.
///
/// # Cancellation
/// Dropping a future or a stream closes its connection. There are no tasks.
#[derive(Clone)]
pub struct EtcdRegistry {
    inner: Arc<Inner>,
}

struct Inner {
    gateway: Gateway,
    keys: Keys,
    leases: Leases,
    history: History,
    mass_expiry: MassExpiry,
    timeout: Duration,
}

impl EtcdRegistry {
    /// The cluster with these members, `host` or `host:port` (2379), separated by commas, with instances
    /// at `/srpc`.
    ///
    /// # Errors
    /// [`InvalidUrl`].
    pub fn new(members: &str) -> Result<Self, InvalidUrl> {
        Self::builder(members).build()
    }

    /// A client to be configured.
    pub fn builder(members: &str) -> EtcdRegistryBuilder {
        EtcdRegistryBuilder {
            members: members.to_owned(),
            prefix: DEFAULT_PREFIX.to_owned(),
            transport: Arc::new(Net::default()),
            tls: false,
            user: None,
            lease_each: false,
            timeout: Duration::from_secs(5),
        }
    }
}

#[async_trait]
impl Registry for EtcdRegistry {
    async fn register(&self, registration: &Registration) -> Result<Lease, RegistryError> {
        let limit = self.inner.timeout;
        let registered = timeout(limit, registering::register(&self.inner, registration)).await;
        registered.unwrap_or_else(|_| Err(Failure::late(limit).into()))
    }

    async fn renew(&self, held: &[Held]) -> Vec<Result<Renewal, RegistryError>> {
        let limit = self.inner.timeout;
        let renewed = timeout(limit, registering::renew(&self.inner, held)).await;
        renewed.unwrap_or_else(|_| {
            held.iter().map(|_| Err(Failure::late(limit).registry_error())).collect()
        })
    }

    async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError> {
        let limit = self.inner.timeout;
        let deregistered = timeout(limit, registering::deregister(&self.inner, held)).await;
        let leases = deregistered.unwrap_or_else(|_| Err(Failure::late(limit)))?;
        // A thousand leases are two thousand requests: what takes longer is left to run out.
        let _ = timeout(limit / 4, registering::give_back(&self.inner, leases)).await;
        Ok(())
    }

    async fn set_health(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        word: &HealthOverride,
    ) -> Result<bool, RegistryError> {
        let limit = self.inner.timeout;
        let set = timeout(limit, registering::set_health(&self.inner, service, id, word)).await;
        set.unwrap_or_else(|_| Err(Failure::late(limit).into()))
    }

    async fn name(&self) -> Result<Option<Arc<str>>, RegistryError> {
        let limit = self.inner.timeout;
        let name = timeout(limit, registering::name(&self.inner)).await;
        Ok(Some(name.unwrap_or_else(|_| Err(Failure::late(limit)))?))
    }
}

#[async_trait]
impl Discovery for EtcdRegistry {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        Ok(list(&self.inner, service).await?.resolved)
    }

    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        let (inner, service) = (Arc::clone(&self.inner), service.clone());
        Some(UpdateStream::fed(16, |updates| watch::feed(inner, service, updates)))
    }

    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        let limit = self.inner.timeout;
        let Inner { gateway, keys, .. } = &*self.inner;
        let listed = timeout(limit, services(gateway, keys)).await;
        Ok(listed.unwrap_or_else(|_| Err(Failure::late(limit)))?)
    }
}

impl fmt::Debug for EtcdRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdRegistry")
            .field("members", &self.inner.gateway.members().collect::<Vec<_>>())
            .field("prefix", &self.inner.keys.prefix())
            .finish_non_exhaustive()
    }
}

/// Configures an [`EtcdRegistry`].
#[must_use]
pub struct EtcdRegistryBuilder {
    members: String,
    prefix: String,
    transport: Arc<dyn Transport>,
    tls: bool,
    user: Option<User>,
    lease_each: bool,
    timeout: Duration,
}

impl EtcdRegistryBuilder {
    /// What the keys of all services start with. Default: `/srpc`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// What connections go over. Default: real sockets.
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = transport;
        self
    }

    /// TLS to every member, over a transport that speaks it, such as `transport::Tls` of the feature
    /// `tls`. Default: none.
    pub fn tls(mut self, transport: Arc<dyn Transport>) -> Self {
        (self.transport, self.tls) = (transport, true);
        self
    }

    /// Who asks, where the cluster has authentication on. Default: nobody.
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some(User { name: name.into(), password: password.into() });
        self
    }

    /// A lease for each registration, for one who registers on behalf of others, such as a registry
    /// server: each then ends by itself if it is not renewed. Default: one for all.
    pub fn lease_each(mut self, each: bool) -> Self {
        self.lease_each = each;
        self
    }

    /// How long a request may take, connecting included; each of several members gets an even share
    /// of nine tenths of it. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The client. It connects when it is first used.
    ///
    /// # Errors
    /// [`InvalidUrl`]; also if TLS was asked of a transport that does not speak it.
    pub fn build(self) -> Result<EtcdRegistry, InvalidUrl> {
        let protocol = if self.tls { "tls" } else { "tcp" };
        if !self.transport.speaks(protocol) {
            return Err(InvalidUrl::new(&self.members, "the transport does not speak TLS"));
        }
        let members = hosts(&self.members, protocol, PORT)?
            .into_iter()
            .map(|address| {
                let name = address.target().to_owned();
                // What a proxy goes by has no dot that turns search lists off.
                let authority = {
                    let identity = address.identity();
                    identity.split_once('@').map_or("", |(_, target)| target).to_owned()
                };
                Member::new(name, address, authority)
            })
            .collect();
        Ok(EtcdRegistry {
            inner: Arc::new(Inner {
                gateway: Gateway::new(members, self.transport, self.timeout, self.user),
                keys: Keys::new(&self.prefix),
                leases: Leases::new(self.lease_each),
                history: History::default(),
                mass_expiry: MassExpiry::default(),
                timeout: self.timeout,
            }),
        })
    }
}

impl fmt::Debug for EtcdRegistryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdRegistryBuilder")
            .field("members", &masked(&self.members))
            .field("prefix", &self.prefix)
            .field("user", &self.user.as_ref().map(|user| &user.name))
            .field("lease_each", &self.lease_each)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
