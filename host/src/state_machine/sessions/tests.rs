//! The sessions against a model that is too simple to be wrong, and what a snapshot may bring.

use std::collections::HashMap;

use proptest::prelude::*;
use raftlet_machine::{Batch, Header, IDEMPOTENCY_KEY, Method, Replies, Reply, Request};

use super::*;
use crate::outcome::{BatchReplies, Failure, ModuleReply};

const LIMITS: SessionLimits = SessionLimits { window_ms: 100, keys_max: 90, bytes_max: 9_000 };

/// One command: its key, which of the requests that use that key, and what comes of it if it is run.
#[derive(Debug, Clone)]
struct Command {
    key: Option<u8>,
    variant: u8,
    result: Outcome,
}

#[derive(Debug, Clone, PartialEq)]
enum Outcome {
    Body(usize),
    Trap,
    Budget,
}

#[derive(Debug, Clone)]
struct Step {
    later_ms: u64,
    commands: Vec<Command>,
    restore: bool,
}

/// What the model says of a reply.
#[derive(Debug, Clone, PartialEq)]
enum Said {
    Ran(u64, Outcome),
    Again(u64, Outcome),
    Reused,
    Full,
}

struct Kept {
    time_ms: u64,
    number: u64,
    variant: u8,
    result: Outcome,
}

#[derive(Default)]
struct Model {
    kept: HashMap<u8, Kept>,
    number: u64,
}

impl Model {
    fn bytes(&self) -> u64 {
        self.kept.iter().map(|(key, kept)| bytes_of(*key, kept.number, &kept.result)).sum()
    }

    fn forget(&mut self, now_ms: u64, most: usize) {
        let mut expired: Vec<_> = self
            .kept
            .iter()
            .filter(|(_, k)| now_ms - k.time_ms > LIMITS.window_ms)
            .map(|(key, k)| (k.number, *key))
            .collect();
        expired.sort_unstable();
        for (_, key) in expired.iter().take(most) {
            self.kept.remove(key);
        }
    }

    fn batch(&mut self, now_ms: u64, commands: &[Command]) -> Vec<Said> {
        self.forget(now_ms, 64 + 2 * commands.len());
        let mut replies: Vec<Said> = Vec::new();
        let mut new: HashMap<u8, (usize, u8)> = HashMap::new();
        let mut new_bytes = 0;
        for (at, command) in commands.iter().enumerate() {
            let number = self.number + at as u64;
            let run = Said::Ran(number, command.result.clone());
            let Some(key) = command.key else {
                replies.push(run);
                continue;
            };
            if self.kept.get(&key).is_some_and(|k| now_ms - k.time_ms > LIMITS.window_ms) {
                self.kept.remove(&key);
            }
            let said = if let Some((first, variant)) = new.get(&key) {
                match &replies[*first] {
                    _ if *variant != command.variant => Said::Reused,
                    Said::Ran(number, result) if *result != Outcome::Budget => Said::Again(*number, result.clone()),
                    first => first.clone(),
                }
            } else if let Some(kept) = self.kept.get(&key) {
                if kept.variant == command.variant {
                    Said::Again(kept.number, kept.result.clone())
                } else {
                    Said::Reused
                }
            } else if self.kept.len() + new.len() >= LIMITS.keys_max as usize
                || self.bytes() + new_bytes >= LIMITS.bytes_max
            {
                Said::Full
            } else {
                new.insert(key, (at, command.variant));
                new_bytes += name(key).len() as u64 + 34;
                run
            };
            replies.push(said);
        }
        for (key, (at, variant)) in new {
            let result = commands[at].result.clone();
            if result != Outcome::Budget {
                self.kept.insert(key, Kept { time_ms: now_ms, number: self.number + at as u64, variant, result });
            }
        }
        self.number += commands.len() as u64;
        replies
    }
}

