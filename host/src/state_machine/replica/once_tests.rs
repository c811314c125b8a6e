//! Idempotency keys through the whole state machine: entries in, replies and state out, with real modules. Each test
//! applies its entries on two replicas, one of which is rebuilt from its records on the way, and compares them.

use raftlet_machine::{Batch, Header, IDEMPOTENCY_KEY, Method, Request};

use super::super::map::Map;
use super::super::sessions::Sessions;
use super::*;
use crate::guest::Limits;
use crate::guest::tests::assemble::{Guest, at, mark_and};
use crate::guest::tests::{ENGINE, request};
use crate::raft::codec::log_id;

const KV: &[u8] = include_bytes!("../../../modules/kv.wasm");
const LIMITS: SessionLimits = SessionLimits { window_ms: 1_000, keys_max: 3, bytes_max: 1 << 20 };

struct Pair {
    replicas: [Replica; 2],
    index: u64,
    time_ms: u64,
    /// Entries that were applied lightly, on one of them.
    light: u64,
}

impl Pair {
    fn new(module: &[u8], sessions: SessionLimits) -> Pair {
        Pair::with_limits(module, Limits::default(), sessions)
    }

    fn with_limits(module: &[u8], limits: Limits, sessions: SessionLimits) -> Pair {
        let mut pair = Pair::founding();
        let activation = Activation { sessions, ..Activation::of(module, 7, limits, ENGINE.identity()) };
        pair.entry(Kind::ModuleChunk, module.to_vec());
        pair.entry(Kind::ActivateModule, activation.to_bytes().to_vec());
        pair
    }

    /// Before a module is active.
    fn founding() -> Pair {
        let replica = || Replica::new(ENGINE.clone(), Arc::default());
        Pair { replicas: [replica(), replica()], index: 0, time_ms: 10_000, light: 0 }
    }

    fn entry(&mut self, kind: Kind, bytes: Vec<u8>) -> Vec<CommandReply> {
        let index = self.index;
        self.index += 1;
        let id = BatchId { node: 1, boot: 1, sequence: index };
        let envelope = Envelope { kind, id, time_ms: self.time_ms, stamp_index: 0, stamp_digest: [0; 16] };
        let payload = EntryPayload::Normal(Proposal { envelope, bytes: bytes.into() });
        // One of them tries it lightly first.
        let efforts: [&[Effort]; 2] = [&[Effort::Whole], &[Effort::Light, Effort::Whole]];
        let mut replies = self.replicas.iter_mut().zip(efforts).map(|(replica, efforts)| {
            let entry = Entry { log_id: log_id(1, index), payload: payload.clone() };
            let done = efforts.iter().find_map(|effort| {
                let before = replica.state();
                match replica.apply(&entry, *effort).expect("no fault of this machine") {
                    Step::Applied(done) => {
                        self.light += u64::from(*effort == Effort::Light);
                        Some(done)
                    }
                    Step::TooMuch { .. } => {
                        let after = replica.state();
                        assert_eq!(
                            (after.applied, after.time_ms, after.digest),
                            (before.applied, before.time_ms, before.digest)
                        );
                        None
                    }
                }
            });
            done.expect("a whole effort is never too much").map_or_else(Vec::new, |done| done.replies.into_each())
        });
        let (ours, theirs) = (replies.next().unwrap(), replies.next().unwrap());
        assert!(ours.iter().map(line).eq(theirs.iter().map(line)));
        ours
    }

    /// Applies one batch; a line for each reply.
    fn batch(&mut self, commands: Vec<Request>) -> Vec<String> {
        let replies = self.entry(Kind::Batch, Batch { commands }.to_bytes());
        // What a replica keeps of its keys must be all that it knows of them.
        let second = &mut self.replicas[1].state;
        let records: Map = second.sessions.records().iter().collect();
        second.sessions = Sessions::restore(records).expect("what was kept can be read");
        let [first, second] = &self.replicas;
        assert_eq!(first.state.digest, second.state.digest);
        assert_eq!(digest::content(&first.state), digest::content(&second.state));
        assert_eq!(first.state.sessions.bytes(), second.state.sessions.bytes());
        replies.iter().map(line).collect()
    }

