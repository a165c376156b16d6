//! Puts, renews and deletes the keys of registrations.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::Inner;
use super::api::{Compare, Delete, Done, Int, KeyValue, Op, Put, Range, Txn, Txned};
use super::failure::Failure;
use super::leases::Member;
use crate::backend::join::all;
use crate::backend::value;
use crate::instance::{Instance, InstanceId, ServiceName};
use crate::registry::{
    HealthOverride, Held, Lease, Registration, RegistryError, RegistryErrorKind, Renewal,
};
use crate::sync::event;

/// How often a registration is tried that others change at the same time, or whose lease has gone.
const TRIES: usize = 5;
/// How many registrations one request looks at: etcd takes 128 operations, and each needs two.
const BATCH: usize = 60;
/// How many leases are renewed at once.
const AT_ONCE: usize = 8;

/// What is known of the keys that a registration writes.
#[derive(Default)]
struct Known {
    instance: Option<KeyValue>,
    address: Option<KeyValue>,
    /// The key of another instance that holds the address.
    replaced: Option<(String, Int)>,
}

pub(super) async fn register(
    inner: &Inner,
    registration: &Registration,
) -> Result<Lease, RegistryError> {
    let (instance, member) = (&registration.instance, member(inner, registration));
    let mut known = Known::default();
    let mut granted = None;
    for _ in 0..TRIES {
        let lease = match granted {
            Some(lease) => lease,
            None => inner.leases.take(&inner.gateway, registration.ttl, &member).await?,
        };
        granted = Some(lease);
        let found = match put(inner, registration, lease.id, &known).await {
            Ok(None) => {
                let former = known.instance.map_or(Int(0), |kv| kv.lease);
                if former != Int(0) && former != lease.id {
                    inner.leases.replaced(&inner.gateway, former).await;
                }
                return Ok(Lease::new(lease.id.0.to_string(), Some(lease.ttl)));
            }
            Ok(Some(found)) => found,
            // The lease has ended since it was last renewed.
            Err(failure) if failure.is_not_found() => {
                inner.leases.forget(lease.id);
                granted = None;
                continue;
            }
            Err(failure) => {
                // Without an answer it may be there, and then has its time.
                if matches!(failure, Failure::Refused { .. }) {
                    inner.leases.unused(&inner.gateway, lease.id).await;
                }
                return Err(failure.into());
            }
        };
        known = found;
        if let Err(stale) = check_epoch(known.instance.as_ref(), registration) {
            inner.leases.unused(&inner.gateway, lease.id).await;
            return Err(stale);
        }
        known.replaced = match replaced(inner, registration, &known).await? {
            Some(holder) if !instance.takes_address_from(&holder.instance) => {
                inner.leases.unused(&inner.gateway, lease.id).await;
                return Err(RegistryError::superseded(&holder.instance));
            }
            holder => holder.map(|holder| (holder.key, holder.revision)),
        };
    }
    if let Some(lease) = granted {
        inner.leases.unused(&inner.gateway, lease.id).await;
    }
    Err(RegistryError::unavailable("others change the same keys again and again"))
}

/// Puts the keys if they are as known; if not, how they are.
async fn put(
    inner: &Inner,
    registration: &Registration,
    lease: Int,
    known: &Known,
) -> Result<Option<Known>, Failure> {
    let Registration { service, instance, .. } = registration;
    let key = inner.keys.instance(service, &instance.id);
    let holder = inner.keys.address(service, &instance.address);
    let revision = |kv: &Option<KeyValue>| kv.as_ref().map_or(Int(0), |kv| kv.mod_revision);
    let written = value::encode_over(instance, known.instance.as_ref().map(|kv| &*kv.value.0));
    let put = |key: &str, value: &str| Op::Put(Put { key: key.into(), value: value.into(), lease });
    let mut txn = Txn {
        compare: vec![
            Compare::revision(&key, revision(&known.instance)),
            Compare::revision(&holder, revision(&known.address)),
        ],
        success: vec![put(&key, &written), put(&holder, instance.id.as_str())],
        failure: vec![Op::Range(Range::one(&key)), Op::Range(Range::one(&holder))],
    };
    if let Some((other, revision)) = &known.replaced {
        txn.compare.push(Compare::revision(other, *revision));
        txn.success.push(Op::Delete(Delete { key: other.as_str().into() }));
    }
    let done: Txned = inner.gateway.ask("/v3/kv/txn", &txn).await?;
    if done.succeeded {
        return Ok(None);
    }
    let mut found = done.found().into_iter();
    let (instance, address) = (found.next().flatten(), found.next().flatten());
    Ok(Some(Known { instance, address, replaced: None }))
}

