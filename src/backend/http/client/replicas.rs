//! Several registries as replicas of each other: what is registered is registered at each, and an
//! instance is there if one of them has it.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::failure::{Failure, Failures};
use super::site::Site;
use super::{Asked, Found, batches};
use crate::backend::join::all;
use crate::backend::memory::Entry;
use crate::call::after;
use crate::instance::{InstanceId, ServiceName};
use crate::registry::{DEFAULT_TTL, Held, Lease, Registration, RegistryError, Renewal};
use crate::sync::Mutex;

/// How long the other registries are waited for once one has answered that knows all.
const FOLLOW: Duration = Duration::from_millis(250);
/// The same once one has answered that warms up, or whose name is asked for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many registrations are made again at once at a registry that lost them.
const AT_ONCE: usize = 4;

/// The URLs of one registry: those that work first.
pub(super) type Doors<'a> = Vec<&'a Site>;

/// What each registry has granted.
#[derive(Default)]
pub(super) struct Leases(Mutex<HashMap<(ServiceName, InstanceId), Granted>>);

struct Granted {
    /// By the index of the URL that granted it.
    by_site: HashMap<usize, Lease>,
    /// What nobody renews any more is forgotten.
    until: Instant,
}

impl Leases {
    fn note(&self, registration: &Registration, doors: &Doors<'_>, site: usize, lease: Lease) {
        let key = (registration.service.clone(), registration.instance.id.clone());
        let now = Instant::now();
        let until = after(now, registration.ttl.saturating_mul(3).max(DEFAULT_TTL));
        let mut table = self.0.lock();
        if !table.contains_key(&key) && table.len().is_power_of_two() {
            table.retain(|_, granted| granted.until > now);
        }
        let granted = table.entry(key).or_insert(Granted { by_site: HashMap::new(), until });
        granted.until = until;
        doors.iter().for_each(|door| drop(granted.by_site.remove(&door.index)));
        granted.by_site.insert(site, lease);
    }

    /// The lease that this registry granted. What this client did not register has the lease that its
    /// caller knows.
    fn at(&self, doors: &Doors<'_>, held: &Held) -> Option<Held> {
        let Registration { service, instance, .. } = &held.registration;
        let key = (service.clone(), instance.id.clone());
        let mut table = self.0.lock();
        let Some(granted) = table.get_mut(&key) else { return Some(held.clone()) };
        granted.until = after(Instant::now(), held.registration.ttl.saturating_mul(3));
        let lease = doors.iter().find_map(|door| granted.by_site.get(&door.index))?.clone();
        Some(Held { registration: held.registration.clone(), lease })
    }

    /// A lease that any registry granted, as far as this client knows of one.
    fn any(&self, registration: &Registration) -> Option<Lease> {
        let key = (registration.service.clone(), registration.instance.id.clone());
        self.0.lock().get(&key)?.by_site.values().next().cloned()
    }

    fn lost(&self, doors: &Doors<'_>, held: &Held) {
        let Registration { service, instance, .. } = &held.registration;
        let mut table = self.0.lock();
        if let Some(granted) = table.get_mut(&(service.clone(), instance.id.clone())) {
            doors.iter().for_each(|door| drop(granted.by_site.remove(&door.index)));
        }
    }

    fn forget(&self, held: &[Held]) {
        let mut table = self.0.lock();
        for Held { registration: Registration { service, instance, .. }, .. } in held {
            table.remove(&(service.clone(), instance.id.clone()));
        }
    }
}

/// Registries by the URLs that lead to them.
pub(super) struct Replicas {
    /// At least one.
    pub(super) sites: Vec<Site>,
    leases: Leases,
}

impl Replicas {
    pub(super) fn new(sites: Vec<Site>) -> Self {
        Self { sites, leases: Leases::default() }
    }

    fn is_one(&self) -> bool {
        self.sites.len() == 1
    }

