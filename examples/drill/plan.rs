//! In which order faults are injected, and when.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::time::{Instant, sleep, sleep_until};

use crate::Fallible;
use crate::clock::micros;
use crate::cluster::Cluster;
use crate::faults::{Kind, Window};

/// How long a window is before something breaks: calls that are in flight then started in it.
const LEAD: Duration = Duration::from_millis(100);
/// How long recovery may take: 10 s, and what TCP may wait after the longest cut of all before it
/// sends again.
const RECOVERY: Duration = Duration::from_secs(15);
/// Over how long a client's retry budget counts.
const BUDGET: Duration = Duration::from_secs(10);
/// From this length on every fault gets its turn, even if that takes a little longer.
const ENOUGH: Duration = Duration::from_secs(60);

/// Injects faults one at a time, each of `kinds` once in every round and each round in an order of
/// its own, until the time is over. The load runs all the while.
pub(crate) async fn run(
    cluster: &mut Cluster,
    seed: u64,
    kinds: &[Kind],
    length: Duration,
) -> Fallible<Vec<Window>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let end = Instant::now() + length;
    let mut windows = Vec::new();
    for round in 0.. {
        let mut order = kinds.to_vec();
        order.shuffle(&mut rng);
        // Where nobody answered, every retry that could be afforded was made: the next fault waits.
        order.sort_by_key(|kind| *kind == Kind::Unavailable);
        if windows.last().is_some_and(|window: &Window| window.kind == Kind::Unavailable) {
            if Instant::now() + BUDGET > end {
                break;
            }
            windows.push(calm(cluster, Instant::now() + BUDGET).await);
        }
        let mut injected = 0;
        for kind in order {
            // An event of its own for each: what one draws must not depend on how long others take.
            let mut rng = StdRng::from_rng(&mut rng);
            let owed = round == 0 && length >= ENOUGH;
            if owed || Instant::now() + kind.typical() <= end {
                windows.push(open(cluster, &mut rng, kind).await?);
                injected += 1;
            }
        }
        if injected == 0 {
            break;
        }
    }
    if Instant::now() < end {
        windows.push(calm(cluster, end).await);
    }
    Ok(windows)
}

/// Breaks nothing for a while.
async fn calm(cluster: &Cluster, until: Instant) -> Window {
    let mut window = Window::new(Kind::Calm, cluster.clock.now());
    sleep_until(until).await;
    window.until = cluster.clock.now();
    window
}

/// Injects one fault and waits until everything is as before.
async fn open(cluster: &mut Cluster, rng: &mut StdRng, kind: Kind) -> Fallible<Window> {
    let mut window = Window::new(kind, cluster.clock.now());
    sleep(LEAD).await;
    kind.inject(cluster, rng, &mut window).await.map_err(|e| format!("{}: {e}", kind.name()))?;
    let mended = cluster.clock.now();
    let (whole, last) = cluster.whole(RECOVERY).await?;
    window.whole_after = whole.map(micros);
    if whole.is_none() {
        window.broken.push(format!("not whole within {RECOVERY:?}: {last}"));
    }
    window.until = cluster.clock.now();
    eprintln!(
        "{:>6.1} s  {:<16} {:>5} ms to recover  {}; last, {last}",
        window.from as f64 / 1e6,
        kind.name(),
        (window.until - mended) / 1_000,
        window.done
    );
    Ok(window)
}
