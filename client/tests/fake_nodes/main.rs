//! The client against nodes that refuse, break off and hang as a test wants it.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use raftlet_client::{Consistency, Error, Method, Request, keyed, request};
use server::{Fake, Fault};

mod server;

const SOON: Duration = Duration::from_millis(300);

fn put(path: &str) -> Request {
    request(Method::Put, path, "v")
}

fn kind(error: &Error) -> &str {
    match error {
        Error::Rejected(refusal) | Error::Unknown(refusal) => &refusal.kind,
        Error::Invalid(_) => "invalid",
    }
}

#[tokio::test]
async fn commands_and_queries_go_to_the_leader() {
    let fake = Fake::start(3).await;
    fake.lead(Some(2));
    let client = fake.builder().build().unwrap();
    let written = client.put("/kv/a?x=1", "v").await.unwrap();
    assert_eq!((written.status(), written.index(), written.term()), (201, 7, 2));
    assert_eq!((written.body().as_ref(), written.header("etag")), (&b"/kv/a"[..], Some(&b"\"7\""[..])));
    assert_eq!(client.get("/kv/b").await.unwrap().body(), "/kv/b");
    client.delete("/kv/c").await.unwrap();
    let batch = client.command_batch(vec![put("/1"), put("/2")]).await.unwrap();
    let bodies: Vec<_> = batch.iter().map(|reply| reply.unwrap().body()).collect();
    assert_eq!(bodies, ["/1", "/2"]);
    assert!(fake.state().seen.iter().all(|(node, _)| *node == 2), "{:?}", fake.state().seen);
}

#[tokio::test]
async fn callers_share_requests_and_get_each_their_own_reply() {
    let fake = Fake::start(1).await;
    let client = fake.builder().build().unwrap();
    let one = |n: usize| {
        let client = client.clone();
        async move {
            let path = format!("/kv/{n}");
            let reply = if n.is_multiple_of(3) { client.get(&path).await } else { client.put(&path, "v").await };
            assert_eq!(reply.unwrap().body(), path);
        }
    };
    join_all((0..3000).map(one)).await;
    let batches = fake.state().seen.len();
    assert!(batches < 30, "{batches} batches for what waited together");
    assert_eq!(fake.state().executed.len(), 3000);
    let limited = fake.builder().bulk(10, 1 << 20).build().unwrap();
    join_all((0..100).map(|_| limited.put("/l", "v"))).await;
    let longest = fake.state().seen[batches..].iter().map(|(_, paths)| paths.len()).max();
    assert_eq!(longest, Some(10));
    let before = fake.state().seen.len();
    let narrow = fake.builder().bulk(1000, 2000).build().unwrap();
    join_all((0..10).map(|_| narrow.put("/n", vec![0; 600]))).await;
    let longest = fake.state().seen[before..].iter().map(|(_, paths)| paths.len()).max();
    assert_eq!(longest, Some(3));
}

#[tokio::test]
async fn a_refused_request_finds_the_new_leader() {
    let fake = Fake::start(3).await;
    let client = fake.builder().build().unwrap();
    client.put("/a", "").await.unwrap();
    fake.lead(Some(1));
    fake.fault(0, Fault::Refuse(503, "no-leader", "rejected"));
    client.put("/b", "").await.unwrap();
    assert_eq!(fake.state().seen.last().unwrap().0, 1);
    assert_eq!((fake.executed("/b"), client.figures().again), (1, 1));
    // And in a later term, without having been refused: node 1 forwards what the next request shows.
    fake.lead(Some(2));
    client.put("/c", "").await.unwrap();
    client.put("/d", "").await.unwrap();
    assert_eq!(fake.state().seen.last().unwrap().0, 2);
}

#[tokio::test]
async fn an_overloaded_leader_is_asked_again() {
    let fake = Fake::start(2).await;
    let client = fake.builder().build().unwrap();
    (0..3).for_each(|_| fake.fault(0, Fault::Refuse(503, "overloaded", "rejected")));
    client.put("/a", "").await.unwrap();
    assert_eq!((fake.executed("/a"), fake.state().seen.len()), (1, 4));
    assert!(fake.state().seen.iter().all(|(node, _)| *node == 0));
}