    /// The registries: URLs that tell one name lead to one, and those that tell none to one each.
    pub(super) fn registries(&self) -> Vec<Doors<'_>> {
        let mut registries: Vec<(Option<Arc<str>>, Doors<'_>)> = Vec::new();
        for site in &self.sites {
            let name = site.name();
            let same = registries.iter_mut().find(|(other, _)| name.is_some() && *other == name);
            match same {
                Some((_, doors)) => doors.push(site),
                None => registries.push((name, vec![site])),
            }
        }
        let mut registries: Vec<Doors<'_>> =
            registries.into_iter().map(|(_, doors)| doors).collect();
        registries.iter_mut().for_each(|doors| doors.sort_by_key(|door| door.is_down()));
        registries
    }

    /// The registries, once each URL that answers has been asked which one it leads to.
    pub(super) async fn known_registries(&self) -> Vec<Doors<'_>> {
        if !self.is_one() {
            let unknown = self.sites.iter().filter(|site| site.is_unknown());
            let asked = unknown.map(|site| Box::pin(site.introduce()) as Pin<Box<_>>).collect();
            gather(asked, |answered: &Result<(), Failure>| answered.is_ok().then_some(PATIENCE))
                .await;
        }
        self.registries()
    }

    pub(super) async fn register(
        &self,
        registration: &Registration,
    ) -> Result<Lease, RegistryError> {
        if self.is_one() {
            let doors = vec![&self.sites[0]];
            let asked = first(&doors, |site| Box::pin(site.register(registration)));
            return Ok(asked.await.map(|(_, lease)| lease)?);
        }
        let registries = self.known_registries().await;
        let asked = registries.iter().map(|doors| {
            boxed(async move {
                let (site, lease) =
                    first(doors, |site| Box::pin(site.register(registration))).await?;
                self.leases.note(registration, doors, site, lease.clone());
                Ok(lease)
            })
        });
        let answers = gather(asked.collect(), |answer: &Result<Lease, Failure>| {
            answer.is_ok().then_some(FOLLOW)
        });
        let (mut granted, mut superseded) = (None::<Lease>, None);
        let mut failures = Failures::default();
        for answer in answers.await.into_iter().flatten() {
            match answer {
                Ok(lease) => {
                    let is_shorter = granted.as_ref().is_none_or(|other| lease.ttl < other.ttl);
                    granted = if is_shorter { Some(lease) } else { granted };
                }
                Err(failure) if failure.is_superseded() => superseded = Some(failure),
                Err(failure) => failures.keep(failure),
            }
        }
        match (granted, superseded) {
            (_, Some(failure)) => {
                // What was granted now, and what a registry that fails now has granted before.
                if let Some(lease) = self.leases.any(registration) {
                    self.give_up(&[Held { registration: registration.clone(), lease }]).await;
                }
                Err(failure.into())
            }
            (Some(lease), None) => Ok(lease),
            (None, None) => Err(failures.into_one().into()),
        }
    }

    pub(super) async fn renew(&self, held: &[Held]) -> Vec<Result<Renewal, RegistryError>> {
        if self.is_one() {
            let site = &self.sites[0];
            return renew(&vec![site], held).await;
        }
        let registries = self.known_registries().await;
        let renewals = registries.iter().map(|doors| boxed(self.renew_at(doors, held)));
        let answers = gather(renewals.collect(), |_| Some(PATIENCE)).await;
        let mut renewals: Vec<Vec<Option<Result<Renewal, RegistryError>>>> = answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| held.iter().map(|_| None).collect()))
            .collect();
        let holds = |at: usize| {
            let answers = renewals.iter().filter_map(|answers| answers[at].as_ref());
            answers.flatten().any(Renewal::holds)
        };
        let missing: Vec<(usize, usize)> = (0..held.len())
            .filter(|at| holds(*at))
            .flat_map(|at| (0..registries.len()).map(move |registry| (registry, at)))
            .filter(|(registry, at)| matches!(renewals[*registry][*at], Some(Ok(Renewal::Lost))))
            .collect();
        // A registry that came back empty is given what the others have.
        let followed = async {
            for some in missing.chunks(AT_ONCE) {
                let asked = some.iter().map(|(registry, at)| {
                    let (doors, registration) = (&registries[*registry], &held[*at].registration);
                    boxed(async move {
                        let (site, lease) =
                            first(doors, |site| Box::pin(site.register(registration))).await?;
                        self.leases.note(registration, doors, site, lease);
                        Ok::<_, Failure>(())
                    })
                });
                for ((registry, at), answer) in some.iter().zip(all(asked.collect()).await) {
                    if let Err(failure) = answer {
                        renewals[*registry][*at] = Some(Err(failure.into()));
                    }
                }
            }
        };
        // What is left over follows with the next renewal.
        let _ = timeout(PATIENCE, followed).await;
        let together = |at: usize| together(renewals.iter_mut().map(|one| one[at].take()));
        let results: Vec<_> = (0..held.len()).map(together).collect();
        let superseded = held
            .iter()
            .zip(&results)
            .filter(|(_, result)| matches!(result, Err(error) if error.is_superseded()));
        let superseded: Vec<Held> = superseded.map(|(held, _)| held.clone()).collect();
        if !superseded.is_empty() {
            self.give_up(&superseded).await;
        }
        results
    }

    /// Deregisters everywhere what is superseded at one registry. Where that fails, the lease runs out: a
    /// registry that hangs must not cost the other renewals of the batch their time.
    async fn give_up(&self, superseded: &[Held]) {
        let _ = timeout(FOLLOW, self.deregister(superseded)).await;
    }

    /// One result for each of `held`. What this registry never granted is lost there.
    async fn renew_at(
        &self,
        doors: &Doors<'_>,
        held: &[Held],
    ) -> Vec<Option<Result<Renewal, RegistryError>>> {
        let known: Vec<Option<Held>> =
            held.iter().map(|held| self.leases.at(doors, held)).collect();
        let granted: Vec<Held> = known.iter().flatten().cloned().collect();
        let mut renewed = renew(doors, &granted).await.into_iter();
        let results = held.iter().zip(known).map(|(held, known)| {
            let result = match known {
                Some(_) => renewed.next()?,
                None => Ok(Renewal::Lost),
            };
            if matches!(result, Ok(Renewal::Lost)) {
                self.leases.lost(doors, held);
            }
            Some(result)
        });
        results.collect()
    }

    pub(super) async fn deregister(&self, held: &[Held]) -> Result<(), RegistryError> {
        if self.is_one() {
            return Ok(deregister(&vec![&self.sites[0]], held).await?);
        }
        let registries = self.registries();
        let asked = registries.iter().map(|doors| {
            let granted = held.iter().filter_map(|held| self.leases.at(doors, held));
            let granted: Vec<Held> = granted.collect();
            boxed(async move { deregister(doors, &granted).await })
        });
        let answers = gather(asked.collect(), |_| Some(PATIENCE)).await;
        self.leases.forget(held);
        any_of(answers, |(), ()| ())
    }

    /// The answer of every registry that gives one, made one by `together`.
    pub(super) async fn each<'a, T>(
        &'a self,
        ask: impl Fn(&'a Site) -> Asked<'a, T> + Send + Sync,
        together: impl Fn(T, T) -> T,
    ) -> Result<T, Failure>
    where
        T: Send + 'a,
    {
        let registries = self.known_registries().await;
        let ask = &ask;
        let asked = registries
            .iter()
            .map(|doors| boxed(async move { first(doors, ask).await.map(|(_, answer)| answer) }));
        let answers = gather(asked.collect(), |answer: &Result<T, Failure>| {
            answer.is_ok().then_some(PATIENCE)
        });
        any_of(answers.await, together)
    }

    /// What is listed for a service, or for all and none.
    pub(super) async fn list(&self, service: Option<&ServiceName>) -> Result<Found, Failure> {
        let registries = self.known_registries().await;
        let asked = registries.iter().map(|doors| {
            boxed(async move { first(doors, |site| Box::pin(site.list(service))).await })
        });
        let answers = gather(asked.collect(), |answer: &Result<(usize, Found), Failure>| {
            answer.as_ref().ok().map(|(_, found)| patience(found))
        });
        let (mut lists, mut failures) = (Vec::new(), Failures::default());
        for (answer, doors) in answers.await.into_iter().zip(&registries) {
            match answer {
                Some(Ok((_, found))) => {
                    doors.iter().for_each(|door| door.has_listed());
                    lists.push(found);
                }
                Some(Err(failure)) => failures.keep(failure),
                None => {}
            }
        }
        if lists.is_empty() {
            return Err(failures.into_one());
        }
        Ok(union(&lists.iter().collect::<Vec<_>>(), self.have_all_listed()))
    }

    /// Whether each registry has listed something once: until then a list may lack what only the others
    /// have.
    pub(super) fn have_all_listed(&self) -> bool {
        self.registries().iter().all(|doors| doors.iter().any(|door| door.listed_once()))
    }
}

