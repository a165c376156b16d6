//! Cases: what clients keep while the source fails, restarts or loses instances.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::scene::{RECOVERY, Scene, instance};
use super::{Capability, Harness, Outcome};
use crate::discovery::{Discovery, DiscoveryError, Endpoint, Resolved, Resolver, SnapshotStatus};
use crate::instance::{Instance, ServiceName};
use crate::registry::Registrar;

/// For how long a resolver keeps what an unproven answer lacks.
const LEASE: Duration = Duration::from_secs(15);
/// Never, as far as a case is concerned: its resolver asks when the case says so.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// A source that is down is an error of `resolve`, in bounded time, and a resolver over it goes on
/// serving the last list and says that it is stale.
pub async fn source_down(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("source_down", harness);
    scene.put(&instance(0)).await?;
    scene.sees("what is put is seen", &[instance(0)]).await;
    let resolver = Resolver::new(scene.service().clone(), scene.discovery());
    knows(&scene, &resolver, 1).await;
    scene.kill().await?;

    let discovery = scene.discovery();
    tokio::select! {
        answer = discovery.resolve(scene.service()) => if let Ok(answer) = answer {
            scene.fails(format_args!("a source that is down is an error, not {answer:?}"));
        },
        () = scene.advance(RECOVERY) => {
            scene.fails(format_args!("resolve ends in bounded time, not after {RECOVERY:?}"));
        }
    }
    if resolver.refresh().await.is_ok() {
        scene.fails("a resolver's refresh says that the source is down");
    }
    scene.advance(LEASE * 2).await;
    let snapshot = resolver.snapshot();
    if snapshot.endpoints.len() != 1 {
        scene.fails("the last list is served while the source is down");
    }
    if !matches!(snapshot.status, SnapshotStatus::Stale { .. }) || snapshot.last_error.is_none() {
        scene.fails(format_args!("a list that cannot be renewed is stale: {:?}", snapshot.status));
    }
    scene.restart_empty().await;
    scene.clear().await;
    Ok(())
}

/// An answer that is empty or lost more than half at once is believed if it is proven; otherwise
/// once a second answer says the same and a lease has passed.
pub async fn empty_and_shrunken_lists(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("empty_and_shrunken_lists", harness);
    let instances: Vec<Instance> = (0..4).map(instance).collect();
    for one in &instances {
        scene.put(one).await?;
    }
    scene.sees("what is put is seen", &instances).await;
    let resolver = asked(&scene);
    knows(&scene, &resolver, 4).await;
    let mut known = 4;
    for left in [1, 0] {
        for gone in &instances[left..known] {
            scene.remove(gone).await?;
        }
        scene.sees("what is removed is gone", &instances[..left]).await;
        if !scene.resolve().await.is_proven() {
            loses_none(&scene, &resolver, known, "an unproven answer").await;
            scene.advance(LEASE / 2).await;
        }
        // What a source that has just started lacks is kept for as long as it says so.
        while scene.resolve().await.warming {
            loses_none(&scene, &resolver, known, "a source that warms up").await;
            scene.advance(LEASE).await;
            for one in &instances[..left] {
                scene.put(one).await?;
            }
        }
        if !scene.resolve().await.is_proven() {
            loses_none(&scene, &resolver, known, "a second one before a lease has passed").await;
            scene.advance(LEASE).await;
        }
        knows(&scene, &resolver, left).await;
        known = left;
    }
    scene.clear().await;
    Ok(())
}

/// A source that came back empty does not prove that everyone has gone.
pub async fn restarted_empty(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("restarted_empty", harness);
    for n in 0..4 {
        scene.put(&instance(n)).await?;
    }
    let resolver = asked(&scene);
    knows(&scene, &resolver, 4).await;
    scene.kill().await?;
    scene.restart_empty().await;
    let answer = scene.resolve().await;
    if !answer.instances.is_empty() {
        scene.fails("the harness was to bring the source back empty");
    }
    if answer.is_proven() {
        scene.fails("an empty answer just after a start is unproven: it is warming, or unnamed");
    }
    loses_none(&scene, &resolver, 4, "a restarted source").await;
    scene.clear().await;
    Ok(())
}