impl Sessions {
    /// Some keys with their replies, for the tests of whatever keeps or moves them.
    pub fn sample(keys: u8) -> Sessions {
        let mut sessions = Sessions::default();
        for key in 0..keys {
            let number = u64::from(key);
            let reply = reply_of(number, &Outcome::Body(usize::from(key)));
            assert!(sessions.keep(name(key).as_bytes(), 1_000 + number, number, &[key; 16], &reply));
        }
        sessions
    }
}

fn name(key: u8) -> String {
    format!("key-{key}")
}

fn reply_of(number: u64, result: &Outcome) -> CommandReply {
    match result {
        Outcome::Body(len) => {
            let headers = vec![Header { name: "etag".into(), value: format!("\"{number}\"").into() }];
            let reply = Reply { status: 201, content_type: "text/plain".into(), headers, body: vec![b'x'; *len] };
            let other = Reply { status: 500, content_type: String::new(), headers: vec![], body: vec![0; 1000] };
            // In an archive with others, as the module's are.
            CommandReply::Module(ModuleReply::new(Replies { replies: vec![other, reply] }.to_bytes().into(), 1))
        }
        Outcome::Trap => CommandReply::Failed(Failure::Trap(format!("command {number}"))),
        Outcome::Budget => CommandReply::Failed(Failure::BatchBudget),
    }
}

/// What a record of this reply takes, with its key.
fn bytes_of(key: u8, number: u64, result: &Outcome) -> u64 {
    let reply = match reply_of(number, result) {
        CommandReply::Module(reply) => {
            let reply = rkyv::deserialize::<Reply, rkyv::rancor::Error>(reply.get()).unwrap();
            Replies { replies: vec![reply] }.to_bytes().len()
        }
        CommandReply::Failed(Failure::Trap(text)) => text.len(),
        other => panic!("{other:?} isn't kept"),
    };
    (name(key).len() + 34 + reply) as u64
}

fn archived(commands: &[Command]) -> Vec<u8> {
    let request = |command: &Command| Request {
        method: Method::Put,
        path: format!("/{}", command.variant),
        query: String::new(),
        headers: (command.key.iter())
            .map(|key| Header { name: IDEMPOTENCY_KEY.into(), value: name(*key).into() })
            .collect(),
        body: vec![],
    };
    Batch { commands: commands.iter().map(request).collect() }.to_bytes()
}

/// Everything that a client can see of it.
fn seen(reply: &CommandReply) -> String {
    match reply {
        CommandReply::Module(reply) => {
            let reply = rkyv::deserialize::<Reply, rkyv::rancor::Error>(reply.get()).unwrap();
            format!("{reply:?}")
        }
        CommandReply::Failed(failure) => format!("{failure:?}"),
        CommandReply::Replayed(first) => format!("again {}", seen(first)),
    }
}

fn expected(said: &Said) -> String {
    match said {
        Said::Ran(number, result) => seen(&reply_of(*number, result)),
        Said::Again(number, result) => format!("again {}", seen(&reply_of(*number, result))),
        Said::Reused => format!("{:?}", Failure::KeyReused),
        Said::Full => format!("{:?}", Failure::KeysFull),
    }
}

fn apply(sessions: &mut Sessions, number: u64, now_ms: u64, commands: &[Command]) -> Vec<String> {
    let bytes = archived(commands);
    let batch = Batch::access(&bytes).unwrap();
    let run_one = |at: usize| reply_of(number + at as u64, &commands[at].result);
    let replies = match sessions.plan(batch, now_ms, &LIMITS) {
        None => (0..commands.len()).map(run_one).collect(),
        Some(plan) => {
            let ran = plan.run().iter().map(|at| run_one(*at as usize)).collect();
            plan.finish(BatchReplies::Each(ran), sessions, now_ms, number).into_each()
        }
    };
    replies.iter().map(seen).collect()
}

