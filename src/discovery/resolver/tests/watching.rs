//! What a watch tells, and what follows its end.

use std::sync::Arc;
use std::time::Duration;

use super::fake::{Answer, Fake, Feed, at, doubted, ports, proven, seconds, settle, unproven};
use crate::discovery::{DiscoveryError, Resolver, SnapshotStatus, Update};
use crate::instance::InstanceId;

fn id(port: u16) -> InstanceId {
    at(port).id
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_the_list_and_its_changes() {
    let fake = Fake::listing(proven(&[1, 2]));
    let feed = fake.feed();
    feed.send(Ok(Update::Set(proven(&[1, 2])))).await.unwrap();
    let resolver = fake.resolver().await;
    assert_eq!(ports(&resolver), [1, 2]);
    assert_eq!(resolver.snapshot().revision.as_deref(), Some("r"));

    feed.send(Ok(Update::Upsert(vec![at(3), at(1).weight(5)]))).await.unwrap();
    settle().await;
    assert_eq!(ports(&resolver), [1, 2, 3]);
    let snapshot = resolver.snapshot();
    assert_eq!(snapshot.endpoints.at(0).unwrap().instance().weight, 5);
    assert_eq!(snapshot.revision, None, "the source named none for this state");

    feed.send(Ok(Update::Remove(vec![id(1), id(2), id(3)]))).await.unwrap();
    settle().await;
    assert!(ports(&resolver).is_empty(), "what is removed is proven to be gone");
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Ready);

    feed.send(Ok(Update::Upsert(vec![at(4)]))).await.unwrap();
    feed.send(Ok(Update::Gone)).await.unwrap();
    settle().await;
    assert!(ports(&resolver).is_empty());
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Gone);

    feed.send(Ok(Update::Upsert(vec![at(5)]))).await.unwrap();
    settle().await;
    assert_eq!(ports(&resolver), [5]);
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Ready);
    assert_eq!((fake.asked(), resolver.stats().updates), (0, 6));
}