    fn state(&self) -> &Published {
        &self.replicas[0].state
    }

    fn keys(&self) -> u64 {
        self.state().sessions.keys()
    }

    fn replays(&self) -> u64 {
        let mut text = String::new();
        let registry = &self.replicas[0].metrics.registry;
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        let count = text.lines().find_map(|l| l.strip_prefix("raftlet_replays_total ")).unwrap();
        count.parse().unwrap()
    }
}

fn line(reply: &CommandReply) -> String {
    match reply {
        CommandReply::Module(reply) => {
            let reply = reply.get();
            let etag = reply.headers.iter().find(|h| h.name == "etag").map_or(&b""[..], |h| &h.value);
            format!("{} {}", reply.status, String::from_utf8_lossy(etag))
        }
        CommandReply::Failed(failure) => failure.to_string(),
        CommandReply::Replayed(first) => format!("again {}", line(first)),
    }
}

fn put(key: &str, value: &str) -> Request {
    request(Method::Put, &format!("/kv/{key}"), value.as_bytes())
}

fn keyed(key: &str, mut command: Request) -> Request {
    command.headers.push(Header { name: IDEMPOTENCY_KEY.into(), value: key.into() });
    command
}

const REUSED: &str = "this Idempotency-Key was used for another request";
const FULL: &str = "no more idempotency keys can be kept now";

#[test]
fn a_repeated_command_gets_the_first_reply_and_is_not_run() {
    let mut pair = Pair::new(KV, LIMITS);
    assert_eq!(
        pair.batch(vec![put("a", "0"), keyed("k", put("a", "1")), put("b", "0")]),
        ["201 \"1\"", "204 \"2\"", "201 \"3\""]
    );
    // In between somebody else has written: the repetition must not undo that.
    assert_eq!(pair.batch(vec![put("a", "2")]), ["204 \"4\""]);
    assert_eq!(
        pair.batch(vec![put("b", "1"), keyed("k", put("a", "1")), put("b", "2")]),
        ["204 \"5\"", "again 204 \"2\"", "204 \"7\""]
    );
    assert_eq!(pair.batch(vec![keyed("k", put("a", "1"))]), ["again 204 \"2\""]);
    assert_eq!(pair.batch(vec![put("c", "")]), ["201 \"9\""], "a command that isn't run has a number all the same");
    let a = pair.state().map.iter().find(|e| e.key().ends_with(b"a")).expect("it was written");
    assert!(a.value().ends_with(b"2"), "{a:?}");
    assert_eq!((pair.keys(), pair.replays()), (1, 2));
}

#[test]
fn a_duplicate_in_one_batch_copies_the_first_reply() {
    let mut pair = Pair::new(KV, LIMITS);
    let twice = vec![keyed("k", put("a", "1")), put("b", ""), keyed("k", put("a", "1")), keyed("k", put("a", "1"))];
    assert_eq!(pair.batch(twice), ["201 \"1\"", "201 \"2\"", "again 201 \"1\"", "again 201 \"1\""]);
    assert_eq!(pair.keys(), 1);
}

#[test]
fn a_key_belongs_to_one_request() {
    let mut pair = Pair::new(KV, LIMITS);
    assert_eq!(pair.batch(vec![keyed("k", put("a", "1")), keyed("k", put("a", "2"))]), ["201 \"1\"", REUSED]);
    let conditional = |command: Request| {
        let header = Header { name: "if-match".into(), value: b"\"1\"".to_vec() };
        Request { headers: vec![header], ..command }
    };
    let others = [
        put("a", "2"),
        put("b", "1"),
        request(Method::Post, "/kv/a", b"1"),
        Request { query: "x".into(), ..put("a", "1") },
        conditional(put("a", "1")),
    ];
    for other in others {
        assert_eq!(pair.batch(vec![keyed("k", other)]), [REUSED]);
    }
    assert_eq!(pair.batch(vec![keyed("k", put("a", "1"))]), ["again 201 \"1\""], "the key is still the first one's");
}