/// How long the others are waited for once a registry has listed this.
pub(super) fn patience(found: &Found) -> Duration {
    if found.warming { PATIENCE } else { FOLLOW }
}

/// The answer of the first door that gives one, with the index of its URL.
pub(super) async fn first<'a, T>(
    doors: &Doors<'a>,
    ask: impl Fn(&'a Site) -> Asked<'a, T> + Send,
) -> Result<(usize, T), Failure> {
    let mut failures = Failures::default();
    for site in doors {
        match ask(site).await {
            Err(failure) if !failure.is_final() => {
                site.failed();
                failures.push(&site.location.url, failure);
            }
            answered => {
                site.answered(answered.as_ref().err());
                return match answered {
                    Ok(answer) => Ok((site.index, answer)),
                    Err(failure) => Err(failure.naming(&site.location.url)),
                };
            }
        }
    }
    Err(failures.into_one())
}

async fn renew(doors: &Doors<'_>, held: &[Held]) -> Vec<Result<Renewal, RegistryError>> {
    let mut results = Vec::with_capacity(held.len());
    for batch in batches(held) {
        match first(doors, |site| Box::pin(site.renew(batch))).await {
            Ok((_, renewed)) => results.extend(renewed),
            Err(failure) => results.extend(batch.iter().map(|_| Err(failure.registry_error()))),
        }
    }
    results
}