#[tokio::test]
async fn without_retries_a_refusal_is_told_at_once() {
    let fake = Fake::start(1).await;
    let client = fake.builder().retries(false).build().unwrap();
    fake.fault(0, Fault::Refuse(503, "overloaded", "rejected"));
    let refused = client.put("/a", "").await.unwrap_err();
    assert!(matches!(&refused, Error::Rejected(refusal) if refusal.status == Some(503)), "{refused}");
    fake.fault(0, Fault::BreakOff);
    let broken = client.get("/a").await.unwrap_err();
    assert!(matches!(&broken, Error::Rejected(_)), "a query changes nothing: {broken}");
}

#[tokio::test]
async fn only_what_is_safe_is_sent_again_after_a_broken_connection() {
    for fault in [Fault::BreakOff, Fault::Garble] {
        let fake = Fake::start(2).await;
        let client = fake.builder().build().unwrap();
        fake.fault(0, fault.clone());
        let unknown = client.put("/once", "").await.unwrap_err();
        assert!(matches!(&unknown, Error::Unknown(_)), "{unknown}");
        assert_eq!(fake.executed("/once"), 1, "{fault:?}");
        fake.fault(0, fault.clone());
        client.command(keyed(put("/keyed"), "k")).await.unwrap();
        assert_eq!(fake.executed("/keyed"), 2, "sent again with its key, which is the node's to see");
        fake.fault(0, fault.clone());
        client.get("/query").await.unwrap();
        fake.fault(0, fault.clone());
        let batch = vec![keyed(put("/both"), "a"), put("/both")];
        assert!(matches!(client.command_batch(batch).await, Err(Error::Unknown(_))), "one of them has no key");
    }
}

#[tokio::test]
async fn a_nodes_own_doubt_is_passed_on() {
    let fake = Fake::start(1).await;
    let client = fake.builder().build().unwrap();
    fake.fault(0, Fault::Refuse(504, "timeout", "unknown"));
    let unknown = client.put("/a", "").await.unwrap_err();
    assert!(matches!(&unknown, Error::Unknown(refusal) if refusal.kind == "timeout"), "{unknown}");
    fake.fault(0, Fault::Refuse(504, "timeout", "unknown"));
    client.command(keyed(put("/b"), "k")).await.unwrap();
}

#[tokio::test]
async fn a_doubt_isnt_settled_by_later_refusals() {
    let fake = Fake::start(1).await;
    let client = fake.builder().deadline(SOON).build().unwrap();
    fake.fault(0, Fault::BreakOff);
    (0..100).for_each(|_| fake.fault(0, Fault::Refuse(503, "overloaded", "rejected")));
    let unknown = client.command(keyed(put("/a"), "k")).await.unwrap_err();
    assert!(matches!(&unknown, Error::Unknown(_)), "{unknown}");
    assert!(unknown.to_string().contains("overloaded"), "{unknown}");
    let rejected = client.put("/b", "").await.unwrap_err();
    assert!(matches!(&rejected, Error::Rejected(_)), "{rejected}");
    fake.state().faults[0] = [Fault::BreakOff, Fault::Refuse(422, "idempotency-key-reused", "rejected")].into();
    let unknown = client.command(keyed(put("/c"), "k")).await.unwrap_err();
    assert!(matches!(&unknown, Error::Unknown(_)), "{unknown}");
}

#[tokio::test]
async fn any_node_may_be_down() {
    let fake = Fake::start(2).await;
    fake.lead(Some(1));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let urls = [vec![format!("http://{nobody}")], fake.urls()].concat();
    let client = raftlet_client::Client::new(urls).unwrap();
    client.put("/a", "").await.unwrap();
    client.query(request(Method::Get, "/b", ""), Consistency::Stale).await.unwrap();
    assert!(fake.state().heads.last().unwrap().starts_with("post /_/batch?consistency=stale "));
    let alone = raftlet_client::Client::builder([format!("http://{nobody}")]).deadline(SOON).build().unwrap();
    let rejected = alone.put("/c", "").await.unwrap_err();
    assert!(matches!(&rejected, Error::Rejected(refusal) if refusal.kind == "deadline"), "{rejected}");
}

#[tokio::test]
async fn a_node_that_hangs_is_left_when_another_one_leads() {
    let fake = Fake::start(3).await;
    let client = fake.builder().connect_timeout(Duration::from_millis(500)).build().unwrap();
    client.put("/a", "").await.unwrap();
    fake.state().hung.push(0);
    fake.lead(Some(1));
    let begun = Instant::now();
    client.command(keyed(put("/b"), "k")).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(fake.executed("/b"), 1);
}

