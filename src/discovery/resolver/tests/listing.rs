//! What becomes of the endpoints from one list to the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::fake::{Answer, Fake, at, doubted, ports, proven, seconds, settle, unproven};
use crate::discovery::{EndpointSet, Resolved, SnapshotStatus};
use crate::instance::{Health, Instance};
use crate::selector::{PickContext, Picker, Selector};

/// Counts how often it is prepared; picks the first endpoint, or the second for a zone.
struct Counting(Arc<AtomicUsize>);

struct ByZone;

impl Selector for Counting {
    fn prepare(&self, _: &Arc<EndpointSet>) -> Box<dyn Picker> {
        self.0.fetch_add(1, Relaxed);
        Box::new(ByZone)
    }
}

impl Picker for ByZone {
    fn pick(&self, _: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
        Some(usize::from(cx.zone.is_some()))
    }
}

fn list(instances: Vec<Instance>) -> Resolved {
    Resolved::new(instances).revision("r").authoritative(true)
}

#[tokio::test(start_paused = true)]
async fn nothing_is_made_anew_while_nothing_changes() {
    let prepared = Arc::new(AtomicUsize::new(0));
    let fake = Fake::listing(proven(&[1, 2]));
    let resolver = fake.builder().selector(Counting(Arc::clone(&prepared))).build();
    resolver.first().await;
    let before = resolver.snapshot();
    assert_eq!(before.generation, 1);
    let count = prepared.load(Relaxed);

    fake.lists(proven(&[2, 1]).revision("s"));
    seconds(60.0).await;
    let after = resolver.snapshot();
    assert!(Arc::ptr_eq(&before.endpoints, &after.endpoints));
    assert_eq!((after.generation, prepared.load(Relaxed)), (1, count));
    assert_eq!(after.revision.as_deref(), Some("s"));
    assert!(after.updated_at > before.updated_at);

    fake.lists(list(vec![at(1), at(2).weight(3)]));
    resolver.refresh().await.unwrap();
    assert_eq!((resolver.snapshot().generation, prepared.load(Relaxed)), (2, count + 1));
}

#[tokio::test(start_paused = true)]
async fn statistics_survive_while_id_and_address_stand() {
    let fake = Fake::listing(proven(&[2, 3]));
    let resolver = fake.resolver().await;
    let first = resolver.snapshot().endpoints.at(0).unwrap().clone();
    let attempt = first.start(Instant::now());

    fake.lists(list(vec![at(1), at(2).weight(7), at(3)]));
    resolver.refresh().await.unwrap();
    let same = resolver.snapshot().endpoints.at(1).unwrap().clone();
    assert_eq!((same.instance().weight, same.stats().in_flight()), (7, 1));
    assert!(same.is(&first));
    drop(attempt);

    fake.lists(list(vec![Instance::new("other", at(2).address)]));
    resolver.refresh().await.unwrap();
    let other = resolver.snapshot().endpoints.at(0).unwrap().clone();
    assert!(!other.is(&first), "another process has the address now");
}