#[test]
fn parts_of_a_request_cannot_be_shifted_into_each_other() {
    let mut pair = Pair::new(KV, LIMITS);
    let of = |path: &str, query: &str, body: &str| Request {
        query: query.into(),
        ..request(Method::Put, &format!("/kv/{path}"), body.as_bytes())
    };
    pair.batch(vec![keyed("k", of("ab", "c", "d"))]);
    for shifted in [of("a", "bc", "d"), of("abc", "", "d"), of("ab", "", "cd"), of("ab", "cd", "")] {
        assert_eq!(pair.batch(vec![keyed("k", shifted)]), [REUSED]);
    }
}

#[test]
fn a_key_is_known_for_the_window_and_not_longer() {
    let mut pair = Pair::new(KV, LIMITS);
    pair.batch(vec![keyed("k", put("a", "1"))]);
    pair.time_ms += LIMITS.window_ms;
    assert_eq!(pair.batch(vec![keyed("k", put("a", "1"))]), ["again 201 \"1\""]);
    pair.time_ms += 1;
    assert_eq!(pair.batch(vec![keyed("k", put("a", "other"))]), ["204 \"3\""]);
    // A leader whose clock is behind doesn't bring the old one back.
    pair.time_ms = 0;
    assert_eq!(pair.batch(vec![keyed("k", put("a", "other"))]), ["again 204 \"3\""]);
    pair.time_ms = 20_000;
    pair.batch(vec![put("b", "")]);
    assert_eq!(pair.keys(), 0, "batches without keys forget too");
}

#[test]
fn when_the_keys_are_full_new_ones_are_refused_and_known_ones_answered() {
    let mut pair = Pair::new(KV, LIMITS);
    let all: Vec<_> = (0..5).map(|n| keyed(&format!("k{n}"), put(&format!("{n}"), ""))).collect();
    let mut batch = all.clone();
    batch.push(keyed("k0", put("0", "")));
    batch.push(put("plain", ""));
    assert_eq!(pair.batch(batch), ["201 \"1\"", "201 \"2\"", "201 \"3\"", FULL, FULL, "again 201 \"1\"", "201 \"7\""]);
    assert_eq!(pair.batch(all[3..].to_vec()), [FULL, FULL]);
    assert_eq!(pair.batch(all[..1].to_vec()), ["again 201 \"1\""]);
    assert_eq!(pair.keys(), 3);
    pair.time_ms += LIMITS.window_ms + 1;
    assert_eq!(pair.batch(all[3..].to_vec()), ["201 \"11\"", "201 \"12\""], "what was refused had no effect");
    assert_eq!(pair.keys(), 2);
}

#[test]
fn bytes_fill_the_keys_too() {
    let mut pair = Pair::new(KV, SessionLimits { keys_max: 100, bytes_max: 200, ..LIMITS });
    let key = "k".repeat(255);
    assert_eq!(pair.batch(vec![keyed(&key, put("a", ""))]), ["201 \"1\""]);
    assert_eq!(pair.batch(vec![keyed("b", put("b", ""))]), [FULL]);
    assert!(pair.state().sessions.bytes() > 255 + 34);
}

#[test]
fn a_batch_of_duplicates_does_not_touch_the_module() {
    let mut pair = Pair::new(&mark_and(&[], "").core(), LIMITS);
    assert_eq!(pair.batch(vec![keyed("k", put("a", "")), keyed("l", put("b", ""))]), ["200 ", "200 "]);
    let before = pair.state().map.clone();
    let again = vec![keyed("l", put("b", "")), keyed("l", put("b", "")), keyed("k", put("a", ""))];
    // Three positions: had the module been asked with an empty `run`, it would have marked the third.
    assert_eq!(pair.batch(again), ["again 200 ", "again 200 ", "again 200 "]);
    assert!(pair.state().map.iter().eq(before.iter()));
}

#[test]
fn failures_of_a_command_are_replayed() {
    let cases = [
        ("unreachable", "the module trapped: wasm `unreachable` instruction executed"),
        ("(call $forever)", "the command used up its fuel"),
        ("(drop (memory.grow (i32.const 100)))", "the module's memory limit was reached"),
    ];
    for (what, failure) in cases {
        let limits = Limits { fuel_per_command: 20_000_000, memory_bytes_max: 8 << 20, ..Limits::default() };
        let mut pair = Pair::with_limits(&mark_and(&[0], what).core(), limits, LIMITS);
        let one = || keyed("k", put("a", ""));
        let first = pair.batch(vec![one(), put("b", ""), one()]);
        assert_eq!(first[1], "200 ");
        assert_eq!(first[2], format!("again {}", first[0]), "{what}");
        assert!(first[0].contains(failure.split(':').next().unwrap()), "{}", first[0]);
        // The guest fails at position 0 alone: had the repetition been run, it would have succeeded.
        assert_eq!(pair.batch(vec![put("b", ""), one()])[1], first[2]);
        assert_eq!(pair.keys(), 1);
    }
}

