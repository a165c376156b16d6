//! Makes, checks and deletes the nodes of registrations.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::timeout;
use zookeeper_client::{
    Acls, Client, CreateMode, CreateOptions, Error, MultiReadResult, MultiWriteError,
    MultiWriteResult, Stat,
};

use super::Inner;
use super::failure::Failure;
use super::marks::sweep;
use super::paths::Paths;
use crate::backend::value;
use crate::instance::{Instance, InstanceId, ServiceName};
use crate::registry::{
    HealthOverride, Held, Lease, Registration, RegistryError, RegistryErrorKind, Renewal,
};
use crate::sync::event;

static FOLDER: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
static EPHEMERAL: CreateOptions<'static> = CreateMode::Ephemeral.with_acls(Acls::anyone_all());

/// How often a registration is tried that others change at the same time.
const TRIES: usize = 5;
/// How many nodes one request reads.
const BATCH: usize = 100;
/// A child of a service's node that no instance is named after: see `paths::unescaped`.
const BELL: &str = "%bell";

/// A node as it was read.
pub(super) struct Node {
    data: Vec<u8>,
    pub(super) stat: Stat,
}

/// What a registration of one instance is written to.
struct Target {
    instance: String,
    address: String,
}

impl Target {
    fn of(paths: &Paths, registration: &Registration) -> Self {
        let Registration { service, instance, .. } = registration;
        Self {
            instance: paths.instance(service, &instance.id),
            address: paths.address(service, &instance.address),
        }
    }
}

pub(super) async fn register(
    inner: &Arc<Inner>,
    registration: &Registration,
) -> Result<Lease, RegistryError> {
    // Noted first: what is asked may be done long after nobody waits for it any more, and then ends as
    // what is not renewed does.
    inner.keeper.ask(inner, registration);
    let registered = async {
        let client = inner.keeping.client(inner.timeout).await?;
        put(inner, &client, registration).await?;
        Ok::<_, RegistryError>(client.session_id().0)
    };
    let session = timeout(inner.timeout, registered)
        .await
        .unwrap_or_else(|_| Err(Failure::late(inner.timeout).into()))?;
    inner.keeper.note(inner, registration);
    Ok(Lease::new(format!("{session:x}"), Some(registration.ttl)))
}

async fn put(
    inner: &Inner,
    client: &Client,
    registration: &Registration,
) -> Result<(), RegistryError> {
    let Registration { service, instance, .. } = registration;
    let target = Target::of(&inner.paths, registration);
    let mut data = value::encode(instance);
    // What is there already, as far as is known.
    let mut present: Vec<(String, i32)> = Vec::new();
    for _ in 0..TRIES {
        let mut writer = client.new_multi_writer();
        for (path, version) in &present {
            writer.add_delete(path, Some(*version)).map_err(Failure::from)?;
        }
        writer
            .add_create(&target.instance, data.as_bytes(), &EPHEMERAL)
            .and_then(|()| {
                writer.add_create(&target.address, instance.id.as_str().as_bytes(), &EPHEMERAL)
            })
            .map_err(Failure::from)?;
        match writer.commit().await {
            Ok(_) => return Ok(()),
            Err(MultiWriteError::OperationFailed { source: Error::NoNode, .. }) => {
                for folder in [inner.paths.service(service), inner.paths.addresses(service)] {
                    client.mkdir(&folder, &FOLDER).await.map_err(Failure::from)?;
                }
            }
            Err(MultiWriteError::OperationFailed {
                source: Error::NodeExists | Error::BadVersion,
                ..
            }) => {}
            Err(error) => return Err(Failure::from(error).into()),
        }
        let (found, written) = look_around(inner, client, registration, &target).await?;
        (present, data) = (found, written);
    }
    Err(RegistryError::unavailable("others change the same nodes again and again"))
}

/// The nodes that stand where this registration goes, and that of another instance at its address, all
/// of which give way to a newer registration; and the value that is written then.
async fn look_around(
    inner: &Inner,
    client: &Client,
    registration: &Registration,
    target: &Target,
) -> Result<(Vec<(String, i32)>, String), RegistryError> {
    let Registration { service, instance, .. } = registration;
    let mut found = nodes(client, &[&target.instance, &target.address]).await?.into_iter();
    let (own, holder) = (found.next().flatten(), found.next().flatten());
    check_epoch(own.as_ref(), instance)?;
    let written = value::encode_over(instance, own.as_ref().map(|own| &*own.data));
    let mut present = Vec::new();
    if let Some(own) = own {
        present.push((target.instance.clone(), own.stat.version));
    }
    if let Some(holder) = holder {
        let id = InstanceId::from(String::from_utf8_lossy(&holder.data).into_owned());
        present.push((target.address.clone(), holder.stat.version));
        let path = inner.paths.instance(service, &id);
        if id != instance.id
            // What is no id names nobody.
            && !id.as_str().is_empty()
            && let Some(other) = nodes(client, &[&path]).await?.into_iter().next().flatten()
            && let Ok(stored) = value::decode(id.as_str(), &other.data)
            // It may have moved on.
            && stored.address == instance.address
        {
            if !instance.takes_address_from(&stored) {
                return Err(RegistryError::superseded(&stored));
            }
            present.push((path, other.stat.version));
        }
    }
    Ok((present, written))
}