#[tokio::test]
async fn a_node_that_is_only_slow_is_waited_for() {
    let fake = Fake::start(2).await;
    let client = fake.builder().deadline(Duration::from_secs(3)).build().unwrap();
    client.put("/a", "").await.unwrap();
    fake.fault(0, Fault::Hang);
    let slow = client.put("/b", "");
    let moved = async { fake.lead(Some(1)) };
    let (slow, ()) = tokio::join!(slow, moved);
    assert_eq!(kind(&slow.unwrap_err()), "deadline", "it still says how it is");
}

#[tokio::test]
async fn what_takes_long_holds_nobody_back() {
    let fake = Fake::start(1).await;
    let client = fake.builder().build().unwrap();
    fake.fault(0, Fault::Hang);
    let hanging = client.clone();
    let hanging = tokio::spawn(async move { join_all((0..3).map(|_| hanging.put("/hangs", ""))).await });
    while fake.state().seen.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(fake.state().seen[0].1.len(), 3);
    tokio::time::timeout(SOON, client.put("/a", "")).await.expect("one isn't held back by three").unwrap();
    hanging.abort();
}

#[tokio::test]
async fn the_deadline_says_what_is_known() {
    let fake = Fake::start(1).await;
    let client = fake.builder().deadline(SOON).connections(1).build().unwrap();
    fake.fault(0, Fault::Hang);
    let (first, second) = tokio::join!(client.put("/sent", ""), async {
        while fake.state().seen.is_empty() {
            tokio::task::yield_now().await;
        }
        client.put("/not-sent", "").await
    });
    let (first, second) = (first.unwrap_err(), second.unwrap_err());
    assert!(matches!(&first, Error::Unknown(_)) && kind(&first) == "deadline", "{first}");
    assert!(matches!(&second, Error::Rejected(_)) && kind(&second) == "deadline", "{second}");
    assert_eq!(fake.state().seen.len(), 1);
}

#[tokio::test]
async fn a_dropped_call_that_was_not_sent_never_is() {
    let fake = Fake::start(1).await;
    let client = fake.builder().connections(1).answer_timeout(SOON).build().unwrap();
    fake.fault(0, Fault::Hang);
    let hangs = client.put("/hangs", "");
    let drops = async {
        while fake.state().seen.is_empty() {
            tokio::task::yield_now().await;
        }
        let dropped = tokio::time::timeout(Duration::from_millis(20), client.put("/dropped", "")).await;
        assert!(dropped.is_err());
        client.put("/after", "").await.unwrap();
    };
    let (hung, ()) = tokio::join!(hangs, drops);
    assert!(matches!(hung, Err(Error::Unknown(_))));
    assert_eq!((fake.executed("/dropped"), fake.executed("/after")), (0, 1));
}

#[tokio::test]
async fn what_waits_is_bounded() {
    let fake = Fake::start(1).await;
    let client = fake.builder().waiting_bytes_max(10_000).build().unwrap();
    let results = join_all((0..20).map(|_| client.put("/a", vec![0; 900]))).await;
    let full = results.iter().filter_map(|result| result.as_ref().err()).filter(|error| kind(error) == "client-full");
    assert_eq!(full.count(), 10, "{results:?}");
    client.put("/large", vec![0; 20_000]).await.unwrap();
}

#[tokio::test]
async fn one_bad_request_spoils_no_other() {
    let fake = Fake::start(1).await;
    let client = fake.builder().build().unwrap();
    let paths = ["/a", "/bad", "/b", "/c"];
    let results = join_all(paths.map(|path| client.put(path, ""))).await;
    for (path, result) in paths.iter().zip(&results) {
        assert_eq!(result.is_err(), *path == "/bad", "{path}: {result:?}");
        assert_eq!(fake.executed(path), usize::from(*path != "/bad"));
    }
    assert!(matches!(&results[1], Err(Error::Rejected(refusal)) if refusal.kind == "bad-request"));
}

#[tokio::test]
async fn what_is_refused_by_itself_waits_again_by_itself() {
    let fake = Fake::start(1).await;
    let client = fake.builder().build().unwrap();
    fake.fault(0, Fault::RefuseFirst);
    let results = join_all(["/a", "/b"].map(|path| client.put(path, ""))).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!((fake.executed("/a"), fake.executed("/b")), (1, 1));
    fake.fault(0, Fault::RefuseFirst);
    let replies = client.command_batch(vec![put("/c"), put("/d")]).await.unwrap();
    assert!(matches!(replies.get(0), Err(Error::Rejected(refusal)) if refusal.kind == "batch-budget"));
    assert!(replies.get(1).is_ok());
}