#[tokio::test(start_paused = true)]
async fn a_newer_registration_ends_a_drain() {
    let fake = Fake::listing(list(vec![at(1).epoch(5)]));
    let resolver = fake.resolver().await;
    resolver.snapshot().endpoints.at(0).unwrap().stats().set_draining(true);
    let is_ready = || resolver.snapshot().endpoints.at(0).unwrap().is_ready();

    for (instance, ready) in [
        (at(1).epoch(5).weight(2), false),
        (at(1).epoch(6).health(Health::Draining), false),
        (at(1).epoch(7), true),
    ] {
        fake.lists(list(vec![instance.clone()]));
        resolver.refresh().await.unwrap();
        assert_eq!(is_ready(), ready, "{instance:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_is_listed_once_and_the_higher_epoch_has_it() {
    let instances = vec![
        Instance::new("old", at(1).address).epoch(3),
        Instance::new("new", at(1).address).epoch(4),
        Instance::new("older", at(1).address).epoch(2),
    ];
    let fake = Fake::listing(list(instances));
    let resolver = fake.resolver().await;
    let snapshot = resolver.snapshot();
    assert_eq!((snapshot.endpoints.len(), snapshot.skipped), (1, 0));
    assert_eq!(snapshot.endpoints.at(0).unwrap().instance().id.as_str(), "new");
}

#[tokio::test(start_paused = true)]
async fn instances_that_cannot_be_dialled_are_skipped_and_counted() {
    let unix = Instance::at("unix@/run/foo.sock".parse().unwrap());
    let quic = Instance::at("quic@a:2".parse().unwrap());
    let fake = Fake::listing(list(vec![unix, at(3), quic, at(1)]));
    let resolver = fake.builder().speaks(|protocol| protocol == "tcp").build();
    resolver.first().await;
    assert_eq!((ports(&resolver), resolver.snapshot().skipped), (vec![1, 3], 2));
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_without_proof_waits_for_a_second_one_a_lease_later() {
    let fake = Fake::listing(unproven(&[1, 2]));
    let resolver = fake.resolver().await;
    fake.lists(unproven(&[]));
    resolver.refresh().await.unwrap();
    assert_eq!((ports(&resolver), doubted(&resolver)), (vec![1, 2], vec![1, 2]));
    let snapshot = resolver.snapshot();
    assert_eq!((snapshot.status, snapshot.generation), (SnapshotStatus::Ready, 2));
    assert_eq!(resolver.stats().guarded, 1);

    seconds(14.0).await;
    assert_eq!(ports(&resolver), [1, 2]);
    assert_eq!(resolver.stats().guarded, 2);
    seconds(9.0).await;
    assert!(ports(&resolver).is_empty());
    assert_eq!(resolver.stats().guarded, 2);
}

#[tokio::test(start_paused = true)]
async fn a_proven_empty_answer_is_believed() {
    let fake = Fake::listing(unproven(&[1, 2]));
    let resolver = fake.resolver().await;
    fake.lists(proven(&[]));
    resolver.refresh().await.unwrap();
    assert!(ports(&resolver).is_empty());
    assert_eq!(resolver.stats().guarded, 0);
}

#[tokio::test(start_paused = true)]
async fn more_than_half_is_guarded_and_half_is_not() {
    let fake = Fake::listing(unproven(&[1, 2, 3, 4]));
    let resolver = fake.resolver().await;
    fake.lists(unproven(&[4]));
    resolver.refresh().await.unwrap();
    assert_eq!((ports(&resolver), doubted(&resolver)), (vec![1, 2, 3, 4], vec![1, 2, 3]));

    fake.lists(unproven(&[1, 2, 3, 4]));
    resolver.refresh().await.unwrap();
    assert!(doubted(&resolver).is_empty());
    fake.lists(unproven(&[3, 4]));
    resolver.refresh().await.unwrap();
    assert_eq!((ports(&resolver), doubted(&resolver)), (vec![3, 4], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_warms_up_adds_and_takes_nothing() {
    let fake = Fake::listing(proven(&[1, 2, 3]));
    let resolver = fake.resolver().await;
    fake.lists(proven(&[2, 3, 4]).warming(true));
    resolver.refresh().await.unwrap();
    assert_eq!((ports(&resolver), doubted(&resolver)), (vec![1, 2, 3, 4], vec![1]));
    fake.lists(proven(&[1, 2, 3, 4]));
    resolver.refresh().await.unwrap();
    assert_eq!((ports(&resolver), doubted(&resolver)), (vec![1, 2, 3, 4], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_list_by_hand_is_seen_at_once_and_holds_until_proof() {
    let fake = Fake::new(Answer::Down);
    let resolver = fake.resolver().await;
    resolver.update(vec![at(7), at(8)]);
    assert_eq!(ports(&resolver), [7, 8]);
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Ready);
    seconds(30.0).await;
    assert!(matches!(resolver.snapshot().status, SnapshotStatus::Stale { .. }));

    fake.lists(unproven(&[1]));
    seconds(60.0).await;
    assert_eq!((ports(&resolver), doubted(&resolver)), (vec![7, 8], vec![]));
    resolver.update(vec![]);
    assert!(ports(&resolver).is_empty(), "what is set by hand is proven");
    fake.lists(proven(&[1]));
    resolver.refresh().await.unwrap();
    assert_eq!((ports(&resolver), resolver.stats().updates), (vec![1], 2));
}

#[tokio::test(start_paused = true)]
async fn a_list_by_hand_is_newer_than_the_answer_under_way() {
    let fake = Fake::listing(proven(&[1]));
    let resolver = fake.resolver().await;
    fake.answers(Answer::Slow(Duration::from_secs(1), proven(&[1])));
    let refresh = tokio::spawn({
        let resolver = resolver.clone();
        async move { resolver.refresh().await }
    });
    settle().await;
    resolver.update(vec![at(2)]);
    refresh.await.unwrap().unwrap();
    assert_eq!(ports(&resolver), [2]);
    resolver.refresh().await.unwrap();
    assert_eq!(ports(&resolver), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_pick_is_made_for_the_clients_own_zone_unless_it_names_another() {
    let fake = Fake::listing(proven(&[1, 2]));
    let port = |zone: Option<&'static str>| {
        let fake = Arc::clone(&fake);
        async move {
            let selector = Counting(Arc::default());
            let builder = fake.builder().selector(selector);
            let resolver = match zone {
                Some(zone) => builder.zone(zone).build(),
                None => builder.build(),
            };
            resolver.first().await;
            let endpoint = resolver.pick(&PickContext::new(Instant::now(), 1)).unwrap();
            endpoint.instance().address.port()
        }
    };
    assert_eq!(port(None).await, Some(1));
    assert_eq!(port(Some("a")).await, Some(2));

    let empty = Fake::listing(proven(&[])).resolver().await;
    assert!(empty.pick(&PickContext::new(Instant::now(), 1)).is_none());
}