async fn deregister(doors: &Doors<'_>, held: &[Held]) -> Result<(), Failure> {
    for batch in batches(held) {
        first(doors, |site| Box::pin(site.deregister(batch))).await?;
    }
    Ok(())
}

/// What became of a lease of which each registry may have said something.
fn together(
    answers: impl Iterator<Item = Option<Result<Renewal, RegistryError>>>,
) -> Result<Renewal, RegistryError> {
    let (mut held, mut lost, mut failed) = (None, false, None);
    for answer in answers.flatten() {
        match answer {
            // Whoever is replaced at one registry is replaced.
            Err(error) if error.is_superseded() => return Err(error),
            Err(error) => failed = failed.or(Some(error)),
            Ok(Renewal::Lost) => lost = true,
            Ok(Renewal::Renewed) => held = held.or(Some(Renewal::Renewed)),
            Ok(overridden) => held = Some(overridden),
        }
    }
    match (held, failed) {
        (Some(renewal), _) => Ok(renewal),
        (None, _) if lost => Ok(Renewal::Lost),
        (None, failed) => Err(failed
            .unwrap_or_else(|| RegistryError::unavailable("no registry has answered in time"))),
    }
}

/// All that was answered as one; an error if nothing was.
fn any_of<T, E: From<Failure>>(
    answers: Vec<Option<Result<T, Failure>>>,
    together: impl Fn(T, T) -> T,
) -> Result<T, E> {
    let (mut answered, mut failures) = (None, Failures::default());
    for answer in answers.into_iter().flatten() {
        match answer {
            Ok(answer) => {
                answered = Some(match answered {
                    Some(other) => together(other, answer),
                    None => answer,
                });
            }
            Err(failure) => failures.keep(failure),
        }
    }
    answered.ok_or_else(|| failures.into_one().into())
}

