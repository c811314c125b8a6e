//! The queue alone: order, limits, and callers that go away.

use futures_util::FutureExt as _;
use raftlet_machine::Method;

use super::*;
use crate::request::request;

const LIMITS: BulkLimits = BulkLimits { requests: 100, bytes: 1 << 20 };

fn queue() -> Arc<Queue> {
    Arc::new(Queue::new(1 << 20))
}

fn push(queue: &Arc<Queue>, path: &str) -> Waiting {
    queue.push(Load::One(request(Method::Put, path, "")), Kind::Command, false).unwrap()
}

fn take(queue: &Queue) -> Vec<Item> {
    let mut items = Vec::new();
    if let Some((_, flight)) = queue.take(&[Kind::Command], LIMITS, None, &mut items) {
        queue.land(flight, &[Kind::Command]);
    }
    items
}

fn paths(items: &[Item]) -> Vec<&str> {
    items.iter().map(|item| item.load.requests()[0].path.as_str()).collect()
}

fn refusal() -> Refusal {
    Refusal::own("test", "")
}

#[test]
fn what_waits_again_is_in_front_and_in_order() {
    let queue = queue();
    let _callers: Vec<_> = ["/a", "/b", "/c"].map(|path| push(&queue, path)).into();
    let items = take(&queue);
    let _later = push(&queue, "/d");
    queue.again(items.into_iter(), &refusal(), false);
    assert_eq!(paths(&take(&queue)), ["/a", "/b", "/c", "/d"]);
    assert!(take(&queue).is_empty() && !queue.has(&[Kind::Command]));
}

#[test]
fn who_goes_away_takes_its_request_and_its_bytes_with_it() {
    let queue = queue();
    for _ in 0..10_000 {
        drop(push(&queue, "/gone"));
    }
    assert_eq!(queue.depth(), (0, 0));
    let left = queue.lock().lines[Kind::Command as usize].tickets.len();
    assert!(left < 200, "{left} tickets of nobody");
    let kept = push(&queue, "/kept");
    drop(push(&queue, "/gone"));
    assert_eq!(paths(&take(&queue)), ["/kept"]);
    // In flight: its place is free at once, and the answer finds nobody.
    drop(kept);
    assert_eq!(queue.depth(), (0, 0));
}

#[test]
fn an_answer_doesnt_reach_the_next_one_at_the_same_place() {
    let queue = queue();
    let first = push(&queue, "/first");
    let items = take(&queue);
    drop(first);
    let mut second = push(&queue, "/second");
    let refused = items.into_iter().map(|item| (item, Err(Error::Rejected(refusal()))));
    queue.finish(refused, &mut Vec::new());
    assert!((&mut second).now_or_never().is_none());
    let items = take(&queue);
    assert_eq!(paths(&items), ["/second"]);
    queue.finish(items.into_iter().map(|item| (item, Err(Error::Rejected(refusal())))), &mut Vec::new());
    assert!(matches!(second.now_or_never(), Some(Err(Error::Rejected(_)))));
    assert_eq!(queue.depth(), (0, 0));
}

#[test]
fn explicit_batches_and_suspects_travel_alone() {
    let queue = queue();
    let many = || Load::Many(vec![request(Method::Put, "/m", ""), request(Method::Put, "/m", "")]);
    let _callers = (push(&queue, "/a"), queue.push(many(), Kind::Command, false).unwrap(), push(&queue, "/b"));
    assert_eq!(paths(&take(&queue)), ["/a"]);
    assert_eq!(paths(&take(&queue)), ["/m"]);
    let mut items = take(&queue);
    items.iter_mut().for_each(|item| item.alone = true);
    queue.again(items.into_iter(), &refusal(), false);
    let _later = push(&queue, "/c");
    assert_eq!(paths(&take(&queue)), ["/b"]);
    assert_eq!(paths(&take(&queue)), ["/c"]);
}

#[test]
fn fewer_than_are_on_their_way_wait_for_more_or_for_the_landing() {
    let queue = queue();
    let take = |landed| {
        let mut items = Vec::new();
        let taken = queue.take(&[Kind::Command], LIMITS, landed, &mut items);
        taken.map(|(_, flight)| (items.len(), flight))
    };
    let told = || queue.told(&[Kind::Command]).now_or_never().is_some();
    let mut callers = vec![push(&queue, "/a"), push(&queue, "/b")];
    assert!(told());
    let (count, first) = take(None).unwrap();
    assert_eq!(count, 2);
    callers.push(push(&queue, "/c"));
    assert!(take(None).is_none() && !told(), "one beside two");
    callers.push(push(&queue, "/d"));
    assert!(told());
    let (count, second) = take(None).unwrap();
    assert_eq!(count, 2);
    callers.push(push(&queue, "/e"));
    queue.land(first, &[Kind::Command]);
    assert!(take(None).is_none() && !told(), "one beside the other two");
    queue.land(second, &[Kind::Command]);
    assert!(told(), "nothing is on its way");
    let (count, third) = take(None).unwrap();
    assert_eq!(count, 1);
    callers.push(push(&queue, "/f"));
    let (_, fourth) = take(Some(third)).unwrap();
    drop(push(&queue, "/gone"));
    assert!(take(None).is_none());
    queue.land(fourth, &[Kind::Command]);
    assert!(take(None).is_none(), "nobody waits");
}

#[test]
fn explicit_batches_neither_hold_back_nor_are_held_back() {
    let queue = queue();
    let many = || Load::Many(vec![request(Method::Put, "/m", ""); 5]);
    let take = || queue.take(&[Kind::Command], LIMITS, None, &mut Vec::new()).is_some();
    let told = || queue.told(&[Kind::Command]).now_or_never().is_some();
    let _first = queue.push(many(), Kind::Command, false).unwrap();
    assert!(told() && take());
    let _second = ["/a", "/b", "/c"].map(|path| push(&queue, path));
    assert!(told() && take(), "an explicit batch is on its way");
    let _third = queue.push(many(), Kind::Command, false).unwrap();
    assert!(told() && take(), "three are on their way");
    let fourth = push(&queue, "/d");
    assert!(!take() && !told(), "one beside three");
    let _fifth = queue.push(many(), Kind::Command, false).unwrap();
    assert!(told() && !take(), "it isn't in front");
    drop(fourth);
    assert!(told() && take());
}

#[test]
fn giving_up_tells_what_may_have_happened() {
    let queue = queue();
    let waited = Duration::from_secs(1);
    assert!(matches!(push(&queue, "/waits").give_up(waited), Err(Error::Rejected(_))));
    let taken = push(&queue, "/taken");
    let items = take(&queue);
    assert!(matches!(taken.give_up(waited), Err(Error::Unknown(_))));
    queue.again(items.into_iter(), &refusal(), true);
    assert!(take(&queue).is_empty(), "nobody waits for it");
    let doubtful = push(&queue, "/doubtful");
    let items = take(&queue);
    queue.again(items.into_iter(), &refusal(), true);
    assert!(matches!(doubtful.give_up(waited), Err(Error::Unknown(_))));
    let query = queue.push(Load::One(request(Method::Get, "/q", "")), Kind::Query, true).unwrap();
    let mut items = Vec::new();
    let taken = queue.take(&[Kind::Command, Kind::Query], LIMITS, None, &mut items);
    assert_eq!(taken.map(|(kind, _)| kind), Some(Kind::Query));
    assert!(matches!(query.give_up(waited), Err(Error::Rejected(_))), "a query changes nothing");
    assert_eq!(queue.depth(), (0, 0));
}
