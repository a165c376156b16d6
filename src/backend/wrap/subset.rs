//! A few of very many instances.

use std::fmt;

use async_trait::async_trait;

use super::follow::{apply, changes};
use crate::call::hash_of;
use crate::discovery::{Discovery, DiscoveryError, Resolved, Update, UpdateStream};
use crate::instance::{Instance, ServiceName};

/// A few of a source's instances, so that each of many clients keeps connections to a few of many servers.
///
/// The instances stand in a ring, in the order of a hash of their ids. A client takes so many in a row,
/// from a place that its number gives: numbers are spread so that however many clients there are, each
/// instance is taken by about equally many of them. An instance that comes or goes changes no more than
/// two of a client's.
///
/// With fewer than twice as many instances as are to be taken, all are: a part would save little.
#[derive(Clone)]
pub struct Subset<D> {
    source: D,
    size: usize,
    /// Where in the ring, from 0 to 1.
    place: f64,
}

impl<D> Subset<D> {
    /// `size` of the source's instances (1 at least), for the client with this number: its ordinal among
    /// the clients, from 0. Numbers that are spread over a small range balance best.
    pub fn new(source: D, size: usize, client: u32) -> Self {
        // Van der Corput's sequence in base 2: the n first places are about evenly spread, for every n.
        let place = f64::from(client.reverse_bits()) / (f64::from(u32::MAX) + 1.0);
        Self { source, size: size.max(1), place }
    }

    /// The same for a client that has a name and no number, such as a host's: balanced as chance is.
    pub fn named(source: D, size: usize, client: &str) -> Self {
        let place = hash_of(client.as_bytes()) as f64 / u64::MAX as f64;
        Self { source, size: size.max(1), place }
    }

    fn choice(&self) -> Choice {
        Choice { size: self.size, place: self.place }
    }
}

#[derive(Clone, Copy)]
struct Choice {
    size: usize,
    place: f64,
}

impl Choice {
    fn of(self, instances: &[Instance]) -> Vec<Instance> {
        let count = instances.len();
        if count < 2 * self.size {
            return instances.to_vec();
        }
        let mut ring: Vec<(u64, &Instance)> =
            instances.iter().map(|one| (hash_of(one.id.as_str().as_bytes()), one)).collect();
        ring.sort_by(|(a, one), (b, other)| a.cmp(b).then_with(|| one.id.cmp(&other.id)));
        let first = (self.place * count as f64) as usize;
        let row = ring.iter().cycle().skip(first).take(self.size);
        row.map(|(_, instance)| Instance::clone(instance)).collect()
    }
}

#[async_trait]
impl<D: Discovery> Discovery for Subset<D> {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        let mut resolved = self.source.resolve(service).await?;
        resolved.instances = self.choice().of(&resolved.instances);
        Ok(resolved)
    }

    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        let mut watch = self.source.watch(service)?;
        let choice = self.choice();
        Some(UpdateStream::fed(4, move |updates| async move {
            let mut list = Resolved::default();
            let mut chosen = Vec::new();
            while let Some(item) = watch.next().await {
                let items = match item {
                    Ok(update) => {
                        let is_whole = apply(&mut list, update);
                        let before = std::mem::replace(&mut chosen, choice.of(&list.instances));
                        match is_whole {
                            true => {
                                let instances = chosen.clone();
                                vec![Ok(Update::Set(Resolved { instances, ..list.clone() }))]
                            }
                            false => changes(&before, &chosen).into_iter().map(Ok).collect(),
                        }
                    }
                    Err(error) => vec![Err(error)],
                };
                for item in items {
                    if !updates.send(item).await {
                        return;
                    }
                }
            }
        }))
    }

    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        self.source.services().await
    }
}

impl<D: fmt::Debug> fmt::Debug for Subset<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subset").field("source", &self.source).field("size", &self.size).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    fn instances(count: usize) -> Vec<Instance> {
        let at = |n| format!("tcp@10.0.{}.{}:1", n / 250, n % 250 + 1).parse().unwrap();
        (0..count).map(|n| Instance::new(format!("i{n}"), at(n))).collect()
    }

    fn chosen(client: u32, size: usize, instances: &[Instance]) -> HashSet<String> {
        let choice = Subset::new((), size, client).choice().of(instances);
        choice.into_iter().map(|one| one.id.as_str().to_owned()).collect()
    }

    #[test]
    fn every_instance_is_taken_by_about_equally_many() {
        for (servers, clients, size) in
            [(100, 100, 20), (300, 1000, 10), (1000, 300, 20), (97, 64, 7)]
        {
            let all = instances(servers);
            let mut taken: HashMap<String, usize> = HashMap::new();
            for client in 0..clients {
                let ids = chosen(client, size, &all);
                assert_eq!(ids.len(), size);
                ids.into_iter().for_each(|id| *taken.entry(id).or_default() += 1);
            }
            let mean = (clients as usize * size) as f64 / servers as f64;
            let most = *taken.values().max().unwrap() as f64;
            let least =
                all.iter().map(|one| taken.get(one.id.as_str()).copied().unwrap_or(0)).min();
            let least = least.unwrap() as f64;
            let text = format!("{servers} {clients} {size}: {least} to {most}, mean {mean}");
            assert!(most <= mean * 1.25 + 2.0 && least >= mean * 0.75 - 2.0, "{text}");
        }
    }

    #[test]
    fn one_that_comes_or_goes_changes_at_most_two_of_a_clients() {
        let all = instances(200);
        for client in 0..50 {
            let before = chosen(client, 20, &all);
            for gone in 0..200 {
                let mut fewer = all.clone();
                fewer.remove(gone);
                let after = chosen(client, 20, &fewer);
                assert!(before.difference(&after).count() <= 2, "client {client}, without {gone}");
            }
        }
    }

    #[test]
    fn of_few_all_are_taken() {
        assert_eq!(chosen(3, 20, &instances(39)).len(), 39);
        assert_eq!(chosen(3, 20, &instances(40)).len(), 20);
        assert_eq!(chosen(3, 0, &instances(40)).len(), 1);
    }
}
