//! Is the checker of histories itself right? Planted violations must be found, tricky but valid histories must pass,
//! and on small random histories it must agree with a search that knows no tricks. No node runs here.

mod naive;
mod simulated;

use raftlet_tests::checker::{Verdict, check};
use raftlet_tests::history::{self, Action, NEVER, Operation, Outcome, When};

/// A history in the making. Each operation: from when to when, what, and what was answered.
#[derive(Default)]
struct History(Vec<Operation>);

impl History {
    fn add(mut self, (invoked, returned): (u64, u64), action: Action, outcome: Outcome) -> Self {
        let client = u32::try_from(self.0.len()).unwrap();
        let returned = if outcome == Outcome::Unknown { NEVER } else { returned };
        self.0.push(Operation { client, node: 1, action, outcome, invoked, returned, attempts: 1, replayed: false });
        self
    }

    fn verdict(&self) -> Verdict {
        let keys = ["p/a", "p/b"].map(str::to_owned);
        let (verdict, _) = check(&self.0, &keys);
        assert_eq!(verdict == Verdict::Linearizable, naive::is_linearizable(&self.0), "{verdict:?} {:#?}", self.0);
        verdict
    }

    #[track_caller]
    fn passes(&self) {
        assert_eq!(self.verdict(), Verdict::Linearizable);
    }

    #[track_caller]
    fn fails(&self) {
        assert!(matches!(self.verdict(), Verdict::Violation(_)), "not found: {:#?}", self.0);
    }
}

fn put(value: u64) -> Action {
    put_to("p/a", value, When::Always)
}

fn put_to(key: &str, value: u64, when: When) -> Action {
    Action::Put { key: key.into(), value, when }
}

fn get(key: &str) -> Action {
    Action::Get { key: key.into() }
}

fn delete(when: When) -> Action {
    Action::Delete { key: "p/a".into(), when }
}

fn list() -> Action {
    Action::List { prefix: "p/".into() }
}

fn stored(etag: u64, created: bool) -> Outcome {
    Outcome::Stored { etag, created }
}

/// In these histories the put of N has revision N.
fn found(value: u64) -> Outcome {
    Outcome::Found { value, etag: value }
}

fn listed(keys: &[(&str, u64)]) -> Outcome {
    Outcome::Listed(keys.iter().map(|(key, etag)| ((*key).to_owned(), *etag)).collect())
}

fn two_puts() -> History {
    History::default().add((0, 10), put(1), stored(1, true)).add((20, 30), put(2), stored(2, false))
}

#[test]
fn a_stale_read_is_found() {
    two_puts().add((40, 50), get("p/a"), found(1)).fails();
    two_puts().add((25, 50), get("p/a"), found(1)).passes();
    two_puts().add((40, 50), get("p/a"), Outcome::Missing).fails();
}

#[test]
fn a_lost_write_is_found() {
    History::default().add((0, 10), put(1), stored(1, true)).add((20, 30), get("p/a"), Outcome::Missing).fails();
    History::default().add((0, 10), put(1), stored(1, true)).add((20, 30), put(2), stored(2, true)).fails();
}

#[test]
fn a_double_apply_is_found() {
    // By its second revision, and by its effect.
    two_puts().add((40, 50), get("p/a"), Outcome::Found { value: 1, etag: 3 }).fails();
    let applied_again = History::default()
        .add((0, 10), put(1), stored(1, true))
        .add((20, 30), delete(When::Always), Outcome::Deleted)
        .add((40, 50), put(2), stored(2, true))
        .add((60, 70), get("p/a"), Outcome::Missing);
    applied_again.fails();
}

#[test]
fn a_write_that_was_visible_and_goes_again_is_found() {
    let seen = || History::default().add((0, 0), put(1), Outcome::Unknown).add((20, 30), get("p/a"), found(1));
    seen().passes();
    seen().add((40, 50), get("p/a"), Outcome::Missing).fails();
    // A delete that may still be under way explains it.
    seen().add((35, 0), delete(When::Always), Outcome::Unknown).add((40, 50), get("p/a"), Outcome::Missing).passes();
}

#[test]
fn a_read_from_the_future_is_found() {
    History::default().add((0, 10), get("p/a"), found(1)).add((20, 30), put(1), stored(1, true)).fails();
    History::default().add((0, 21), get("p/a"), found(1)).add((20, 30), put(1), stored(1, true)).passes();
}

#[test]
fn a_rejected_or_failed_write_that_happened_is_found() {
    for outcome in [Outcome::Rejected, Outcome::Failed] {
        let when = When::Present;
        History::default().add((0, 10), put_to("p/a", 1, when), outcome).add((20, 30), get("p/a"), found(1)).fails();
    }
    History::default().add((0, 10), get("p/a"), found(9)).fails();
}