#[test]
fn what_has_not_happened_is_not_kept() {
    // The first command burns its own fuel and with it the batch's: the others have none.
    let limits = Limits { fuel_per_command: 1_000_000, fuel_per_batch: 1_000_000, ..Limits::default() };
    let mut pair = Pair::with_limits(
        &Guest::new(&format!("(if {} (then (call $forever))) (i32.const 0)", at(0))).core(),
        limits,
        LIMITS,
    );
    let one = || keyed("k", put("a", ""));
    let budget = "the batch's fuel was used up before this command was run";
    let replies = pair.batch(vec![put("b", ""), one(), one(), keyed("k", put("other", ""))]);
    assert_eq!(replies[1..], [budget, budget, REUSED]);
    assert_eq!(pair.keys(), 0);
    let mut pair = Pair::new(&mark_and(&[], "").core(), LIMITS);
    assert_eq!(pair.batch(vec![one()]), ["200 "]);
}

#[test]
fn a_key_that_no_listener_lets_through_is_none() {
    let mut pair = Pair::new(KV, LIMITS);
    for key in ["", "with space", "\u{e9}", &"k".repeat(256)] {
        pair.batch(vec![keyed(key, put("a", "")), keyed(key, put("a", "other"))]);
        assert_eq!((pair.keys(), pair.replays()), (0, 0), "{key}");
    }
}

#[test]
fn without_a_module_nothing_is_kept() {
    let mut pair = Pair::founding();
    let none = "no module was active yet";
    assert_eq!(pair.batch(vec![keyed("k", put("a", "")), keyed("k", put("a", ""))]), [none, none]);
    assert_eq!(pair.keys(), 0);
}

#[test]
fn the_clock_never_goes_back() {
    let mut pair = Pair::new(KV, LIMITS);
    let mut now = pair.time_ms;
    for (leaders_clock, expected) in [(20_000, 20_000), (15_000, 20_000), (0, 20_000), (20_001, 20_001)] {
        pair.time_ms = leaders_clock;
        pair.batch(vec![put("a", "")]);
        assert!(pair.state().time_ms >= now, "it went back from {now}");
        now = pair.state().time_ms;
        assert_eq!(now, expected);
    }
}

#[test]
fn a_light_effort_repeats_no_reply() {
    let mut pair = Pair::new(KV, LIMITS);
    let before = pair.light;
    pair.batch(vec![keyed("k", put("a", "1")), put("b", "2")]);
    assert_eq!(pair.light, before + 1);
    pair.batch(vec![keyed("k", put("a", "1"))]);
    pair.batch(vec![keyed("l", put("a", "1")), keyed("l", put("a", "1"))]);
    assert_eq!(pair.light, before + 1);
}

#[test]
fn a_light_effort_that_was_not_enough_leaves_the_clock_as_it_was() {
    let mut pair = Pair::new(&mark_and(&[0], "unreachable").core(), LIMITS);
    pair.time_ms += 1;
    // Looked at between the two efforts, see `Pair::entry`.
    assert!(pair.batch(vec![put("a", "")])[0].contains("trapped"));
    assert_eq!(pair.state().time_ms, pair.time_ms);
}

/// No replica misses what all of them lost alike: digests don't show it.
#[test]
fn what_was_answered_is_in_the_state_after_many_batches() {
    let mut pair = Pair::new(KV, LIMITS);
    for number in 0..100 {
        let key = format!("k{number}");
        assert!(pair.batch(vec![put(&key, "value")])[0].starts_with("201 "));
        let written = pair.state().map.iter().filter(|e| e.value().ends_with(b"value")).count();
        assert_eq!(written, number + 1);
    }
}
