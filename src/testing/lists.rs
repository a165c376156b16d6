//! Cases: what a list holds, and that it is whole.

use super::scene::{Scene, instance};
use super::{Capability, Harness, LeftOut, Outcome};
use crate::discovery::DiscoveryErrorKind;
use crate::instance::{Health, Instance};
use crate::registry::Renewal;

/// A service that nobody offers is an empty answer, not an error.
pub async fn unknown_service_is_empty(harness: &dyn Harness) -> Outcome {
    let scene = Scene::new("unknown_service_is_empty", harness);
    scene.needs(Capability::Names)?;
    let seen = scene.resolve().await.instances;
    if !seen.is_empty() {
        scene.fails(format_args!("nobody offers it, and yet there is {seen:?}"));
    }
    Ok(())
}

/// Two services have lists of their own, also with one id and one address in both.
pub async fn services_are_separate(harness: &dyn Harness) -> Outcome {
    let mut here = Scene::new("services_are_separate", harness);
    here.needs(Capability::Names)?;
    let mut elsewhere = here.elsewhere();
    here.put(&instance(0)).await?;
    elsewhere.put(&instance(0)).await?;
    elsewhere.put(&instance(1)).await?;
    here.sees("another service's instance is not ours", &[instance(0)]).await;
    let both = [instance(0), instance(1)];
    elsewhere.sees("a service has all of its own", &both).await;
    here.clear().await;
    elsewhere.sees("what one service loses another keeps", &both).await;
    elsewhere.clear().await;
    Ok(())
}

/// A thousand instances are all seen, renewed in one batch, and taken back in one.
pub async fn many_instances(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("many_instances", harness);
    let instances: Vec<Instance> = (0..1_000).map(instance).collect();
    for one in &instances {
        scene.put(one).await?;
    }
    scene.sees("all of 1,000 are seen, each once", &instances).await;
    if harness.registry().is_some() {
        let held = scene.held().to_vec();
        for (n, renewal) in scene.renew(&held).await?.into_iter().enumerate() {
            if !matches!(renewal, Ok(Renewal::Renewed)) {
                scene.fails(format_args!("each of 1,000 is renewed; number {n}: {renewal:?}"));
            }
        }
    }
    scene.clear().await;
    Ok(())
}

/// Every field of an instance arrives as it was put, text outside of ASCII included.
pub async fn full_state_survives(harness: &dyn Harness) -> Outcome {
    let mut scene = Scene::new("full_state_survives", harness);
    scene.needs(Capability::FullState)?;
    let base = instance(0).epoch(u64::from(u32::MAX) * 1_000);
    for health in [Health::Up, Health::Draining, Health::Unready] {
        let full = base
            .clone()
            .epoch(base.epoch + health as u64)
            .weight(7)
            .zone("eu-1/a")
            .version("1.2.3-rc.1+build 5")
            .meta("empty", "")
            .meta("größe", "\"quoted\", <b>marked</b> & spaced = ☃")
            .health(health);
        scene.put(&full).await?;
        let same = |seen: &[Instance]| seen.len() == 1 && seen[0] == full;
        let promise = format!("what is put is what is seen, all of it: {full:?}");
        scene.eventually(&promise, scene.granularity(), same).await;
    }
    scene.clear().await;
    Ok(())
}

/// A source that knows which services there are names those that have an instance, sorted.
pub async fn services_are_listed(harness: &dyn Harness) -> Outcome {
    let mut here = Scene::new("services_are_listed", harness);
    here.needs(Capability::Names)?;
    let mut elsewhere = here.elsewhere();
    if let Err(error) = here.discovery().services().await
        && error.kind() == DiscoveryErrorKind::Unsupported
    {
        return Err(LeftOut::new("it does not know which services there are"));
    }
    here.lists(&[]).await;
    elsewhere.put(&instance(0)).await?;
    elsewhere.lists(&[elsewhere.service()]).await;
    here.put(&instance(0)).await?;
    here.put(&instance(1)).await?;
    here.lists(&[here.service(), elsewhere.service()]).await;
    here.clear().await;
    elsewhere.lists(&[elsewhere.service()]).await;
    elsewhere.clear().await;
    here.lists(&[]).await;
    Ok(())
}