fn check_epoch(kv: Option<&KeyValue>, registration: &Registration) -> Result<(), RegistryError> {
    let Registration { instance, .. } = registration;
    // What cannot be read is replaced.
    let stored = kv.and_then(|kv| value::decode(instance.id.as_str(), &kv.value.0).ok());
    match stored {
        Some(stored) if stored.epoch > instance.epoch => {
            let kind = RegistryErrorKind::StaleEpoch { held: stored.epoch };
            Err(RegistryError::new(kind, format!("epoch {} is registered", stored.epoch)))
        }
        _ => Ok(()),
    }
}

/// Another instance at the address of a registration, as it is stored.
struct Holder {
    key: String,
    revision: Int,
    instance: Instance,
}

/// The other instance that is at this address, if it still is.
async fn replaced(
    inner: &Inner,
    registration: &Registration,
    known: &Known,
) -> Result<Option<Holder>, Failure> {
    let Registration { service, instance, .. } = registration;
    let Some(holder) = &known.address else { return Ok(None) };
    let id = InstanceId::from(String::from_utf8_lossy(&holder.value.0).into_owned());
    if id == instance.id {
        return Ok(None);
    }
    let key = inner.keys.instance(service, &id);
    let look = Txn { success: vec![Op::Range(Range::one(&key))], ..Txn::default() };
    let found: Txned = inner.gateway.ask("/v3/kv/txn", &look).await?;
    let Some(kv) = found.found().into_iter().next().flatten() else { return Ok(None) };
    // It may have moved on, and not have told.
    let stays = value::decode(id.as_str(), &kv.value.0)
        .ok()
        .filter(|other| other.address == instance.address);
    Ok(stays.map(|instance| Holder { key, revision: kv.mod_revision, instance }))
}

pub(super) async fn renew(inner: &Inner, held: &[Held]) -> Vec<Result<Renewal, RegistryError>> {
    let mut results = Vec::with_capacity(held.len());
    let mut leases = BTreeSet::new();
    for batch in held.chunks(BATCH) {
        let states = match look(inner, batch).await {
            Ok(states) => states,
            Err(failure) => {
                results.extend(batch.iter().map(|_| Err(failure.registry_error())));
                continue;
            }
        };
        for (at, held) in batch.iter().enumerate() {
            let renewal = match lease_of(held) {
                Some(lease) => renewed(held, lease, states.get(at)),
                None => Ok(Renewal::Lost),
            };
            // Only those that keep what is to be renewed: whoever asks may not be the one who was granted it.
            if renewal.as_ref().is_ok_and(Renewal::holds) {
                leases.extend(lease_of(held));
            }
            results.push(renewal);
        }
    }
    let leases: Vec<Int> = leases.into_iter().collect();
    let mut kept: HashMap<Int, Result<bool, Failure>> = HashMap::new();
    for leases in leases.chunks(AT_ONCE) {
        let keep = leases.iter().map(|id| inner.leases.keep(&inner.gateway, *id));
        let answers = all(keep.map(|keep| Box::pin(keep) as _).collect()).await;
        kept.extend(leases.iter().copied().zip(answers));
    }
    for (held, result) in held.iter().zip(&mut results) {
        if !result.as_ref().is_ok_and(Renewal::holds) {
            continue;
        }
        let Some(id) = lease_of(held) else { continue };
        match kept.get(&id) {
            Some(Ok(true)) => {
                let registration = &held.registration;
                inner.leases.renewed(id, &member(inner, registration), registration.ttl);
            }
            Some(Err(failure)) => *result = Err(failure.registry_error()),
            Some(Ok(false)) | None => *result = Ok(Renewal::Lost),
        }
    }
    for id in leases {
        if matches!(kept.get(&id), Some(Ok(true))) {
            expire(inner, id).await;
        }
    }
    results
}