#[tokio::test]
async fn a_reply_that_a_node_withholds_is_asked_for_again_with_the_key() {
    let fake = Fake::start(1).await;
    let client = fake.builder().deadline(SOON).build().unwrap();
    fake.fault(0, Fault::WithholdFirst);
    client.command(keyed(put("/a"), "k")).await.unwrap();
    assert_eq!((fake.executed("/a"), fake.state().seen.len()), (1, 2));
    fake.fault(0, Fault::WithholdFirst);
    let unknown = client.put("/b", "").await.unwrap_err();
    assert!(matches!(&unknown, Error::Unknown(_)) && kind(&unknown) == "replay-budget", "{unknown}");
    assert_eq!(fake.executed("/b"), 0, "without a key it isn't sent again");
    fake.fault(0, Fault::WithholdFirst);
    (0..100).for_each(|_| fake.fault(0, Fault::Refuse(503, "overloaded", "rejected")));
    let unknown = client.command(keyed(put("/c"), "k")).await.unwrap_err();
    assert!(matches!(&unknown, Error::Unknown(_)) && kind(&unknown) == "deadline", "the doubt stays: {unknown}");
}

#[tokio::test]
async fn without_batching_each_request_is_a_plain_one() {
    let fake = Fake::start(1).await;
    let client = fake.builder().batching(false).connections(4).build().unwrap();
    let results = join_all((0..20).map(|_| client.put("/kv/a", "v"))).await;
    assert!(results.iter().all(|result| result.as_ref().is_ok_and(|reply| reply.index() == 7)), "{results:?}");
    client.command(keyed(put("/kv/b"), "k,1")).await.unwrap();
    let seen = fake.state().seen.clone();
    assert!(seen.len() == 21 && seen.iter().all(|(_, paths)| paths.len() == 1 && paths[0].starts_with("/kv/")));
    assert!(fake.state().heads.last().unwrap().contains("idempotency-key: \"k,1\"\r\n"));
    fake.fault(0, Fault::Refuse(500, "module-trap", "rejected"));
    assert_eq!(kind(&client.put("/kv/c", "").await.unwrap_err()), "module-trap");
    fake.fault(0, Fault::BreakOff);
    assert!(matches!(client.put("/kv/d", "").await, Err(Error::Unknown(_))));
}

#[tokio::test]
async fn the_clients_own_keys_are_all_different() {
    let fake = Fake::start(1).await;
    for _ in 0..2 {
        let client = fake.builder().idempotency_keys(true).build().unwrap();
        join_all((0..50).map(|_| client.put("/a", ""))).await;
        fake.fault(0, Fault::BreakOff);
        client.put("/b", "").await.unwrap();
    }
    let state = fake.state();
    let keys = |path: &str| {
        let of = state.executed.iter().filter(|(executed, _)| executed == path);
        of.map(|(_, key)| key.clone().expect("a key")).collect::<Vec<_>>()
    };
    let distinct: std::collections::BTreeSet<_> = keys("/a").into_iter().collect();
    assert_eq!(distinct.len(), 100);
    let [first, again, ..] = &keys("/b")[..] else { panic!("sent twice") };
    assert_eq!(first, again, "a repetition has the same key");
}

#[tokio::test]
async fn what_cant_be_sent_is_not() {
    let fake = Fake::start(1).await;
    let client = fake.builder().build().unwrap();
    assert_eq!(kind(&client.put("kv", "").await.unwrap_err()), "invalid");
    assert_eq!(kind(&client.command(request(Method::Get, "/a", "")).await.unwrap_err()), "invalid");
    assert_eq!(kind(&client.query(put("/a"), Consistency::Linearizable).await.unwrap_err()), "invalid");
    assert_eq!(kind(&client.command_batch(Vec::new()).await.unwrap_err()), "invalid");
    let mixed = vec![put("/a"), request(Method::Get, "/a", "")];
    assert_eq!(kind(&client.command_batch(mixed).await.unwrap_err()), "invalid");
    assert!(fake.state().seen.is_empty());
    for wrong in [fake.builder().connections(0), fake.builder().bulk(65_537, 1), raftlet_client::Client::builder([""])]
    {
        assert!(matches!(wrong.build(), Err(Error::Invalid(_))));
    }
}