/// A registrar brings everything back within one heartbeat of an empty restart (and the
/// granularity, at least 1 s), while clients lose nothing.
pub async fn registrar_survives_restart(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("registrar_survives_restart", harness);
    let registry = scene.registry()?;
    // Here for the answer alone, before there is anything to clear up.
    scene.kill().await?;
    scene.restart_empty().await;

    let registrar = Registrar::builder(registry).ttl(scene.ttl()).build();
    let instances: Vec<Instance> = (0..3).map(instance).collect();
    for one in &instances {
        let registered = registrar.register(scene.service().clone(), one.clone()).await;
        if let Err(error) = registered {
            scene.fails(format_args!("a registrar registers: {error}"));
        }
    }
    scene.sees("what a registrar registers is seen", &instances).await;
    let resolver = Resolver::new(scene.service().clone(), scene.discovery());
    knows(&scene, &resolver, 3).await;

    let heartbeat = scene.ttl() / 3;
    scene.kill().await?;
    scene.advance(heartbeat).await;
    scene.restart_empty().await;
    let back = Instant::now();
    let within = heartbeat + scene.granularity().max(Duration::from_secs(1));
    while scene.resolve().await.instances.len() != instances.len() {
        if back.elapsed() > within {
            scene.fails(format_args!("all instances are back within {within:?} of a restart"));
        }
        if resolver.snapshot().endpoints.len() != instances.len() {
            scene.fails("no client sees fewer while instances come back");
        }
        scene.advance(within / 20).await;
    }
    loses_none(&scene, &resolver, 3, "a source that is complete again").await;
    registrar.close().await;
    scene.empties().await;
    Ok(())
}

/// What is deregistered is gone from clients with the next answer, the last instance too, where answers
/// prove anything.
pub async fn deregistered_together(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("deregistered_together", harness);
    scene.needs(Capability::Deregister)?;
    for n in 0..3 {
        scene.register(&instance(n), scene.ttl()).await?;
    }
    let resolver = asked(&scene);
    knows(&scene, &resolver, 3).await;
    let held = scene.held().to_vec();
    // A source that has just started proves nothing for a while.
    let start = Instant::now();
    while !scene.resolve().await.is_proven() {
        if start.elapsed() > RECOVERY {
            return Err(scene.leave_out("its lists prove nothing").await);
        }
        scene.renew(&held).await?;
        scene.advance(scene.ttl() / 3).await;
    }
    scene.deregister(&held).await?;
    knows(&scene, &resolver, 0).await;
    scene.clear().await;
    Ok(())
}

/// Leases that end together do not empty a client: what vanished is doubtful until an answer a lease later
/// still lacks it.
pub async fn expired_together(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("expired_together", harness);
    scene.needs(Capability::MassExpiry)?;
    let mut lasts = scene.ttl();
    for n in 0..3 {
        let held = scene.register(&instance(n), scene.ttl()).await?;
        lasts = lasts.max(held.lease.ttl.unwrap_or_default());
    }
    let resolver = asked(&scene);
    knows(&scene, &resolver, 3).await;
    scene.advance(lasts).await;
    scene.sees("leases that nobody renews end", &[]).await;
    loses_none(&scene, &resolver, 3, "an answer that lost all of them at once").await;
    if !resolver.snapshot().endpoints.iter().all(Endpoint::is_doubtful) {
        scene.fails("what vanished without having been deregistered is doubtful");
    }
    scene.advance(LEASE + scene.granularity()).await;
    knows(&scene, &resolver, 0).await;
    scene.clear().await;
    Ok(())
}

/// A resolver that asks the source only when it is told to.
fn asked(scene: &Scene<'_>) -> Resolver {
    Resolver::builder(scene.service().clone(), Arc::new(Polled(scene.discovery())))
        .poll_interval(NEVER)
        .resync_interval(NEVER)
        .lease(LEASE)
        .build()
}

/// Asks until the resolver knows this many endpoints, within the granularity.
async fn knows(scene: &Scene<'_>, resolver: &Resolver, expected: usize) {
    let start = Instant::now();
    loop {
        let asked = start.elapsed();
        refresh(scene, resolver).await;
        let known = resolver.snapshot().endpoints.len();
        if known == expected {
            return;
        }
        if asked >= scene.granularity() {
            scene.fails(format_args!("a resolver knows {expected} endpoints by now, not {known}"));
        }
        scene.advance((scene.granularity() / 10).max(Duration::from_millis(1))).await;
    }
}

async fn loses_none(scene: &Scene<'_>, resolver: &Resolver, expected: usize, after: &str) {
    refresh(scene, resolver).await;
    let known = resolver.snapshot().endpoints.len();
    if known != expected {
        scene
            .fails(format_args!("{after} leaves a resolver its {expected} endpoints, not {known}"));
    }
}

async fn refresh(scene: &Scene<'_>, resolver: &Resolver) {
    if let Err(error) = resolver.refresh().await {
        scene.fails(format_args!("a resolver's refresh succeeds while the source runs: {error}"));
    }
}

/// A source without its watch, so that nothing is learnt but by asking.
struct Polled(Arc<dyn Discovery>);

#[async_trait]
impl Discovery for Polled {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        self.0.resolve(service).await
    }
}
