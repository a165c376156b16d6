//! Reads the list of a service.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use zookeeper_client::{Client, Error, MultiReadResult, Stat};

use super::Inner;
use super::failure::Failure;
use super::marks::judge;
use super::paths::{Paths, unescaped};
use crate::backend::value::decode;
use crate::discovery::Resolved;
use crate::instance::{Address, Instance, Precedence, ServiceName};
use crate::registry::DEFAULT_TTL;
use crate::sync::{Mutex, event};

/// How many nodes are read in one request: one of more than 1 MB ends the connection.
const BATCH: usize = 100;
/// For so long after a server came back without what it had its lists prove nothing.
const WARMING: Duration = DEFAULT_TTL;

/// When each service's node was made. Nobody deletes one: another one tells of servers that came back
/// without what they had.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<HashMap<ServiceName, Past>>);

#[derive(Debug)]
struct Past {
    made: i64,
    /// When it was seen to be another.
    back: Option<Instant>,
}

impl History {
    /// Takes in which change made a service's node. True: it is another than before.
    fn is_replaced(&self, service: &ServiceName, made: i64, now: Instant) -> bool {
        let mut pasts = self.0.lock();
        let past = pasts.entry(service.clone()).or_insert(Past { made, back: None });
        let is_replaced = past.made != made;
        if is_replaced {
            *past = Past { made, back: Some(now) };
        }
        is_replaced
    }

    /// Whether a service's lists prove nothing, as its node is another than before.
    fn is_warming(&self, service: &ServiceName, now: Instant) -> bool {
        let back = self.0.lock().get(service).and_then(|past| past.back);
        back.is_some_and(|back| now.saturating_duration_since(back) < WARMING)
    }
}

/// The list of a service, whose nodes are these.
pub(super) async fn read(
    inner: &Inner,
    client: &Client,
    service: &ServiceName,
    children: Option<(Vec<String>, Stat)>,
) -> Result<Resolved, Failure> {
    let Inner { paths, history, mass_expiry, .. } = inner;
    // Nobody has ever registered there, or it was forgotten: who knows?
    let Some((names, parent)) = children else { return Ok(Resolved::new(Vec::new())) };
    let folder = paths.service(service);
    let mut holders: HashMap<Address, ((Precedence, i64), Instance)> = HashMap::new();
    let mut unread = Vec::new();
    for names in names.chunks(BATCH) {
        let mut reader = client.new_multi_reader();
        for name in names {
            reader.add_get_data(&format!("{folder}/{name}"))?;
        }
        for (name, result) in names.iter().zip(reader.commit().await?) {
            let (data, stat) = match result {
                MultiReadResult::Data { data, stat } => (data, stat),
                // It went between the two requests.
                MultiReadResult::Error { err: Error::NoNode } => continue,
                MultiReadResult::Error { err } => return Err(err.into()),
                _ => continue,
            };
            match unescaped(name).ok_or("no id".to_owned()).and_then(|id| decode(&id, &data)) {
                Ok(instance) => {
                    let address = instance.address.clone();
                    let rank = (instance.precedence(), stat.mzxid);
                    if holders.get(&address).is_none_or(|(held, _)| *held <= rank) {
                        holders.insert(address, (rank, instance));
                    }
                }
                Err(reason) => {
                    event!(WARN, folder, name, reason, "a node's data is no instance");
                    unread.push(format!("{folder}/{name}: {reason}"));
                }
            }
        }
    }
    if history.is_replaced(service, parent.czxid, Instant::now()) {
        event!(WARN, %service, "ZooKeeper has lost what it had: its lists prove nothing for now");
        mass_expiry.forget(service);
    }
    let instances: Vec<Instance> = holders.into_values().map(|(_, instance)| instance).collect();
    let suspects = mass_expiry.listed(service, &instances, parent.pzxid, Instant::now());
    judge(inner, client, service, &suspects).await?;
    let now = Instant::now();
    let doubt = mass_expiry.doubt(service, now);
    Ok(Resolved::new(instances)
        .revision(parent.pzxid.to_string())
        .authoritative(true)
        .warming(history.is_warming(service, now) || doubt.is_some())
        .deregistered(doubt.unwrap_or_default())
        .complete(unread.is_empty())
        .unread(unread))
}

/// `None`: there is no such service.
pub(super) async fn children(
    client: &Client,
    folder: &str,
) -> Result<Option<(Vec<String>, Stat)>, Failure> {
    match client.get_children(folder).await {
        Ok(found) => Ok(Some(found)),
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Every service that has an instance: the nodes of the others stay.
pub(super) async fn services(client: &Client, paths: &Paths) -> Result<Vec<ServiceName>, Failure> {
    let Some((names, _)) = children(client, paths.all()).await? else { return Ok(Vec::new()) };
    let mut names: Vec<ServiceName> = names.iter().filter_map(|name| name.parse().ok()).collect();
    names.sort();
    let mut services = Vec::with_capacity(names.len());
    for names in names.chunks(BATCH) {
        let mut reader = client.new_multi_reader();
        for name in names {
            reader.add_get_data(&paths.service(name))?;
        }
        for (name, result) in names.iter().zip(reader.commit().await?) {
            match result {
                MultiReadResult::Data { stat, .. } if stat.num_children > 0 => {
                    services.push(name.clone());
                }
                MultiReadResult::Error { err } if err != Error::NoNode => return Err(err.into()),
                _ => {}
            }
        }
    }
    Ok(services)
}
