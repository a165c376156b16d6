//! What the guard believes, case by case.

use super::*;

const LEASE: Duration = Duration::from_secs(15);

fn instances(ports: &[u16]) -> Vec<Instance> {
    let at = |port: &u16| Instance::at(format!("tcp@a:{port}").parse().unwrap());
    ports.iter().map(at).collect()
}

fn unproven(ports: &[u16]) -> Resolved {
    Resolved::new(instances(ports))
}

fn proven(ports: &[u16]) -> Resolved {
    unproven(ports).authoritative(true)
}

fn warming(ports: &[u16]) -> Resolved {
    proven(ports).warming(true)
}

fn holding(ports: &[u16], now: Instant) -> Guard {
    let mut guard = Guard::new(LEASE);
    assert!(!guard.answer(unproven(ports), now));
    guard
}

/// The ports that are listed, and those of them that are doubted.
fn ports(guard: &Guard) -> (Vec<u16>, Vec<u16>) {
    let sorted = |doubtful_only: bool| {
        let mut ports: Vec<u16> = guard
            .known()
            .iter()
            .filter(|known| known.is_doubtful() || !doubtful_only)
            .map(|known| known.instance.address.port().unwrap())
            .collect();
        ports.sort_unstable();
        ports
    };
    (sorted(false), sorted(true))
}