#[tokio::test(start_paused = true)]
async fn a_watched_source_is_asked_for_its_whole_list_now_and_then() {
    let fake = Fake::listing(proven(&[1, 2]));
    let feed = fake.feed();
    feed.send(Ok(Update::Set(proven(&[1])))).await.unwrap();
    let resolver = fake.resolver().await;
    seconds(53.0).await;
    assert_eq!((fake.asked(), ports(&resolver)), (0, vec![1]));
    seconds(14.0).await;
    assert_eq!((fake.asked(), ports(&resolver)), (1, vec![1, 2]));
    assert_eq!(fake.watched(), 1);
    drop(feed);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_gone_stays_so_until_someone_is_listed() {
    let fake = Fake::listing(proven(&[]));
    let feed = fake.feed();
    feed.send(Ok(Update::Gone)).await.unwrap();
    let resolver = fake.resolver().await;
    resolver.refresh().await.unwrap();
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Gone);
    fake.lists(proven(&[1]));
    resolver.refresh().await.unwrap();
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ended_is_watched_again() {
    let fake = Fake::listing(proven(&[9]));
    let feed = fake.feed();
    feed.send(Ok(Update::Set(proven(&[1])))).await.unwrap();
    let resolver = fake.resolver().await;

    let next = fake.feed();
    drop(feed);
    settle().await;
    assert_eq!(ports(&resolver), [1], "the list is kept in the gap");
    next.send(Ok(Update::Set(proven(&[2, 3])))).await.unwrap();
    seconds(0.2).await;
    assert_eq!((fake.watched(), ports(&resolver)), (2, vec![2, 3]));
    assert_eq!((fake.asked(), resolver.stats().errors), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn while_the_watch_fails_the_list_goes_on_being_refreshed() {
    let fake = Fake::listing(proven(&[1])).failing_watch();
    let resolver = fake.resolver().await;
    assert_eq!((resolver.snapshot().status, ports(&resolver)), (SnapshotStatus::Ready, vec![1]));
    fake.lists(proven(&[2]));
    seconds(11.0).await;
    assert_eq!(ports(&resolver), [2]);
    seconds(120.0).await;
    let watched = fake.watched();
    assert!((15..=35).contains(&watched), "backed off to 10 s: {watched} watches");
    assert!(fake.asked() <= 2 * watched + 2, "{} requests", fake.asked());
    assert_eq!(resolver.stats().errors, watched as u64);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_back_is_watched_again_at_once() {
    let fake = Fake::new(Answer::Down).failing_watch();
    let resolver = fake.resolver().await;
    seconds(100.0).await;
    fake.lists(proven(&[1]));
    // Both pauses are at their longest, 5 s to 10 s, and the request's may end first.
    let mut watched = fake.watched();
    let mut waited = 0;
    while ports(&resolver).is_empty() {
        watched = fake.watched();
        seconds(0.1).await;
        waited += 1;
    }
    assert!(waited <= 101, "the longest pause is 10 s");
    assert_eq!(fake.watched(), watched + 1, "with the answer, and not after a pause of its own");
}

#[tokio::test(start_paused = true)]
async fn a_watchs_error_is_shown_and_the_request_that_follows_decides() {
    let fake = Fake::listing(proven(&[1]));
    let feed = fake.feed();
    feed.send(Ok(Update::Set(proven(&[1])))).await.unwrap();
    let resolver = fake.resolver().await;
    fake.answers(Answer::Down);
    feed.send(Err(DiscoveryError::unavailable("reset"))).await.unwrap();
    settle().await;
    assert!(matches!(resolver.snapshot().status, SnapshotStatus::Stale { .. }));
    assert_eq!(ports(&resolver), [1]);
    assert_eq!(resolver.stats().errors, 2);

    let next = fake.feed();
    next.send(Ok(Update::Set(proven(&[1])))).await.unwrap();
    seconds(0.5).await;
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Ready);
    assert!(resolver.snapshot().last_error.is_none());
}

#[tokio::test(start_paused = true)]
async fn where_watching_is_unsupported_the_source_is_polled_and_asked_for_it_again() {
    let fake = Fake::listing(proven(&[1])).unsupported();
    let resolver = fake.resolver().await;
    assert_eq!((fake.watched(), ports(&resolver)), (1, vec![1]));
    seconds(50.0).await;
    assert!((4..=7).contains(&fake.asked()), "{} requests", fake.asked());
    assert_eq!(fake.watched(), 1);
    seconds(85.0).await;
    assert_eq!((fake.watched(), resolver.stats().errors), (3, 0));

    let feed = fake.feed();
    feed.send(Ok(Update::Set(proven(&[5])))).await.unwrap();
    seconds(67.0).await;
    let polled = fake.asked();
    assert_eq!(fake.watched(), 4, "it can be watched by now");
    seconds(20.0).await;
    assert!(fake.asked() <= polled + 1, "and is not polled any more");
}

#[tokio::test(start_paused = true)]
async fn a_watch_is_heard_while_a_request_hangs() {
    let fake = Fake::new(Answer::Hangs);
    let feed = fake.feed();
    let resolver = fake.builder().build();
    seconds(5.0).await;
    assert_eq!(fake.asked(), 1, "a watch that says nothing is not waited for");
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Pending);
    feed.send(Ok(Update::Set(proven(&[1])))).await.unwrap();
    settle().await;
    assert_eq!(ports(&resolver), [1]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_older_than_what_a_watch_told_is_dropped() {
    let fake = Fake::new(Answer::Slow(Duration::from_secs(1), proven(&[1, 2])));
    let feed = fake.feed();
    feed.send(Ok(Update::Set(proven(&[1, 2])))).await.unwrap();
    let resolver = fake.resolver().await;
    let refresh = tokio::spawn({
        let resolver = resolver.clone();
        async move { resolver.refresh().await }
    });
    settle().await;
    feed.send(Ok(Update::Remove(vec![id(2)]))).await.unwrap();
    refresh.await.unwrap().unwrap();
    assert_eq!((fake.asked(), ports(&resolver)), (1, vec![1]));
}

#[tokio::test(start_paused = true)]
async fn a_doubt_under_a_watch_is_settled_by_requests() {
    let fake = Fake::listing(unproven(&[]));
    let feed = fake.feed();
    feed.send(Ok(Update::Set(unproven(&[1, 2])))).await.unwrap();
    let resolver = fake.resolver().await;
    feed.send(Ok(Update::Set(unproven(&[])))).await.unwrap();
    settle().await;
    assert_eq!(doubted(&resolver), [1, 2]);
    seconds(23.0).await;
    assert!(ports(&resolver).is_empty(), "long before the next resync");
}

#[tokio::test(start_paused = true)]
async fn dropping_the_resolver_drops_the_watch() {
    let fake = Fake::listing(proven(&[1]));
    let feed = fake.feed();
    let resolver = fake.builder().build();
    settle().await;
    assert!(!feed.is_closed());
    drop(resolver);
    settle().await;
    assert!(feed.is_closed());
    assert_eq!(Arc::strong_count(&fake), 1);
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_that_a_watch_ended_the_next_one_is_noticed_at_once() {
    let fake = Fake::listing(proven(&[1]));
    let feed = fake.feed();
    feed.send(Ok(Update::Set(proven(&[1])))).await.unwrap();
    let resolver = fake.resolver().await;
    // The watch breaks, requests fail, and a watch is the first to come back.
    fake.answers(Answer::Down);
    feed.send(Err(DiscoveryError::unavailable("cut"))).await.unwrap();
    drop(feed);
    let feed = fake.feed();
    feed.send(Ok(Update::Set(proven(&[1, 2])))).await.unwrap();
    seconds(3.0).await;
    assert_eq!(ports(&resolver), [1, 2]);
    fake.lists(proven(&[3]));
    let asked = fake.asked();
    feed.send(Err(DiscoveryError::unavailable("cut"))).await.unwrap();
    drop(feed);
    settle().await;
    assert_eq!((fake.asked(), ports(&resolver)), (asked + 1, vec![3]));
}

/// A watch that fails so often that the pause is at its longest, and then one that can be fed.
async fn after_a_bad_time(fake: &Arc<Fake>) -> (Resolver, Feed) {
    let resolver = fake.resolver().await;
    seconds(100.0).await;
    let feed = fake.feed();
    let list = proven(&[1]);
    feed.send(Ok(Update::Set(list))).await.unwrap();
    seconds(11.0).await;
    (resolver, feed)
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_told_for_a_while_is_followed_by_the_next_at_once() {
    let fake = Fake::listing(proven(&[1])).failing_watch();
    let (resolver, feed) = after_a_bad_time(&fake).await;
    // The first of the two ended a pause of up to 10 s, and held for longer; the second holds for 2 s.
    seconds(10.0).await;
    let (mut feed, mut held) = (feed, 2.0);
    for port in [2, 3, 4] {
        let next = fake.feed();
        next.send(Ok(Update::Set(proven(&[port])))).await.unwrap();
        feed.send(Err(DiscoveryError::unavailable("cut"))).await.unwrap();
        drop(std::mem::replace(&mut feed, next));
        seconds(0.2).await;
        assert_eq!(ports(&resolver), [port], "after one that held for {held} s");
        seconds(held).await;
        held -= 0.4;
    }
}

#[tokio::test(start_paused = true)]
async fn watches_that_tell_a_list_and_break_are_opened_ever_more_seldom() {
    let fake = Fake::listing(proven(&[1])).failing_watch();
    let resolver = fake.resolver().await;
    for _ in 0..600 {
        let feed = fake.feed();
        feed.send(Ok(Update::Set(proven(&[1])))).await.unwrap();
        feed.send(Err(DiscoveryError::unavailable("cut"))).await.unwrap();
    }
    seconds(120.0).await;
    let watched = fake.watched();
    assert!((15..=35).contains(&watched), "backed off to 10 s: {watched} watches");
    drop(resolver);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_not_back_with_its_source_is_tried_again_soon() {
    let fake = Fake::new(Answer::Down).failing_watch();
    let resolver = fake.resolver().await;
    seconds(100.0).await;
    fake.lists(proven(&[1]));
    while ports(&resolver).is_empty() {
        seconds(0.01).await;
    }
    // The watch that was opened with the answer has failed, as a registry that only starts would let it.
    let feed = fake.feed();
    feed.send(Ok(Update::Set(proven(&[2])))).await.unwrap();
    seconds(0.2).await;
    assert_eq!(ports(&resolver), [2]);
}
