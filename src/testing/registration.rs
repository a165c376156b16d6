//! Cases: what registering and deregistering show to those who look.

use std::slice;

use super::scene::{Scene, instance};
use super::{Capability, Harness, Outcome};
use crate::instance::{Health, Instance};
use crate::registry::{HealthOverride, Held, Renewal};

/// Once `register` returns, a `resolve` sees the instance within the granularity.
pub async fn register_and_see(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("register_and_see", harness);
    let ttl = scene.ttl();
    scene.register(&instance(0), ttl).await?;
    scene.sees("what is registered is seen", &[instance(0)]).await;
    scene.register(&instance(1), ttl).await?;
    scene.sees("a second instance joins the first", &[instance(0), instance(1)]).await;
    scene.clear().await;
    Ok(())
}

/// Registering the same epoch again is a renewal: one instance, whose lease starts anew.
pub async fn register_is_idempotent(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("register_is_idempotent", harness);
    let held = scene.register(&instance(0), scene.ttl()).await?;
    let part = held.lease.ttl.unwrap_or(scene.ttl()) * 2 / 3;
    for _ in 0..3 {
        scene.advance(part).await;
        scene.register(&instance(0), scene.ttl()).await?;
        scene.sees("registered again it is still one instance, alive", &[instance(0)]).await;
    }
    scene.clear().await;
    Ok(())
}

/// What is deregistered is gone within the granularity, and its peers stay.
pub async fn deregister(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("deregister", harness);
    scene.needs(Capability::Deregister)?;
    for n in 0..3 {
        scene.register(&instance(n), scene.ttl()).await?;
    }
    scene.remove(&instance(1)).await?;
    scene.sees("what is deregistered goes, alone", &[instance(0), instance(2)]).await;
    scene.clear().await;
    Ok(())
}

/// Deregistering what is not there succeeds, and touches nothing else.
pub async fn deregister_unknown_succeeds(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("deregister_unknown_succeeds", harness);
    scene.needs(Capability::Deregister)?;
    scene.register(&instance(1), scene.ttl()).await?;
    let held = scene.register(&instance(0), scene.ttl()).await?;
    for _ in 0..2 {
        scene.deregister(slice::from_ref(&held)).await?;
    }
    scene.sees("what others registered stays", &[instance(1)]).await;
    scene.clear().await;
    Ok(())
}

/// What an operator says of an instance's health is listed, told with each renewal until a newer state of
/// the instance has taken it over, and taken back by `Up`; it makes nothing better than the instance says.
pub async fn health_is_set(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("health_is_set", harness);
    scene.needs(Capability::FullState)?;
    scene.needs(Capability::Epochs)?;
    scene.needs(Capability::HealthOverrides)?;
    let registry = scene.registry()?;
    let (service, up) = (scene.service().clone(), instance(0).epoch(1));
    let set = async |word: HealthOverride| registry.set_health(&service, &up.id, &word).await;
    let drained = || HealthOverride::new(Health::Draining).by("operator").reason("a case");
    match set(drained()).await {
        Ok(false) => {}
        other => scene.fails(format_args!("of nobody's health it is said so: {other:?}")),
    }
    let held = scene.register(&up, scene.ttl()).await?;
    match set(drained()).await {
        Ok(true) => {}
        other => scene.fails(format_args!("an instance's health is set: {other:?}")),
    }
    let within = scene.granularity();
    let is = |seen: &[Instance], health| seen == [up.clone().health(health)];
    let promise = "a health that was set is seen, and nothing else changes";
    scene.eventually(promise, within, |seen| is(seen, Health::Draining)).await;
    told(&scene, &held, &drained()).await?;
    told(&scene, &held, &drained()).await?;
    scene.register(&up, scene.ttl()).await?;
    if !is(&scene.resolve().await.instances, Health::Draining) {
        scene.fails(
            "to register the same epoch again changes nothing, and leaves a health as it was set",
        );
    }

    // A state that does not know of it, as after a health check that passed at the same time.
    let unaware = up.clone().epoch(2);
    let held = scene.register(&unaware, scene.ttl()).await?;
    let is_drained = |seen: &[Instance]| seen == [unaware.clone().health(Health::Draining)];
    scene.eventually("an instance that says up does not undo it", within, is_drained).await;
    told(&scene, &held, &drained()).await?;

    let aware = up.clone().epoch(3).health(Health::Draining);
    let held = scene.register(&aware, scene.ttl()).await?;
    scene.keep(&held).await?;
    match set(HealthOverride::new(Health::Up)).await {
        Ok(true) => {}
        other => scene.fails(format_args!("what was set is taken back: {other:?}")),
    }
    told(&scene, &held, &HealthOverride::new(Health::Up)).await?;
    if scene.resolve().await.instances != slice::from_ref(&aware) {
        scene.fails("to take it back makes an instance no better than it says itself");
    }
    let next = up.clone().epoch(4);
    let held = scene.register(&next, scene.ttl()).await?;
    let promise = "an instance that has heard of it says itself how it is";
    scene.eventually(promise, within, |seen| seen == [next.clone()]).await;
    scene.keep(&held).await?;
    scene.clear().await;
    Ok(())
}

/// A renewal holds, and tells what an operator says.
async fn told(scene: &Scene<'_>, held: &Held, word: &HealthOverride) -> Outcome {
    match scene.renew(slice::from_ref(held)).await?.as_slice() {
        [Ok(Renewal::Overridden(told))] if told == word => Ok(()),
        other => scene.fails(format_args!("a renewal tells {word:?}: {other:?}")),
    }
}