fn check_epoch(node: Option<&Node>, instance: &Instance) -> Result<(), RegistryError> {
    // What cannot be read is replaced.
    let stored = node.and_then(|node| value::decode(instance.id.as_str(), &node.data).ok());
    match stored {
        Some(stored) if stored.epoch > instance.epoch => {
            let kind = RegistryErrorKind::StaleEpoch { held: stored.epoch };
            Err(RegistryError::new(kind, format!("epoch {} is registered", stored.epoch)))
        }
        _ => Ok(()),
    }
}

/// These nodes; `None` for one that is not there.
pub(super) async fn nodes(client: &Client, paths: &[&str]) -> Result<Vec<Option<Node>>, Failure> {
    let mut nodes = Vec::with_capacity(paths.len());
    for paths in paths.chunks(BATCH) {
        let mut reader = client.new_multi_reader();
        for path in paths {
            reader.add_get_data(path)?;
        }
        for result in reader.commit().await? {
            nodes.push(match result {
                MultiReadResult::Data { data, stat } => Some(Node { data, stat }),
                MultiReadResult::Error { err: Error::NoNode } => None,
                MultiReadResult::Error { err } => return Err(err.into()),
                _ => None,
            });
        }
    }
    Ok(nodes)
}

pub(super) async fn renew(
    inner: &Arc<Inner>,
    held: &[Held],
) -> Vec<Result<Renewal, RegistryError>> {
    if held.is_empty() {
        return Vec::new();
    }
    let look = async {
        let client = inner.keeping.client(inner.timeout).await?;
        Ok((client.session_id().0, look(&client, &targets(inner, held)).await?))
    };
    let looked = timeout(inner.timeout, look).await;
    let looked = looked.unwrap_or_else(|_| Err(Failure::late(inner.timeout)));
    let (session, nodes) = match looked {
        Ok(looked) => looked,
        Err(failure) => return held.iter().map(|_| Err(failure.registry_error())).collect(),
    };
    let mut nodes = nodes.into_iter();
    held.iter()
        .map(|held| {
            let (own, holder) = (nodes.next().flatten(), nodes.next().flatten());
            let renewal = renewed(held, session, own, holder);
            if renewal.as_ref().is_ok_and(Renewal::holds) {
                inner.keeper.note(inner, &held.registration);
            }
            renewal
        })
        .collect()
}

fn targets(inner: &Inner, held: &[Held]) -> Vec<Target> {
    held.iter().map(|held| Target::of(&inner.paths, &held.registration)).collect()
}

/// Two nodes of each: the instance's, and its address's.
async fn look(client: &Client, targets: &[Target]) -> Result<Vec<Option<Node>>, Failure> {
    let paths = targets.iter().flat_map(|target| [&*target.instance, &*target.address]);
    nodes(client, &paths.collect::<Vec<_>>()).await
}

fn renewed(
    held: &Held,
    session: i64,
    own: Option<Node>,
    holder: Option<Node>,
) -> Result<Renewal, RegistryError> {
    let instance = &held.registration.instance;
    let Some(own) = own else { return Ok(Renewal::Lost) };
    check_epoch(Some(&own), instance)?;
    let holds = holder.is_some_and(|holder| holder.data == instance.id.as_str().as_bytes());
    // What an earlier session made ends with that session.
    if own.stat.ephemeral_owner != session || !holds {
        return Ok(Renewal::Lost);
    }
    // Changed by hand, it is made again, with its full state.
    Ok(value::renewal(instance, &own.data).unwrap_or(Renewal::Lost))
}

/// The nodes of a registration that is taken back.
struct Leaving<'a> {
    id: &'a InstanceId,
    instance: String,
    /// Of the instance's node; `None`: it is not there, or not ours, and stays.
    version: Option<i32>,
    address: String,
    /// The mark that it was deregistered.
    mark: String,
}

