//! What becomes of the endpoints from one list to the next.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::discovery::guard::Known;
use crate::discovery::outlier::Outliers;
use crate::discovery::{Endpoint, EndpointSet};
use crate::instance::{Address, Health, InstanceId, Precedence};

/// The endpoints of a new list.
pub(super) struct Merged {
    /// One for each address, sorted by it.
    pub(super) endpoints: Vec<Endpoint>,
    /// How many were left out because their protocol is not spoken.
    pub(super) skipped: usize,
    /// Whether they differ from the old ones in anything that a picker may have prepared for.
    pub(super) changed: bool,
}

/// Makes the endpoints of a new list; those that were there before keep their statistics.
pub(super) fn merge(
    known: &[Known],
    old: &EndpointSet,
    speaks: &dyn Fn(&str) -> bool,
    outliers: &Arc<Outliers>,
    now: Instant,
) -> Merged {
    let mut listed: Vec<&Known> = known.iter().collect();
    listed.sort_by(|a, b| rank(a).cmp(&rank(b)));
    listed.dedup_by(|later, kept| later.instance.address == kept.instance.address);
    let all = listed.len();
    listed.retain(|known| speaks(known.instance.address.protocol()));
    let skipped = all - listed.len();

    let holders: HashMap<&Address, &Endpoint> =
        old.iter().map(|endpoint| (&endpoint.instance().address, endpoint)).collect();
    let endpoint = |known: &Known| match holders.get(&known.instance.address) {
        Some(holder) if holder.instance().id == known.instance.id => renewed(holder, known),
        _ => Endpoint::among(Arc::downgrade(outliers), Arc::clone(&known.instance), now)
            .doubted(known.is_doubtful()),
    };
    let endpoints: Vec<Endpoint> = listed.into_iter().map(endpoint).collect();
    let changed = endpoints.len() != old.len() || !endpoints.iter().zip(old).all(is_same);
    Merged { endpoints, skipped, changed }
}

/// The order of a list; of those with one address the first is kept. The id decides last, so that a
/// source whose own order varies gives a list that does not.
fn rank(known: &Known) -> (&Address, bool, Reverse<Precedence>, &InstanceId) {
    let instance = &known.instance;
    (&instance.address, known.is_doubtful(), Reverse(instance.precedence()), &instance.id)
}

/// The same endpoint in the state that the list gives it.
fn renewed(old: &Endpoint, known: &Known) -> Endpoint {
    let (before, instance) = (old.instance(), &known.instance);
    // The drain notice was that of an earlier registration; this one says that it takes calls.
    if instance.epoch > before.epoch && instance.health == Health::Up {
        old.stats().set_draining(false);
        old.stats().renew();
    }
    let endpoint =
        if *before == **instance { old.clone() } else { old.with_instance(Arc::clone(instance)) };
    endpoint.doubted(known.is_doubtful())
}

fn is_same((a, b): (&Endpoint, &Endpoint)) -> bool {
    a.is(b) && a.is_doubtful() == b.is_doubtful() && a.instance() == b.instance()
}