#[test]
fn lists_that_go_back_or_mix_two_moments_are_found() {
    let b = || two_puts().add((20, 60), put_to("p/b", 3, When::Always), stored(3, true));
    let old = || listed(&[("p/a", 1)]);
    let new = || listed(&[("p/a", 2), ("p/b", 3)]);
    b().add((25, 40), list(), old()).add((41, 70), list(), new()).passes();
    b().add((25, 40), list(), new()).add((41, 70), list(), old()).fails();
    // Revision 3 is there and revision 2, which came before it, is not. Each key alone is fine.
    b().add((25, 40), list(), listed(&[("p/a", 1), ("p/b", 3)])).fails();
    // The same over two reads.
    b().add((21, 22), get("p/b"), found(3)).add((23, 24), get("p/a"), found(1)).fails();
}

#[test]
fn a_wrong_success_of_a_condition_is_found() {
    let matching = |etag| put_to("p/a", 5, When::Match(etag));
    two_puts().add((40, 50), matching(2), stored(5, false)).passes();
    two_puts().add((40, 50), matching(1), stored(5, false)).fails();
    two_puts().add((40, 50), matching(2), Outcome::Failed).fails();
    two_puts().add((40, 50), put_to("p/a", 5, When::Absent), stored(5, true)).fails();
    // Two who win with the same revision: an update is lost.
    two_puts()
        .add((40, 50), matching(2), stored(5, false))
        .add((41, 51), put_to("p/a", 6, When::Match(2)), stored(6, false))
        .fails();
    two_puts().add((40, 50), delete(When::Match(1)), Outcome::Deleted).fails();
    two_puts().add((40, 50), delete(When::Match(2)), Outcome::Deleted).passes();
}

#[test]
fn revisions_against_the_order_of_time_are_found() {
    History::default().add((0, 10), put(2), stored(2, true)).add((20, 30), put(1), stored(1, false)).fails();
}

#[test]
fn unknown_outcomes_may_come_late_or_never() {
    let unknown = || two_puts().add((5, 0), put(7), Outcome::Unknown);
    unknown().add((40, 50), get("p/a"), found(2)).passes();
    unknown().add((40, 50), get("p/a"), found(2)).add((60, 70), get("p/a"), found(7)).passes();
    unknown().add((40, 50), get("p/a"), found(7)).add((60, 70), get("p/a"), found(2)).fails();
    // Never seen, but the next put replaced something: it was there for a moment.
    History::default()
        .add((0, 0), put(7), Outcome::Unknown)
        .add((20, 30), put(8), stored(8, false))
        .add((40, 50), get("p/a"), found(8))
        .passes();
    // A list shows a revision whose value no read has shown.
    History::default().add((0, 0), put(7), Outcome::Unknown).add((20, 30), list(), listed(&[("p/a", 7)])).passes();
    // Two of them: a delete and then a create that only works after it.
    two_puts()
        .add((31, 0), delete(When::Always), Outcome::Unknown)
        .add((32, 0), put_to("p/a", 9, When::Absent), Outcome::Unknown)
        .add((40, 50), get("p/a"), found(9))
        .passes();
    two_puts()
        .add((32, 0), put_to("p/a", 9, When::Absent), Outcome::Unknown)
        .add((40, 50), get("p/a"), found(9))
        .fails();
}

#[test]
fn many_unknown_outcomes_stay_small() {
    const WRITES: u64 = 200;
    let mut history = History::default();
    for number in 0..WRITES {
        let at = number * 10;
        history = history
            .add((at, 0), put(1_000 + number), Outcome::Unknown)
            .add((at, 0), delete(When::Always), Outcome::Unknown)
            .add((at + 1, at + 9), put(1 + number), stored(1 + number, number % 3 == 0));
    }
    let keys = ["p/a".to_owned()];
    let (verdict, effort) = check(&history.0, &keys);
    assert_eq!(verdict, Verdict::Linearizable);
    assert!(effort.states < 10_000, "{effort:?}");
    // And a violation at the end of it is still decided.
    let end = WRITES * 10;
    let history = history.add((end, end + 1), get("p/a"), found(WRITES - 5));
    let (verdict, effort) = check(&history.0, &keys);
    assert!(matches!(verdict, Verdict::Violation(_)), "{verdict:?} {effort:?}");
}

#[test]
fn a_history_is_read_as_it_was_written() {
    let history = two_puts().add((5, 0), list(), listed(&[("p/a", 2)])).add((1, 0), put(3), Outcome::Unknown).0;
    let mut text = Vec::new();
    history::write(&mut text, &history).unwrap();
    assert_eq!(history::read(std::str::from_utf8(&text).unwrap()).unwrap(), history);
}
