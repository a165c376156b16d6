//! When the source is asked, and what its failures do.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::fake::{Answer, Fake, doubted, ports, proven, seconds, settle, unproven};
use crate::discovery::{DiscoveryErrorKind, SnapshotStatus};

#[tokio::test(start_paused = true)]
async fn a_source_without_a_watch_is_polled() {
    let fake = Fake::listing(proven(&[1]));
    let resolver = fake.resolver().await;
    assert_eq!((fake.asked(), ports(&resolver)), (1, vec![1]));
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Ready);
    assert_eq!(resolver.snapshot().revision.as_deref(), Some("r"));

    fake.lists(proven(&[1, 2]));
    seconds(100.0).await;
    assert_eq!(ports(&resolver), [1, 2]);
    let polls = fake.asked() - 1;
    assert!((9..=11).contains(&polls), "every 10 s, give or take a tenth: {polls}");
    assert_eq!(fake.watched(), 1, "a source that offers no watch is asked for one once");
    assert_eq!(resolver.stats().resolved, fake.asked() as u64);
}

#[tokio::test(start_paused = true)]
async fn an_answer_holds_as_long_as_it_says_and_no_less_than_a_second() {
    for (valid_for, expected) in [(0.0, 60..=75), (30.0, 2..=2), (3600.0, 1..=1)] {
        let mut list = proven(&[1]);
        list.valid_for = Some(Duration::from_secs_f64(valid_for));
        let fake = Fake::listing(list);
        let _resolver = fake.resolver().await;
        seconds(67.0).await;
        let polls = fake.asked() - 1;
        assert!(expected.contains(&polls), "{valid_for} s: {polls} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn refreshes_at_one_time_are_one_request() {
    let fake = Fake::listing(proven(&[1]));
    let resolver = fake.resolver().await;
    fake.answers(Answer::Slow(Duration::from_millis(50), proven(&[1, 2])));

    let mut refreshes = JoinSet::new();
    for _ in 0..10 {
        let resolver = resolver.clone();
        refreshes.spawn(async move { resolver.refresh().await });
    }
    while let Some(refreshed) = refreshes.join_next().await {
        assert!(refreshed.unwrap().is_ok());
    }
    assert_eq!((fake.asked(), ports(&resolver)), (2, vec![1, 2]));

    resolver.refresh().await.unwrap();
    assert_eq!(fake.asked(), 3, "a later refresh asks again");
}

#[tokio::test(start_paused = true)]
async fn who_refreshes_a_new_resolver_has_asked_for_its_first_list() {
    let fake = Fake::listing(proven(&[1]));
    let resolver = fake.builder().build();
    resolver.refresh().await.unwrap();
    assert_eq!((fake.asked(), ports(&resolver)), (1, vec![1]));
    seconds(5.0).await;
    assert_eq!(fake.asked(), 1, "the next request is that of the poll interval");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_refresh_leaves_the_request_to_the_others() {
    let fake = Fake::listing(proven(&[1]));
    let resolver = fake.resolver().await;
    fake.answers(Answer::Slow(Duration::from_secs(1), proven(&[2])));
    let short = Duration::from_millis(10);
    assert!(tokio::time::timeout(short, resolver.refresh()).await.is_err());
    resolver.refresh().await.unwrap();
    assert_eq!((fake.asked(), ports(&resolver)), (2, vec![2]));
}

#[tokio::test(start_paused = true)]
async fn the_list_is_kept_with_its_age_while_the_source_is_down() {
    let fake = Fake::listing(unproven(&[1, 2]));
    let resolver = fake.resolver().await;
    let fresh = resolver.snapshot();

    fake.answers(Answer::Down);
    let down = Instant::now();
    let error = resolver.refresh().await.unwrap_err();
    assert_eq!(error.message(), "connection refused");
    seconds(60.0).await;

    let stale = resolver.snapshot();
    assert_eq!(stale.status, SnapshotStatus::Stale { since: down });
    assert_eq!((ports(&resolver), doubted(&resolver)), (vec![1, 2], vec![]));
    assert!(Arc::ptr_eq(&stale.endpoints, &fresh.endpoints));
    assert_eq!(stale.last_error.as_ref().unwrap().message(), "connection refused");
    assert_eq!(stale.age(Instant::now()), fresh.age(Instant::now()));
    assert!(stale.age(Instant::now()) >= Duration::from_secs(60));
    assert!(resolver.stats().errors > 5);

    fake.lists(unproven(&[1, 2]));
    seconds(11.0).await;
    let again = resolver.snapshot();
    assert_eq!((again.status, again.generation), (SnapshotStatus::Ready, 1));
    assert!(again.last_error.is_none());
    assert!(again.age(Instant::now()) <= Duration::from_secs(11));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_is_asked_ever_less_often_up_to_the_poll_interval() {
    let fake = Fake::new(Answer::Down);
    let resolver = fake.resolver().await;
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Failed);
    seconds(1.0).await;
    let soon = fake.asked();
    assert!((3..=6).contains(&soon), "after 0, 0.1, 0.3, 0.7 s at the latest: {soon}");
    seconds(600.0).await;
    let later = fake.asked() - soon;
    assert!((60..=135).contains(&later), "{later} in ten minutes");
    assert_eq!(resolver.stats().errors, fake.asked() as u64);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_list_is_not_content_with_an_error() {
    let fake = Fake::new(Answer::Down);
    let resolver = fake.resolver().await;
    let listed = tokio::spawn({
        let resolver = resolver.clone();
        async move { resolver.listed().await }
    });
    seconds(30.0).await;
    assert!(!listed.is_finished());
    fake.lists(proven(&[]));
    seconds(11.0).await;
    assert!(listed.is_finished(), "an empty list is a list");
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Ready);
    assert_eq!(resolver.snapshot().generation, 0);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_is_given_up_and_asked_again() {
    let fake = Fake::new(Answer::Hangs);
    let resolver = fake.builder().resolve_timeout(Duration::from_secs(3)).build();
    resolver.first().await;
    let error = resolver.snapshot().last_error.clone().unwrap();
    assert_eq!(error.kind(), DiscoveryErrorKind::Unavailable);
    assert_eq!(error.message(), "the source gave no answer within 3s");
    fake.lists(proven(&[1]));
    resolver.listed().await;
    assert_eq!(ports(&resolver), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_panics_has_failed() {
    let fake = Fake::listing(proven(&[1]));
    let resolver = fake.resolver().await;
    fake.answers(Answer::Panics);
    let error = resolver.refresh().await.unwrap_err();
    assert_eq!(error.message(), "the source or the selector panicked: the source is told to panic");
    assert_eq!(ports(&resolver), [1]);
    fake.lists(proven(&[1, 2]));
    seconds(1.0).await;
    assert_eq!(ports(&resolver), [1, 2]);
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_source_whose_panic_panics_is_asked_again() {
    let fake = Fake::listing(proven(&[1]));
    let resolver = fake.resolver().await;
    fake.answers(Answer::PanicsTwice);
    let refreshed = tokio::time::timeout(Duration::from_secs(60), resolver.refresh()).await;
    refreshed.unwrap().unwrap_err();
    fake.lists(proven(&[1, 2]));
    seconds(1.0).await;
    assert_eq!(ports(&resolver), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn ready_waits_for_an_instance_and_says_what_it_waited_for() {
    let two = Duration::from_secs(2);
    let fake = Fake::new(Answer::Down);
    let resolver = fake.resolver().await;
    let error = resolver.ready(two).await.unwrap_err();
    assert_eq!(error.message(), "no instance of Foo after 2s: connection refused");

    fake.lists(proven(&[]));
    resolver.refresh().await.unwrap();
    let error = resolver.ready(two).await.unwrap_err();
    assert_eq!(error.message(), "no instance of Foo after 2s: the source lists none");

    let other = fake.builder().speaks(|protocol| protocol != "tcp").build();
    fake.lists(proven(&[1]));
    let error = other.ready(two).await.unwrap_err();
    let lacks = "no instance of Foo after 2s: this build lacks the protocols of all 1 that are \
                 listed";
    assert_eq!(error.message(), lacks);

    resolver.ready(Duration::from_secs(11)).await.unwrap();
    assert_eq!(ports(&resolver), [1]);
}

#[tokio::test(start_paused = true)]
async fn the_last_clones_drop_ends_the_task() {
    for answer in [Answer::List(proven(&[1])), Answer::Hangs] {
        let fake = Fake::new(answer);
        let resolver = fake.builder().build();
        settle().await;
        let clone = resolver.clone();
        drop(resolver);
        settle().await;
        assert!(Arc::strong_count(&fake) > 1);
        drop(clone);
        settle().await;
        assert_eq!(Arc::strong_count(&fake), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_cannot_be_reached_makes_the_list_doubtful_once_a_second() {
    let fake = Fake::listing(proven(&[1]));
    let resolver = fake.resolver().await;
    fake.lists(proven(&[2]));
    seconds(0.5).await;
    resolver.doubt();
    seconds(0.4).await;
    assert_eq!(fake.asked(), 1, "it was asked less than a second ago");
    seconds(0.2).await;
    assert_eq!((fake.asked(), ports(&resolver)), (2, vec![2]));
    for _ in 0..50 {
        resolver.doubt();
        seconds(0.1).await;
    }
    assert!((6..=7).contains(&fake.asked()), "{}", fake.asked());

    fake.answers(Answer::Down);
    seconds(15.0).await;
    let failed = fake.asked();
    for _ in 0..50 {
        resolver.doubt();
        seconds(0.01).await;
    }
    assert!(fake.asked() <= failed + 2, "a source that fails is asked at its own pace");
}

#[tokio::test(start_paused = true)]
async fn a_new_resolver_has_its_list_without_waiting_for_a_timer() {
    // Between two ticks of tokio's timers: one that is due lasts until the next.
    tokio::time::advance(Duration::from_micros(300)).await;
    let begun = Instant::now();
    let fake = Fake::listing(proven(&[1]));
    let resolver = fake.resolver().await;
    assert_eq!((ports(&resolver), begun.elapsed()), (vec![1], Duration::ZERO));
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

#[test]
fn it_goes_on_on_the_next_callers_runtime() {
    let (first, second) = (paused(), paused());
    let fake = Fake::new(Answer::Hangs);
    let resolver = first.block_on(async {
        let resolver = fake.builder().build();
        settle().await;
        resolver
    });
    // Two that wait on a runtime of their own when the first one ends.
    let (mut refresh, mut listed) = (Box::pin(resolver.refresh()), Box::pin(resolver.listed()));
    second.block_on(poll_fn(|cx| {
        assert!(refresh.as_mut().poll(cx).is_pending() && listed.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    }));
    drop(first);
    assert_eq!(resolver.snapshot().status, SnapshotStatus::Failed, "there is no runtime here");
    fake.lists(proven(&[1]));
    second.block_on(async {
        let minute = Duration::from_secs(60);
        let refreshed = tokio::time::timeout(minute, refresh).await.unwrap();
        assert!(refreshed.unwrap_err().message().contains("runtime"));
        tokio::time::timeout(minute, listed).await.unwrap();
        assert_eq!(resolver.snapshot().status, SnapshotStatus::Ready);
    });
    assert_eq!((ports(&resolver), resolver.stats().restarts), (vec![1], 1));
}