/// All instances of these lists, each once. It lacks for certain what every registry lacks that does not
/// warm up, so one of these is enough.
pub(super) fn union(lists: &[&Found], have_all_listed: bool) -> Found {
    let mut entries: Vec<Option<Entry>> = Vec::new();
    let (mut by_id, mut by_address) = (HashMap::new(), HashMap::new());
    for entry in lists.iter().flat_map(|list| &list.entries) {
        let of = |text: &str| (entry.service.clone(), text.to_owned());
        let id = of(entry.instance.id.as_str());
        let address = of(entry.instance.address.as_str());
        let same = [by_id.get(&id), by_address.get(&address)];
        let same: Vec<usize> = same.into_iter().flatten().copied().collect();
        let wins = |at: &usize| {
            entries[*at].as_ref().is_none_or(|other| entry.instance.replaces(&other.instance))
        };
        if !same.iter().all(wins) {
            continue;
        }
        same.iter().for_each(|at| entries[*at] = None);
        by_id.insert(id, entries.len());
        by_address.insert(address, entries.len());
        entries.push(Some(entry.clone()));
    }
    let mut entries: Vec<Entry> = entries.into_iter().flatten().collect();
    entries
        .sort_by(|a, b| (&a.service, &a.instance.address).cmp(&(&b.service, &b.instance.address)));
    // What left one registry may still be in another.
    let is_listed = |id: &&InstanceId| entries.iter().any(|entry| entry.instance.id == **id);
    let deregistered = lists.iter().flat_map(|list| &list.deregistered);
    let deregistered = deregistered.filter(|id| !is_listed(id)).cloned().collect();
    let revisions: Option<Vec<&str>> = lists.iter().map(|list| list.revision.as_deref()).collect();
    Found {
        revision: revisions.map(|revisions| revisions.join("+").into()),
        deregistered,
        warming: lists.iter().all(|list| list.warming),
        again: None,
        protection: lists.iter().find_map(|list| list.protection.clone()),
        unread: lists.iter().flat_map(|list| list.unread.iter().cloned()).collect(),
        complete: have_all_listed && lists.iter().all(|list| list.complete),
        entries,
    }
}

fn boxed<'a, T>(
    future: impl Future<Output = T> + Send + 'a,
) -> Pin<Box<dyn Future<Output = T> + Send + 'a>> {
    Box::pin(future)
}

/// What these come to, in their order. Once `patience` says how long an answer lets the others be waited
/// for, those that take longer are dropped: `None`.
async fn gather<T>(
    mut futures: Vec<Pin<Box<dyn Future<Output = T> + Send + '_>>>,
    patience: impl Fn(&T) -> Option<Duration>,
) -> Vec<Option<T>> {
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    let mut until: Option<Instant> = None;
    while !done.iter().all(Option::is_some) {
        let one = poll_fn(|cx| {
            for (at, (future, done)) in futures.iter_mut().zip(&mut done).enumerate() {
                if done.is_none()
                    && let Poll::Ready(value) = future.as_mut().poll(cx)
                {
                    *done = Some(value);
                    return Poll::Ready(at);
                }
            }
            Poll::Pending
        });
        let at = tokio::select! {
            biased;
            at = one => Some(at),
            () = crate::call::until(until) => None,
        };
        let Some(at) = at else { break };
        if let Some(wait) = done[at].as_ref().and_then(&patience) {
            let end = Instant::now() + wait;
            until = Some(until.map_or(end, |until| until.min(end)));
        }
    }
    done
}
