//! Cases: how long a lease holds, and what is said of one that has ended.

use std::slice;
use std::time::Duration;

use tokio::time::Instant;

use super::scene::{Scene, instance};
use super::{Capability, Harness, Outcome};
use crate::registry::Renewal;

/// A lease that is renewed in time holds for as long as it is renewed.
pub async fn renew_keeps_alive(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("renew_keeps_alive", harness);
    let held = scene.register(&instance(0), scene.ttl()).await?;
    let ttl = held.lease.ttl.unwrap_or(scene.ttl());
    for _ in 0..6 {
        scene.advance(ttl / 2).await;
        scene.keep(&held).await?;
        scene.sees("what is renewed in time stays", &[instance(0)]).await;
    }
    scene.renew(&[]).await?;
    scene.clear().await;
    Ok(())
}

/// A registration that is not renewed vanishes within [TTL, TTL + granularity], never earlier.
pub async fn expiry(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("expiry", harness);
    let before = Instant::now();
    let held = scene.register(&instance(0), scene.ttl()).await?;
    let after = Instant::now();
    scene.sees("what is registered is seen", &[instance(0)]).await;

    let ttl = held.lease.ttl.unwrap_or(scene.ttl());
    let latest = after + ttl + scene.granularity();
    let step = ttl.min(scene.granularity().max(ttl / 10)) / 10;
    loop {
        let asked = Instant::now();
        let gone = scene.resolve().await.instances.is_empty();
        let lasted = before.elapsed();
        if gone && lasted < ttl {
            scene.fails(format_args!("a lease of {ttl:?} never ends earlier: {lasted:?}"));
        }
        if gone {
            break;
        }
        if asked > latest {
            let late = asked - latest;
            scene.fails(format_args!(
                "a lease of {ttl:?} ends within the granularity: {late:?} beyond it stands"
            ));
        }
        scene.advance(step.max(Duration::from_millis(1))).await;
    }
    scene.clear().await;
    Ok(())
}

/// A lease that is not renewed ends although others of the same registrar are: none keeps another alive.
pub async fn a_lease_ends_alone(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("a_lease_ends_alone", harness);
    let before = Instant::now();
    let left = scene.register(&instance(0), scene.ttl()).await?;
    let after = Instant::now();
    let kept = scene.register(&instance(1), scene.ttl()).await?;
    let both = [instance(0), instance(1)];
    scene.sees("what is registered is seen", &both).await;

    let ttl = left.lease.ttl.unwrap_or(scene.ttl());
    loop {
        scene.keep(&kept).await?;
        let asked = Instant::now();
        let seen = scene.resolve().await.instances.len();
        let lasted = before.elapsed();
        match seen {
            1 if lasted < ttl => {
                scene.fails(format_args!("a lease of {ttl:?} never ends earlier: {lasted:?}"));
            }
            1 => break,
            _ if asked > after + ttl + scene.granularity() => {
                scene.fails("a lease that nobody renews ends, whatever others do");
            }
            _ => scene.advance(ttl / 20).await,
        }
    }
    scene.sees("what is renewed stays", &both[1..]).await;
    scene.clear().await;
    Ok(())
}

/// Renewing what the registry does not know is `Lost`, each in its place, and registers nothing.
pub async fn lease_lost(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("lease_lost", harness);
    scene.needs(Capability::LostLeases)?;
    scene.needs(Capability::Deregister)?;
    let mut held = Vec::new();
    for n in 0..3 {
        held.push(scene.register(&instance(n), scene.ttl()).await?);
    }
    scene.remove(&instance(1)).await?;
    let renewals = scene.renew(&held).await?;
    if !matches!(
        renewals.as_slice(),
        [Ok(Renewal::Renewed), Ok(Renewal::Lost), Ok(Renewal::Renewed)]
    ) {
        scene.fails(format_args!(
            "of three leases, the second taken back, that one alone is Lost: {renewals:?}"
        ));
    }
    scene.sees("a renewal does not register again", &[instance(0), instance(2)]).await;
    scene.clear().await;
    Ok(())
}

/// Renewing a lease that has ended is `Lost`, and registers nothing.
pub async fn renew_after_expiry_is_lost(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("renew_after_expiry_is_lost", harness);
    scene.needs(Capability::LostLeases)?;
    let held = scene.register(&instance(0), scene.ttl()).await?;
    let ttl = held.lease.ttl.unwrap_or(scene.ttl());
    scene.advance(ttl).await;
    scene.sees("a lease that is not renewed ends", &[]).await;
    let renewals = scene.renew(slice::from_ref(&held)).await?;
    if !matches!(renewals.as_slice(), [Ok(Renewal::Lost)]) {
        scene.fails(format_args!("an ended lease is Lost: {renewals:?}"));
    }
    scene.advance(scene.granularity()).await;
    scene.sees("a renewal does not register again", &[]).await;
    scene.clear().await;
    Ok(())
}