fn after(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

#[test]
fn a_revision_alone_proves_nothing() {
    let start = Instant::now();
    let mut guard = holding(&[1, 2, 3], start);
    assert!(guard.answer(unproven(&[]).revision("etag"), start), "kept");
    assert_eq!(ports(&guard), (vec![1, 2, 3], vec![1, 2, 3]));
    assert!(!guard.answer(unproven(&[]).revision("etag").authoritative(true), start));
    assert_eq!(ports(&guard), (vec![], vec![]));
}

#[test]
fn an_unproven_empty_answer_is_believed_a_lease_and_a_second_answer_later() {
    let start = Instant::now();
    let mut guard = holding(&[1, 2, 3], start);
    assert!(guard.answer(unproven(&[]), after(start, 10)));
    assert_eq!(ports(&guard), (vec![1, 2, 3], vec![1, 2, 3]));
    assert!(guard.answer(unproven(&[]), after(start, 24)));
    assert_eq!(ports(&guard).0, [1, 2, 3], "14 s missing are less than a lease");
    assert!(!guard.answer(unproven(&[]), after(start, 25)));
    assert_eq!(ports(&guard), (vec![], vec![]));
}

#[test]
fn one_answer_is_never_enough_however_late() {
    let start = Instant::now();
    let mut guard = Guard::new(Duration::ZERO);
    guard.answer(unproven(&[1, 2]), start);
    assert!(guard.answer(unproven(&[]), after(start, 3600)));
    assert_eq!(ports(&guard).1, [1, 2]);
    assert!(!guard.answer(unproven(&[]), after(start, 3600)));
    assert!(guard.known().is_empty());
}

#[test]
fn a_proven_answer_is_believed_at_once() {
    let start = Instant::now();
    let mut guard = holding(&[1, 2, 3], start);
    assert!(!guard.answer(proven(&[]), start));
    assert!(guard.known().is_empty());

    let mut guard = holding(&[1, 2, 3], start);
    assert!(guard.answer(unproven(&[]), start));
    assert!(!guard.answer(proven(&[2]), start), "proof ends an older doubt");
    assert_eq!(ports(&guard), (vec![2], vec![]));
}

#[test]
fn an_incomplete_answer_proves_nothing() {
    let start = Instant::now();
    let mut guard = holding(&[1, 2, 3], start);
    assert!(guard.answer(proven(&[]).complete(false), start));
    assert_eq!(ports(&guard).1, [1, 2, 3]);
}

#[test]
fn what_was_deregistered_is_gone_whatever_else_is_doubted() {
    let start = Instant::now();
    let ids = |ports: &[u16]| -> Vec<InstanceId> {
        instances(ports).into_iter().map(|one| one.id).collect()
    };
    let mut guard = holding(&[1, 2, 3], start);
    assert!(guard.answer(warming(&[]).deregistered(ids(&[1])), start));
    assert_eq!(ports(&guard), (vec![2, 3], vec![2, 3]));
    assert!(guard.answer(warming(&[]).deregistered(ids(&[1, 2])), start));
    assert_eq!(ports(&guard), (vec![3], vec![3]), "one that was doubted before");

    let mut guard = holding(&[1, 2], start);
    assert!(!guard.answer(unproven(&[]).deregistered(ids(&[1, 2])), start));
    assert!(guard.known().is_empty());
    let mut guard = holding(&[1, 2, 3, 4], start);
    assert!(!guard.answer(unproven(&[2]).deregistered(ids(&[3, 4])), start));
    assert_eq!(ports(&guard), (vec![2], vec![]), "one of the two that are left may go");
}

#[test]
fn half_may_go_at_once_and_more_than_half_may_not() {
    let start = Instant::now();
    let mut guard = holding(&[1, 2, 3, 4], start);
    assert!(!guard.answer(unproven(&[1, 2]), start));
    assert_eq!(ports(&guard), (vec![1, 2], vec![]));

    let mut guard = holding(&[1, 2, 3, 4], start);
    assert!(guard.answer(unproven(&[1]), start));
    assert_eq!(ports(&guard), (vec![1, 2, 3, 4], vec![2, 3, 4]));

    let mut guard = holding(&[1], start);
    assert!(guard.answer(unproven(&[]), start), "the only one is more than half");
    assert_eq!(ports(&guard).1, [1]);
}

#[test]
fn who_returns_is_doubted_no_more_and_the_others_wait_for_their_lease() {
    let start = Instant::now();
    let mut guard = holding(&[1, 2, 3, 4], start);
    guard.answer(unproven(&[]), after(start, 10));
    assert!(guard.answer(unproven(&[1, 2, 3]), after(start, 20)));
    assert_eq!(ports(&guard), (vec![1, 2, 3, 4], vec![4]));
    assert!(!guard.answer(unproven(&[1, 2, 3]), after(start, 30)));
    assert_eq!(ports(&guard), (vec![1, 2, 3], vec![]));
}

#[test]
fn a_return_starts_the_count_anew() {
    let start = Instant::now();
    let mut guard = holding(&[1], start);
    guard.answer(unproven(&[]), after(start, 10));
    guard.answer(unproven(&[1]), after(start, 20));
    assert!(guard.answer(unproven(&[]), after(start, 30)));
    assert_eq!(ports(&guard).1, [1]);
}

#[test]
fn new_instances_enter_at_once() {
    let start = Instant::now();
    let mut guard = holding(&[1, 2], start);
    assert!(guard.answer(unproven(&[3]), start));
    assert_eq!(ports(&guard), (vec![1, 2, 3], vec![1, 2]));
}

#[test]
fn while_the_source_warms_up_nobody_is_gone() {
    let start = Instant::now();
    let mut guard = holding(&[1, 2, 3, 4], start);
    assert!(guard.answer(warming(&[1, 2, 3]), start));
    assert_eq!(ports(&guard), (vec![1, 2, 3, 4], vec![4]));
    // Warm again, it decides, by the same rules as ever.
    assert!(!guard.answer(unproven(&[1, 2, 3]), after(start, 1)));
    assert_eq!(ports(&guard), (vec![1, 2, 3], vec![]));
}

#[test]
fn a_warm_answer_that_loses_too_much_does_not_decide() {
    let start = Instant::now();
    let mut guard = holding(&[1, 2, 3], start);
    assert!(guard.answer(warming(&[]), start));
    assert!(guard.answer(unproven(&[1]), after(start, 1)));
    assert_eq!(ports(&guard), (vec![1, 2, 3], vec![2, 3]));
    assert!(!guard.answer(proven(&[1]), after(start, 2)));
    assert_eq!(ports(&guard), (vec![1], vec![]));
}

#[test]
fn a_doubt_outlasts_a_warm_up_but_not_one_without_end() {
    let start = Instant::now();
    let mut guard = holding(&[1, 2], start);
    assert!(guard.answer(warming(&[1]), start));
    assert!(guard.answer(warming(&[1]), after(start, 15)));
    assert!(guard.answer(warming(&[1]), after(start, 359)));
    assert_eq!(ports(&guard), (vec![1, 2], vec![2]));
    assert!(!guard.answer(warming(&[1]), after(start, 360)));
    assert_eq!(ports(&guard), (vec![1], vec![]));
}

#[test]
fn who_is_replaced_is_not_missing() {
    let start = Instant::now();
    let address: Address = "tcp@a:1".parse().unwrap();
    let elsewhere: Address = "tcp@a:2".parse().unwrap();
    let mut guard = Guard::new(LEASE);
    guard.answer(vec![Instance::new("x", address.clone())].into(), start);
    assert!(!guard.answer(vec![Instance::new("y", address)].into(), start));
    assert!(!guard.answer(vec![Instance::new("y", elsewhere)].into(), start));
    assert_eq!(ports(&guard), (vec![2], vec![]));
}

#[test]
fn what_a_watch_removes_is_gone_at_once() {
    let start = Instant::now();
    let mut guard = holding(&[1, 2, 3], start);
    guard.answer(unproven(&[]), start);
    guard.remove(&["tcp@a:1".into(), "tcp@a:9".into()]);
    assert_eq!(ports(&guard), (vec![2, 3], vec![2, 3]));
    guard.upsert(instances(&[2, 4]));
    assert_eq!(ports(&guard), (vec![2, 3, 4], vec![3]));
    assert!(guard.is_doubting());
    guard.clear();
    assert!(guard.known().is_empty());
    assert!(!guard.is_doubting());
}

#[test]
fn an_upsert_moves_its_id_and_takes_over_a_doubted_address() {
    let start = Instant::now();
    let at = |port: u16| format!("tcp@a:{port}").parse::<Address>().unwrap();
    let mut guard = Guard::new(LEASE);
    guard.answer(vec![Instance::new("x", at(1)), Instance::new("y", at(2))].into(), start);
    guard.upsert(vec![Instance::new("x", at(3))]);
    assert_eq!(ports(&guard).0, [2, 3]);
    guard.answer(unproven(&[]), start);
    guard.upsert(vec![Instance::new("z", at(2))]);
    assert_eq!(ports(&guard), (vec![2, 3], vec![3]));
}

#[test]
fn a_list_by_hand_holds_until_a_proven_answer() {
    let start = Instant::now();
    let mut guard = holding(&[1, 2], start);
    guard.by_hand(instances(&[3]));
    assert_eq!(ports(&guard), (vec![3], vec![]));
    assert!(guard.answer(unproven(&[1, 2]), after(start, 100)));
    assert!(!guard.answer(unproven(&[1, 2, 3]), after(start, 100)));
    assert_eq!(ports(&guard), (vec![3], vec![]));
    assert!(!guard.answer(proven(&[1, 2]), after(start, 100)));
    assert_eq!(ports(&guard), (vec![1, 2], vec![]));
    assert!(!guard.answer(unproven(&[1]), after(start, 100)), "ordinary rules again");
    assert_eq!(ports(&guard).0, [1]);
}