/// What of these is there, each with the address that it has in truth: who takes a registration back for
/// another may know only its id.
async fn leaving<'a>(
    inner: &Inner,
    client: &Client,
    held: &'a [Held],
    session: i64,
) -> Result<Vec<Leaving<'a>>, Failure> {
    let paths: Vec<String> = held
        .iter()
        .map(|Held { registration: Registration { service, instance, .. }, .. }| {
            inner.paths.instance(service, &instance.id)
        })
        .collect();
    let found = nodes(client, &paths.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let leaving = held.iter().zip(paths).zip(found).filter_map(|((held, path), own)| {
        let Registration { service, instance, .. } = &held.registration;
        // What an earlier session made ends with it.
        let own = own.filter(|own| own.stat.ephemeral_owner == session);
        let stored = own.as_ref().and_then(|own| {
            Some((own.stat.version, value::decode(instance.id.as_str(), &own.data).ok()?))
        });
        let address = stored.as_ref().map_or(&instance.address, |(_, stored)| &stored.address);
        let address = inner.paths.address(service, address);
        // What another has put there since stays, and its address with it.
        if stored.as_ref().is_some_and(|(_, stored)| stored.epoch > instance.epoch) {
            return None;
        }
        let version = stored.map(|(version, _)| version);
        let mark = inner.paths.mark(service, &instance.id);
        Some(Leaving { id: &instance.id, instance: path, version, address, mark })
    });
    Ok(leaving.collect())
}

/// Gives the instance's node other data. False: it is not there.
pub(super) async fn set_health(
    inner: &Inner,
    service: &ServiceName,
    id: &InstanceId,
    word: &HealthOverride,
) -> Result<bool, RegistryError> {
    let set = async {
        let client = inner.keeping.client(inner.timeout).await?;
        let path = inner.paths.instance(service, id);
        for _ in 0..TRIES {
            let Some(own) = nodes(&client, &[&path]).await?.into_iter().next().flatten() else {
                return Ok(false);
            };
            let Some(data) = value::with_health(id.as_str(), &own.data, word) else {
                return Ok(false);
            };
            // Watches are on the parent, and a child that comes and goes at once fires them.
            let bell = format!("{}/{BELL}", inner.paths.service(service));
            let mut writer = client.new_multi_writer();
            writer
                .add_set_data(&path, data.as_bytes(), Some(own.stat.version))
                .and_then(|()| writer.add_create(&bell, b"", &EPHEMERAL))
                .and_then(|()| writer.add_delete(&bell, None))
                .map_err(Failure::from)?;
            match writer.commit().await {
                Ok(results) => {
                    let set = results.into_iter().find_map(|result| match result {
                        MultiWriteResult::SetData { stat } => Some(stat),
                        _ => None,
                    });
                    let Some(set) = set.filter(|set| set.czxid != own.stat.czxid) else {
                        return Ok(true);
                    };
                    // A node that was made anew between the two has the same version: what it was is
                    // lost, and its owner makes it again once it is gone.
                    match client.delete(&path, Some(set.version)).await {
                        Ok(()) | Err(Error::NoNode | Error::BadVersion) => {}
                        Err(error) => return Err(Failure::from(error).into()),
                    }
                    let message = "it was registered anew at the same time: try again";
                    return Err(RegistryError::unavailable(message));
                }
                Err(MultiWriteError::OperationFailed {
                    source: Error::NoNode | Error::BadVersion,
                    ..
                }) => {}
                Err(error) => return Err(Failure::from(error).into()),
            }
        }
        Err(RegistryError::unavailable("others change the same node again and again"))
    };
    let set = timeout(inner.timeout, set).await;
    set.unwrap_or_else(|_| Err(Failure::late(inner.timeout).into()))
}

