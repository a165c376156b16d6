//! Cases: what ids, epochs and addresses stand for.

use std::slice;

use super::scene::{Scene, instance};
use super::{Capability, Harness, Outcome};
use crate::instance::{Address, Health, Instance};
use crate::registry::{Held, Registration, RegistryErrorKind, Renewal};

/// Of one id, an equal epoch renews, a higher one replaces, a lower one is `StaleEpoch`.
pub async fn epochs(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("epochs", harness);
    scene.needs(Capability::Epochs)?;
    let (old, new) = (instance(0).epoch(5), moved(&instance(1)).epoch(6));
    let older = scene.register(&old, scene.ttl()).await?;
    scene.register(&old, scene.ttl()).await?;
    scene.sees("an equal epoch renews", slice::from_ref(&old)).await;
    let newer = scene.register(&new, scene.ttl()).await?;
    scene.sees("a higher epoch replaces", slice::from_ref(&new)).await;

    let registration = Registration::new(scene.service().clone(), old).ttl(scene.ttl());
    match scene.try_register(&registration).await? {
        Err(error) if error.kind() == (RegistryErrorKind::StaleEpoch { held: 6 }) => {}
        other => scene.fails(format_args!(
            "a lower epoch is StaleEpoch, which names the one held, 6: {other:?}"
        )),
    }
    let renewals = scene.renew(slice::from_ref(&older)).await?;
    if matches!(renewals.as_slice(), [Ok(Renewal::Renewed)]) {
        scene.fails("the renewal of a lower epoch is refused");
    }
    scene.sees("a lower epoch changes nothing", slice::from_ref(&new)).await;
    if scene.has(Capability::Deregister) {
        scene.deregister(slice::from_ref(&older)).await?;
        scene.sees("a lower epoch takes nothing back", slice::from_ref(&new)).await;
    }
    scene.keep(&newer).await?;
    raised_by_renewal(&mut scene, newer).await?;
    scene.clear().await;
    Ok(())
}

/// A renewal carries the full state: one that is told `Renewed` has been taken as it is.
async fn raised_by_renewal(scene: &mut Scene<'_>, mut held: Held) -> Outcome {
    let raised = moved(&instance(2)).epoch(7);
    held.registration.instance = raised.clone();
    let renewals = scene.renew(slice::from_ref(&held)).await?;
    if matches!(renewals.as_slice(), [Ok(Renewal::Renewed)]) {
        scene.sees("a renewal with a higher epoch replaces", slice::from_ref(&raised)).await;
        // So that what the scene takes back at the end is what the registry holds.
        scene.register(&raised, scene.ttl()).await?;
    }
    Ok(())
}

/// The first instance, at another's address.
fn moved(to: &Instance) -> Instance {
    Instance::new(instance(0).id, to.address.clone())
}

/// Within a service the newer registration of an address replaces the older, which is then lost.
pub async fn address_has_one_holder(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("address_has_one_holder", harness);
    scene.needs(Capability::Epochs)?;
    let newer = Instance::new("newer", instance(0).address).epoch(2);
    let replaced = scene.register(&instance(0), scene.ttl()).await?;
    let held = scene.register(&newer, scene.ttl()).await?;
    let alone = |seen: &[Instance]| seen.len() == 1 && seen[0].id == newer.id;
    let promise = "an address has one holder, the newer";
    scene.eventually(promise, scene.granularity(), alone).await;

    if scene.has(Capability::LostLeases) {
        let renewals = scene.renew(slice::from_ref(&replaced)).await?;
        if !matches!(renewals.as_slice(), [Ok(Renewal::Lost)]) {
            scene.fails(format_args!("the lease that was replaced is Lost: {renewals:?}"));
        }
    }
    if scene.has(Capability::Deregister) {
        scene.deregister(slice::from_ref(&replaced)).await?;
    }
    scene.eventually(promise, scene.granularity(), alone).await;
    scene.keep(&held).await?;
    scene.clear().await;
    Ok(())
}

/// An address in another writing is the same address: it has one holder.
pub async fn address_spelling(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("address_spelling", harness);
    scene.needs(Capability::Epochs)?;
    let promise = "one address has one holder, however it is written";
    let writings =
        ["tcp@Host-a.example:7001", "tcp@host-A.example.:7001", "tcp@host-a.example:07001"];
    for (epoch, text) in (1..).zip(writings) {
        let address = match text.parse::<Address>() {
            Ok(address) => address,
            Err(error) => panic!("{error}"),
        };
        let newest = Instance::new(format!("writing-{epoch}"), address).epoch(epoch);
        scene.register(&newest, scene.ttl()).await?;
        let alone = |seen: &[Instance]| seen.len() == 1 && seen[0].id == newest.id;
        scene.eventually(promise, scene.granularity(), alone).await;
    }
    scene.clear().await;
    Ok(())
}

/// An instance keeps its address from an older one, and from one that is draining or unready: these are
/// `Superseded`, and cannot take the holder back. One that is up takes it from one that is not.
pub async fn newer_holder_keeps_its_address(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("newer_holder_keeps_its_address", harness);
    scene.needs(Capability::Epochs)?;
    scene.needs(Capability::FullState)?;
    let at = |id: &str, epoch| Instance::new(id, instance(0).address).epoch(epoch);
    let displaced = scene.register(&at("old", 5), scene.ttl()).await?;
    let holder = scene.register(&at("new", 7), scene.ttl()).await?;
    let promise = "the newer registration keeps its address";
    let alone =
        |id: &'static str| move |seen: &[Instance]| seen.len() == 1 && seen[0].id.as_str() == id;
    for challenger in [
        at("old", 6),
        at("old", 6).health(Health::Draining),
        at("old", 8).health(Health::Draining),
        at("third", 9).health(Health::Unready),
    ] {
        let registration = Registration::new(scene.service().clone(), challenger).ttl(scene.ttl());
        match scene.try_register(&registration).await? {
            Err(error)
                if error.kind() == (RegistryErrorKind::Superseded { held: 7 })
                    && error.holder() == Some(&holder.registration.instance.id) => {}
            other => scene.fails(format_args!(
                "{:?} is Superseded, which names the holder and its epoch, 7: {other:?}",
                registration.instance,
            )),
        }
        scene.eventually(promise, scene.granularity(), alone("new")).await;
    }
    if scene.has(Capability::Deregister) {
        scene.deregister(slice::from_ref(&displaced)).await?;
        scene.eventually(promise, scene.granularity(), alone("new")).await;
    }
    scene.keep(&holder).await?;

    // An equal epoch, as is written by hand: the last one has it.
    scene.register(&at("equal", 7).health(Health::Up), scene.ttl()).await?;
    let promise = "of equal epochs the registration that came last holds the address";
    scene.eventually(promise, scene.granularity(), alone("equal")).await;
    // And whoever drains gives way to a newer one that is up.
    scene.register(&at("equal", 8).health(Health::Draining), scene.ttl()).await?;
    scene.register(&at("newest", 9), scene.ttl()).await?;
    let promise = "an instance that is up replaces one that drains";
    scene.eventually(promise, scene.granularity(), alone("newest")).await;
    scene.clear().await;
    Ok(())
}