/// Deletes what nobody has renewed in time: its lease is kept for others.
async fn expire(inner: &Inner, lease: Int) {
    for batch in inner.leases.overdue(lease).chunks(BATCH) {
        // Without marks: nobody has said that they go.
        let success = batch.iter().flat_map(|member| deletions(member, lease, None)).collect();
        let txn = Txn { success, ..Txn::default() };
        match inner.gateway.ask::<Done>("/v3/kv/txn", &txn).await {
            Ok(Done {}) => batch.iter().for_each(|member| {
                event!(INFO, key = member.key, "lease expired");
                inner.leases.left(lease, member);
            }),
            Err(failure) => event!(DEBUG, %failure, "a lease is not ended yet"),
        }
    }
}

/// Deletes the keys of a registration, as long as they are of this lease: what another has put there since
/// stays. With a lease of marks the instance's key leaves one.
fn deletions(member: &Member, lease: Int, marks: Option<Int>) -> [Op; 2] {
    let Member { key, holder, mark, id } = member;
    let put = |lease| Op::Put(Put { key: mark.as_str().into(), value: id.as_str().into(), lease });
    let mut gone = vec![Op::Delete(Delete { key: key.as_str().into() })];
    gone.extend(marks.map(put));
    let own = Txn { compare: vec![Compare::lease(key, lease)], success: gone, ..Txn::default() };
    let is_ours = vec![Compare::lease(holder, lease), Compare::value(holder, id.as_str())];
    let delete = Op::Delete(Delete { key: holder.as_str().into() });
    let address = Txn { compare: is_ours, success: vec![delete], ..Txn::default() };
    [Op::Txn(own), Op::Txn(address)]
}

fn member(inner: &Inner, registration: &Registration) -> Member {
    let Registration { service, instance, .. } = registration;
    Member {
        key: inner.keys.instance(service, &instance.id),
        holder: inner.keys.address(service, &instance.address),
        mark: inner.keys.mark(service, &instance.id),
        id: instance.id.clone(),
    }
}

/// The keys of these registrations: each instance's, and its address's.
async fn look(
    inner: &Inner,
    held: &[Held],
) -> Result<Vec<(Option<KeyValue>, Option<KeyValue>)>, Failure> {
    let mut txn = Txn::default();
    for Held { registration, .. } in held {
        let Registration { service, instance, .. } = registration;
        let key = inner.keys.instance(service, &instance.id);
        let holder = inner.keys.address(service, &instance.address);
        txn.success.push(Op::Range(Range::one(&key)));
        txn.success.push(Op::Range(Range::one(&holder)));
    }
    let found: Txned = inner.gateway.ask("/v3/kv/txn", &txn).await?;
    let mut found = found.found().into_iter();
    let mut states = Vec::with_capacity(held.len());
    while let (Some(instance), Some(address)) = (found.next(), found.next()) {
        states.push((instance, address));
    }
    Ok(states)
}

/// What a registration has come to whose lease holds.
fn renewed(
    held: &Held,
    lease: Int,
    state: Option<&(Option<KeyValue>, Option<KeyValue>)>,
) -> Result<Renewal, RegistryError> {
    let instance = &held.registration.instance;
    let Some((Some(kv), holder)) = state else { return Ok(Renewal::Lost) };
    check_epoch(Some(kv), &held.registration)?;
    let id = instance.id.as_str().as_bytes();
    let is_replaced = holder.as_ref().is_none_or(|holder| holder.value.0 != id);
    if kv.lease != lease || is_replaced {
        return Ok(Renewal::Lost);
    }
    // Changed by hand, or by this process since: it is put again, with its full state.
    Ok(value::renewal(instance, &kv.value.0).unwrap_or(Renewal::Lost))
}

/// What of a deregistration is left to do once its keys are gone.
pub(super) struct GivingBack(Vec<(Int, Member, bool)>);

pub(super) async fn deregister(inner: &Inner, held: &[Held]) -> Result<GivingBack, Failure> {
    let mut given_back = Vec::with_capacity(held.len());
    for batch in held.chunks(BATCH) {
        // The address that each has in truth: who takes it back for another may know only its id.
        let states = look(inner, batch).await?;
        let from = given_back.len();
        for (held, (stored, _)) in batch.iter().zip(states) {
            let Some(lease) = lease_of(held) else { continue };
            let mut member = member(inner, &held.registration);
            let ours = stored.filter(|kv| kv.lease == lease);
            let stored =
                ours.as_ref().and_then(|kv| value::decode(member.id.as_str(), &kv.value.0).ok());
            if let Some(stored) = stored {
                if stored.epoch > held.registration.instance.epoch {
                    // A newer registration under the same lease stays.
                    continue;
                }
                member.holder = inner.keys.address(&held.registration.service, &stored.address);
            }
            given_back.push((lease, member, ours.is_some()));
        }
        delete(inner, &given_back[from..]).await?;
    }
    Ok(GivingBack(given_back))
}