fn command() -> impl Strategy<Value = Command> {
    let result = prop_oneof![
        8 => (0_usize..200).prop_map(Outcome::Body),
        1 => Just(Outcome::Trap),
        1 => Just(Outcome::Budget),
    ];
    let variant = prop_oneof![9 => Just(0_u8), 1 => Just(1)];
    (prop::option::weighted(0.8, any::<u8>()), variant, result).prop_map(|(key, variant, result)| Command {
        key,
        variant,
        result,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let later_ms = prop_oneof![6 => 0_u64..20, 1 => 90_u64..120, 1 => 200_u64..300];
    (later_ms, prop::collection::vec(command(), 0..60), any::<bool>()).prop_map(|(later_ms, commands, restore)| Step {
        later_ms,
        commands,
        restore,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn they_are_a_table_with_a_window(steps in prop::collection::vec(step(), 1..30)) {
        let (mut sessions, mut model) = (Sessions::default(), Model { number: 1, ..Model::default() });
        let mut now_ms = 1_000;
        for Step { later_ms, commands, restore } in steps {
            now_ms += later_ms;
            let replies = apply(&mut sessions, model.number, now_ms, &commands);
            let said: Vec<String> = model.batch(now_ms, &commands).iter().map(expected).collect();
            prop_assert_eq!(replies, said);
            prop_assert_eq!((sessions.keys(), sessions.bytes()), (model.kept.len() as u64, model.bytes()));
            prop_assert_eq!(sessions.by_age.len(), sessions.keys());
            if restore {
                let records: Map = sessions.records().iter().collect();
                let restored = Sessions::restore(records).unwrap();
                prop_assert!(restored.by_age.iter().eq(sessions.by_age.iter()));
                prop_assert_eq!((restored.keys(), restored.bytes()), (sessions.keys(), sessions.bytes()));
                sessions = restored;
            }
        }
    }

    #[test]
    fn any_bytes_are_restored_or_refused_without_a_panic(
        key in prop::collection::vec(any::<u8>(), 0..4),
        good in any::<bool>(),
        at in any::<prop::sample::Index>(),
        flip in 0_u8..,
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut record = record::encode(5, 9, &[1; 16], &reply_of(9, &Outcome::Body(20))).unwrap();
        let at = at.index(record.len());
        record[at] ^= flip;
        if let Some(cut) = cut {
            record.truncate(cut.index(record.len()));
        }
        let key = if good { b"key".to_vec() } else { key };
        let records: Map = [Entry::new(&key, &record)].into_iter().collect();
        if let Ok(mut restored) = Sessions::restore(records) {
            // Whatever it is, it can be asked for.
            if let Some((_, reply)) = restored.look_up(&key, 0, &LIMITS) {
                seen(&reply);
            }
        }
    }
}

fn refused(key: &[u8], record: &[u8], why: &str) {
    let records: Map = [Entry::new(key, record)].into_iter().collect();
    let error = Sessions::restore(records).expect_err(why);
    assert!(error.contains(why), "{error}");
}

#[test]
fn damaged_records_are_refused_with_a_reason() {
    let good = record::encode(5, 9, &[1; 16], &reply_of(9, &Outcome::Body(20))).unwrap();
    let changed = |at: usize, to: u8| {
        let mut record = good.clone();
        record[at] = to;
        record
    };
    assert!(Sessions::restore([Entry::new(b"k", &good)].into_iter().collect()).is_ok());
    refused(b"", &good, "no key is like this");
    refused(&[b'k'; 256], &good, "no key is like this");
    refused(b"a b", &good, "no key is like this");
    refused(b"k", &[], "0 bytes is too short");
    refused(b"k", &good[..33], "33 bytes is too short");
    refused(b"k", &good[..good.len() - 1], "not a valid archive");
    refused(b"k", &changed(0, 2), "format 2");
    refused(b"k", &changed(1, 2), "no known kind (2");
    refused(b"k", &changed(1, 9), "no known kind (9");
    let text = [&changed(1, 1)[..34], b"\xff\xfe"].concat();
    refused(b"k", &text, "not UTF-8");
    let of = |replies: Vec<Reply>| [&good[..34], &Replies { replies }.to_bytes()].concat();
    let status = |status| Reply { status, content_type: String::new(), headers: vec![], body: vec![] };
    refused(b"k", &of(vec![]), "0 replies");
    refused(b"k", &of(vec![status(200), status(200)]), "2 replies");
    refused(b"k", &of(vec![status(199)]), "no HTTP status");
    let twice: Map = [Entry::new(b"k", &good), Entry::new(b"l", &good)].into_iter().collect();
    assert!(Sessions::restore(twice).expect_err("one command").contains("another key too"));
}

#[test]
fn a_record_owns_no_more_than_its_reply() {
    let mut sessions = Sessions::default();
    let command = Command { key: Some(1), variant: 0, result: Outcome::Body(10) };
    apply(&mut sessions, 1, 0, &[command]);
    // The archive that it was cut out of has a thousand bytes more.
    assert!(sessions.bytes() < 300, "{}", sessions.bytes());
}

#[test]
fn each_failure_that_happened_is_kept_as_it_was_and_no_other() {
    let kept = [
        Failure::Trap("a trap".into()),
        Failure::OutOfFuel,
        Failure::OutOfMemory,
        Failure::InvalidReply("two replies".into()),
    ];
    for failure in kept {
        let reply = CommandReply::Failed(failure);
        let bytes = record::encode(1, 2, &[3; 16], &reply).expect("it is kept");
        let record = Record::read(&bytes).unwrap();
        record.check().unwrap();
        assert_eq!((record.time_ms, record.number, record.fingerprint), (1, 2, [3; 16]));
        assert_eq!(seen(&record.reply()), seen(&reply));
    }
    use Failure::{BatchBudget, KeyReused, KeysFull, NoModule, ReplayBudget, Skipped};
    for failure in [BatchBudget, ReplayBudget, NoModule, KeyReused, KeysFull, Skipped] {
        assert_eq!(record::encode(1, 2, &[3; 16], &CommandReply::Failed(failure)), None);
    }
}

#[test]
fn a_reply_that_is_not_repeated_for_its_size_does_not_pass_for_a_command_that_was_not_run() {
    let large = || Command { key: Some(1), variant: 0, result: Outcome::Body(33 << 20) };
    let small = || Command { key: Some(2), variant: 0, result: Outcome::Body(1) };
    let batch = archived(&[small(), large(), large(), large(), small()]);
    let batch = Batch::access(&batch).unwrap();
    let mut sessions = Sessions::default();
    // First as duplicates in one batch, then all as repetitions.
    for (number, runs, kinds) in [(1, 2, "MMRFF"), (6, 0, "RRFFF")] {
        let plan = sessions.plan(batch, 0, &LIMITS).expect("they have keys");
        let ran = [small(), large()].iter().take(plan.run().len()).map(|c| reply_of(number, &c.result)).collect();
        assert_eq!(plan.run().len(), runs);
        let replies = plan.finish(BatchReplies::Each(ran), &mut sessions, 0, number).into_each();
        let kind = |reply: &CommandReply| match reply {
            CommandReply::Module(_) => 'M',
            CommandReply::Replayed(_) => 'R',
            CommandReply::Failed(Failure::ReplayBudget) => 'F',
            CommandReply::Failed(other) => panic!("{other}"),
        };
        assert_eq!(replies.iter().map(kind).collect::<String>(), kinds);
        assert_eq!(sessions.keys(), 2, "nothing was kept anew, and nothing was lost");
    }
}

#[test]
fn a_flood_of_expired_keys_is_forgotten_bit_by_bit_and_never_answered() {
    let limits = SessionLimits { keys_max: 1_000, ..LIMITS };
    let mut sessions = Sessions::default();
    let reply = reply_of(1, &Outcome::Trap);
    for number in 0..1_000 {
        assert!(sessions.keep(format!("k{number}").as_bytes(), 0, number, &[0; 16], &reply));
    }
    sessions.forget_expired(101, &limits, 1);
    assert_eq!(sessions.keys(), 1_000 - 66);
    assert!(sessions.look_up(b"k999", 101, &limits).is_none(), "its turn hasn't come, and it is expired");
    assert_eq!(sessions.keys(), 1_000 - 67);
    assert!(sessions.look_up(b"k998", 100, &limits).is_some());
}
