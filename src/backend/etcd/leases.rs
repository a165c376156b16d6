//! The leases that keys are put with: one for all registrations of a value, or one for each.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::api::{Done, Grant, Int, LeaseId, LeaseKeys, LeaseTime, Leased, Streamed};
use super::failure::Failure;
use super::gateway::Gateway;
use crate::call::after;
use crate::instance::InstanceId;
use crate::sync::{Mutex, event};

/// A lease is asked for by so much longer than is told: until then after its last renewal it is as good
/// as new, and need not be renewed for each of many registrations.
const SPARE: Duration = Duration::from_secs(1);

/// How long a mark of a deregistration stays at most, and half of it at least: all clients have looked by
/// then.
const MARK_TTL: Duration = Duration::from_secs(240);

/// What a registration is kept by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub(super) id: Int,
    /// How long it holds at least, from now.
    pub(super) ttl: Duration,
}

pub(super) struct Leases {
    each: bool,
    table: Mutex<Table>,
    /// One request for a lease at a time, so that many registrations at once do not ask for one each.
    asking: Semaphore,
    /// The lease of new marks of deregistrations, and when it was granted.
    marks: Mutex<Option<(Int, Instant)>>,
}

#[derive(Default)]
struct Table {
    /// By the seconds that were asked for.
    shared: HashMap<u64, Shared>,
    /// What each lease keeps that is shared, and until when without a renewal of its own: the lease is
    /// renewed for others too.
    members: HashMap<Int, HashMap<String, Kept>>,
}

/// A registration that a lease keeps, by its key.
struct Kept {
    member: Member,
    until: Instant,
}

/// A registration, with the keys that it has.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) key: String,
    /// The key of its address.
    pub(super) holder: String,
    /// The key of the mark that it was deregistered.
    pub(super) mark: String,
    pub(super) id: InstanceId,
}

#[derive(Clone, Copy)]
struct Shared {
    granted: Granted,
    /// When it was last known to be there with all its time.
    whole: Instant,
}

impl Leases {
    /// One lease for all registrations that ask for the same time, or one for `each`.
    pub(super) fn new(each: bool) -> Self {
        let (table, marks) = (Mutex::default(), Mutex::default());
        Self { each, table, asking: Semaphore::new(1), marks }
    }

    /// A lease for marks of deregistrations, which is never renewed.
    pub(super) async fn of_marks(&self, gateway: &Gateway) -> Result<Int, Failure> {
        let (known, asked) = (*self.marks.lock(), Instant::now());
        if let Some((id, granted)) = known
            && asked.saturating_duration_since(granted) < MARK_TTL / 2
        {
            return Ok(id);
        }
        let granted = grant(gateway, MARK_TTL.as_secs()).await?;
        *self.marks.lock() = Some((granted.id, asked));
        Ok(granted.id)
    }

    /// The lease of marks is not there any more.
    pub(super) fn forget_marks(&self) {
        *self.marks.lock() = None;
    }

    /// A lease that holds for `ttl` at least, and keeps this registration from now on: whoever gives
    /// back the last of the others does not take it along.
    pub(super) async fn take(
        &self,
        gateway: &Gateway,
        ttl: Duration,
        member: &Member,
    ) -> Result<Granted, Failure> {
        let seconds = seconds(ttl);
        if self.each {
            return grant(gateway, seconds).await;
        }
        let _one = self.asking.acquire().await;
        let known = self.table.lock().shared.get(&seconds).copied();
        if let Some(shared) = known {
            let is_whole = shared.whole.elapsed() < SPARE;
            if (is_whole || self.keep(gateway, shared.granted.id).await?)
                && self.join(seconds, shared.granted, member)
            {
                return Ok(shared.granted);
            }
        }
        let asked = Instant::now();
        let granted = grant(gateway, seconds).await?;
        self.table.lock().shared.insert(seconds, Shared { granted, whole: asked });
        self.join(seconds, granted, member);
        Ok(granted)
    }

    /// False: the lease was given back meanwhile.
    fn join(&self, seconds: u64, granted: Granted, member: &Member) -> bool {
        let mut table = self.table.lock();
        let stands = table.shared.get(&seconds).is_some_and(|one| one.granted.id == granted.id);
        if stands {
            let until = after(Instant::now(), granted.ttl);
            let kept = Kept { member: member.clone(), until };
            table.members.entry(granted.id).or_default().insert(member.key.clone(), kept);
        }
        stands
    }