/// Deletes the keys of registrations and leaves marks. If there can be no marks the registrations look as if
/// they had expired, which is no reason to keep them.
async fn delete(inner: &Inner, leaving: &[(Int, Member, bool)]) -> Result<(), Failure> {
    if leaving.is_empty() {
        return Ok(());
    }
    let mut is_new = false;
    let mut marks = inner.leases.of_marks(&inner.gateway).await.ok();
    loop {
        let success = leaving.iter().flat_map(|(lease, one, _)| deletions(one, *lease, marks));
        let txn = Txn { success: success.collect(), ..Txn::default() };
        match inner.gateway.ask::<Done>("/v3/kv/txn", &txn).await {
            Ok(Done {}) => return Ok(()),
            // Their lease went with its store.
            Err(failure) if marks.is_some() && failure.is_not_found() && !is_new => {
                is_new = true;
                inner.leases.forget_marks();
                marks = inner.leases.of_marks(&inner.gateway).await.ok();
            }
            // The rights do not include marks.
            Err(failure @ Failure::Refused { .. }) if marks.is_some() => {
                event!(DEBUG, %failure, "no marks of deregistrations");
                marks = None;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Gives the leases back that keep nothing any more. One that is not given back runs out.
pub(super) async fn give_back(inner: &Inner, GivingBack(leases): GivingBack) {
    for some in leases.chunks(AT_ONCE) {
        let give = some.iter().map(|(lease, member, is_ours)| {
            Box::pin(inner.leases.given_back(&inner.gateway, *lease, member, *is_ours)) as _
        });
        all(give.collect()).await;
    }
}

/// Puts the instance anew with another health, under the lease that it has. False: it is not there.
pub(super) async fn set_health(
    inner: &Inner,
    service: &ServiceName,
    id: &InstanceId,
    word: &HealthOverride,
) -> Result<bool, RegistryError> {
    let key = inner.keys.instance(service, id);
    let look = Txn { success: vec![Op::Range(Range::one(&key))], ..Txn::default() };
    for _ in 0..TRIES {
        let found: Txned = inner.gateway.ask("/v3/kv/txn", &look).await?;
        let Some(kv) = found.found().into_iter().next().flatten() else { return Ok(false) };
        let Some(value) = value::with_health(id.as_str(), &kv.value.0, word) else {
            return Ok(false);
        };
        let put = Put { key: key.as_str().into(), value: value.as_str().into(), lease: kv.lease };
        let txn = Txn {
            compare: vec![Compare::revision(&key, kv.mod_revision)],
            success: vec![Op::Put(put)],
            ..Txn::default()
        };
        match inner.gateway.ask::<Txned>("/v3/kv/txn", &txn).await {
            Ok(done) if done.succeeded => return Ok(true),
            Ok(_) => {}
            // The lease has ended meanwhile, and the key with it.
            Err(failure) if failure.is_not_found() => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    Err(RegistryError::unavailable("others change the same key again and again"))
}

/// The name of what is registered here, which the first who asks writes.
pub(super) async fn name(inner: &Inner) -> Result<Arc<str>, Failure> {
    let key = inner.keys.name();
    let name = format!("{:016x}", rand::random::<u64>());
    let put = Put { key: key.as_str().into(), value: name.as_str().into(), lease: Int(0) };
    let txn = Txn {
        compare: vec![Compare::revision(&key, Int(0))],
        success: vec![Op::Put(put)],
        failure: vec![Op::Range(Range::one(&key))],
    };
    let done: Txned = inner.gateway.ask("/v3/kv/txn", &txn).await?;
    if done.succeeded {
        return Ok(name.into());
    }
    match done.found().into_iter().next().flatten() {
        Some(kv) => Ok(String::from_utf8_lossy(&kv.value.0).into()),
        None => Err(Failure::Nonsense("neither a name nor room for one".to_owned())),
    }
}

/// `None`: no lease of ours.
fn lease_of(held: &Held) -> Option<Int> {
    held.lease.id.parse().ok().map(Int)
}