/// The name of what is registered here, which the first who asks writes.
pub(super) async fn name(inner: &Inner) -> Result<Arc<str>, Failure> {
    let client = inner.keeping.client(inner.timeout).await?;
    let path = inner.paths.name();
    for _ in 0..TRIES {
        if let Some(node) = nodes(&client, &[&path]).await?.into_iter().next().flatten() {
            return Ok(String::from_utf8_lossy(&node.data).into());
        }
        let name = format!("{:016x}", rand::random::<u64>());
        client.mkdir(inner.paths.all(), &FOLDER).await?;
        match client.create(&path, name.as_bytes(), &FOLDER).await {
            Ok(_) => return Ok(name.into()),
            Err(Error::NodeExists) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::Unavailable("others change the same node again and again".to_owned()))
}

pub(super) async fn deregister(inner: &Inner, held: &[Held]) -> Result<(), Failure> {
    if held.is_empty() {
        return Ok(());
    }
    let deleted = async {
        let client = inner.keeping.client(inner.timeout).await?;
        let session = client.session_id().0;
        let leaving = leaving(inner, &client, held, session).await?;
        let addresses: Vec<&str> = leaving.iter().map(|one| &*one.address).collect();
        let holders = nodes(&client, &addresses).await?;
        let marks = match marks(inner, &client, held, &leaving).await {
            Ok(marks) => marks,
            // Without a mark what goes looks as if it had expired: that is no reason not to go.
            Err(error) => {
                event!(DEBUG, ?error, "no marks of deregistrations");
                leaving.iter().map(|_| None).collect()
            }
        };
        let (mut marked, mut deletions) = (Vec::new(), Vec::new());
        for ((leaving, holder), mark) in leaving.iter().zip(holders).zip(marks) {
            if let Some(version) = leaving.version {
                // At once: a list that lacks the node is not older than the mark.
                let mut writer = client.new_multi_writer();
                match mark {
                    Some(_) => writer.add_set_data(&leaving.mark, b"", None)?,
                    None => writer.add_create(&leaving.mark, b"", &FOLDER)?,
                }
                writer.add_delete(&leaving.instance, Some(version))?;
                marked.push((leaving, version, writer.commit()));
            }
            if let Some(holder) = holder
                && holder.stat.ephemeral_owner == session
                && holder.data == leaving.id.as_str().as_bytes()
            {
                deletions.push(client.delete(&leaving.address, Some(holder.stat.version)));
            }
        }
        // All of them are under way: a request is sent when it is made.
        for (leaving, version, deletion) in marked {
            match deletion.await {
                Ok(_) => {}
                Err(MultiWriteError::OperationFailed {
                    index: 1,
                    source: Error::NoNode | Error::BadVersion,
                }) => {}
                // Another changed the mark, or it may not be written.
                Err(MultiWriteError::OperationFailed { index: 0, source }) => {
                    event!(DEBUG, mark = leaving.mark, %source, "no mark of a deregistration");
                    deletions.push(client.delete(&leaving.instance, Some(version)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        for deletion in deletions {
            match deletion.await {
                Ok(()) | Err(Error::NoNode | Error::BadVersion) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    };
    let deleted = timeout(inner.timeout, deleted).await;
    let deleted = deleted.unwrap_or_else(|_| Err(Failure::late(inner.timeout)));
    if deleted.is_ok() {
        inner.keeper.forget(held);
        // What is not swept now is swept by the next one that leaves.
        let _ = timeout(inner.timeout / 4, sweep(inner, held)).await;
    } else if inner.keeper.keeps_only(held) {
        // The end of the session takes all nodes with it, whenever the server hears of it.
        inner.keeping.close();
    }
    deleted
}

/// The marks that are there already of what is leaving, with a place to make the others.
async fn marks(
    inner: &Inner,
    client: &Client,
    held: &[Held],
    leaving: &[Leaving<'_>],
) -> Result<Vec<Option<Node>>, Failure> {
    let paths: Vec<&str> = leaving.iter().map(|one| &*one.mark).collect();
    let marks = nodes(client, &paths).await?;
    if marks.iter().any(Option::is_none) {
        let services: BTreeSet<&ServiceName> =
            held.iter().map(|held| &held.registration.service).collect();
        for service in services {
            client.mkdir(&inner.paths.marks(service), &FOLDER).await?;
        }
    }
    Ok(marks)
}

/// Deletes what was not renewed in time, unless it has been meanwhile.
pub(super) async fn expire(
    inner: &Inner,
    service: &ServiceName,
    id: &InstanceId,
) -> Result<(), Failure> {
    let path = inner.paths.instance(service, id);
    let client = inner.keeping.client(inner.timeout).await?;
    let session = client.session_id().0;
    let Some(own) = nodes(&client, &[&path]).await?.into_iter().next().flatten() else {
        return Ok(());
    };
    if own.stat.ephemeral_owner != session {
        return Ok(());
    }
    let mut gone = vec![(path, own.stat.version)];
    if let Ok(instance) = value::decode(id.as_str(), &own.data) {
        let address = inner.paths.address(service, &instance.address);
        let holder = nodes(&client, &[&address]).await?.into_iter().next().flatten();
        if let Some(holder) = holder
            && holder.stat.ephemeral_owner == session
            && holder.data == id.as_str().as_bytes()
        {
            gone.push((address, holder.stat.version));
        }
    }
    // Versions tell nothing of a node that was made anew, but requests of a session are done in their
    // order: whoever registers or renews notes it first.
    if !inner.keeper.is_due(service, id) {
        return Ok(());
    }
    let mut writer = client.new_multi_writer();
    for (path, version) in &gone {
        writer.add_delete(path, Some(*version))?;
    }
    match writer.commit().await {
        Ok(_) => {
            event!(INFO, %service, %id, "lease expired");
            Ok(())
        }
        // It is gone, or another's.
        Err(MultiWriteError::OperationFailed {
            source: Error::NoNode | Error::BadVersion, ..
        }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