    /// Renews a lease; false: it is not there any more.
    pub(super) async fn keep(&self, gateway: &Gateway, id: Int) -> Result<bool, Failure> {
        let asked = Instant::now();
        let kept = gateway.ask::<Streamed<Leased>>("/v3/lease/keepalive", &LeaseId { id }).await?;
        let holds = match kept {
            Streamed { result: Some(leased), .. } => leased.ttl > Int(0),
            Streamed { error: Some(refusal), .. } => return Err(Failure::of(refusal)),
            Streamed { .. } => {
                return Err(Failure::Nonsense("neither a lease nor an error".into()));
            }
        };
        if holds {
            let mut table = self.table.lock();
            let shared = table.shared.values_mut().find(|shared| shared.granted.id == id);
            if let Some(shared) = shared {
                shared.whole = asked;
            }
        } else {
            self.forget(id);
        }
        Ok(holds)
    }

    /// This registration was renewed, for so long.
    pub(super) fn renewed(&self, id: Int, member: &Member, ttl: Duration) {
        let mut table = self.table.lock();
        // What another value registered under this lease is that value's to look after.
        let kept = table.members.get_mut(&id).and_then(|members| members.get_mut(&member.key));
        if let Some(kept) = kept {
            kept.until = after(Instant::now(), ttl.saturating_add(SPARE));
        }
    }

    /// The registrations under this lease that nobody has renewed in time.
    pub(super) fn overdue(&self, id: Int) -> Vec<Member> {
        let (table, now) = (self.table.lock(), Instant::now());
        let kept = table.members.get(&id).into_iter().flat_map(HashMap::values);
        kept.filter(|kept| kept.until <= now).map(|kept| kept.member.clone()).collect()
    }

    /// What was taken for a registration surely keeps nothing of it. One that is shared is there for the
    /// others, and may keep the registration as it was before: what nobody renews ends by itself.
    pub(super) async fn unused(&self, gateway: &Gateway, id: Int) {
        if self.each {
            self.revoke(gateway, id).await;
        }
    }

    /// This registration has another lease now: the one before may keep nothing.
    pub(super) async fn replaced(&self, gateway: &Gateway, former: Int) {
        if self.each {
            self.revoke_if_empty(gateway, former).await;
        }
    }

    /// This registration was taken back, and had this lease if it `is_ours`.
    pub(super) async fn given_back(
        &self,
        gateway: &Gateway,
        id: Int,
        member: &Member,
        is_ours: bool,
    ) {
        if self.each {
            if is_ours {
                self.revoke_if_empty(gateway, id).await;
            }
        } else if self.left(id, member) {
            self.revoke(gateway, id).await;
        }
    }

    /// A lease may be of others too, who made it by hand: then it stays.
    async fn revoke_if_empty(&self, gateway: &Gateway, id: Int) {
        let asked = LeaseKeys { id, keys: true };
        match gateway.ask::<LeaseTime>("/v3/lease/timetolive", &asked).await {
            Ok(lease) if lease.keys.is_empty() => self.revoke(gateway, id).await,
            Ok(_) => {}
            Err(failure) => event!(DEBUG, %failure, "a lease is not revoked: it runs out"),
        }
    }

    /// It does not keep this registration any more; true: nor any other, and nobody joins it.
    pub(super) fn left(&self, id: Int, member: &Member) -> bool {
        let mut table = self.table.lock();
        let Some(members) = table.members.get_mut(&id) else { return false };
        members.remove(&member.key);
        let is_empty = members.is_empty();
        if is_empty {
            table.members.remove(&id);
            table.shared.retain(|_, shared| shared.granted.id != id);
        }
        is_empty
    }

    /// Gives a lease back that keeps nothing. That it fails is no harm: the lease runs out.
    async fn revoke(&self, gateway: &Gateway, id: Int) {
        let revoked = gateway.ask::<Done>("/v3/lease/revoke", &LeaseId { id }).await;
        if let Err(failure) = revoked {
            event!(DEBUG, %failure, "a lease is not revoked: it runs out");
        }
    }

    /// It is not there any more.
    pub(super) fn forget(&self, id: Int) {
        let mut table = self.table.lock();
        table.members.remove(&id);
        table.shared.retain(|_, shared| shared.granted.id != id);
    }
}

async fn grant(gateway: &Gateway, seconds: u64) -> Result<Granted, Failure> {
    let ttl = Int(i64::try_from(seconds).unwrap_or(i64::MAX));
    let leased: Leased = gateway.ask("/v3/lease/grant", &Grant { ttl }).await?;
    let granted = Duration::from_secs(leased.ttl.0.unsigned_abs());
    if leased.id == Int(0) || granted <= SPARE {
        return Err(Failure::Nonsense("a lease without an id or without time".to_owned()));
    }
    Ok(Granted { id: leased.id, ttl: granted - SPARE })
}

/// etcd's leases are of whole seconds.
fn seconds(ttl: Duration) -> u64 {
    ttl.saturating_add(SPARE).as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
}
