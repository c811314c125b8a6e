//! The client crate against real processes: what it says of each command is what became of it, whatever happens to the
//! leader meanwhile.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use raftlet_client::{Client, Consistency, Error, Method, Request, keyed, request};
use raftlet_tests::cluster::Options;
use raftlet_tests::{Cluster, paths, wait};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const WRITERS: u64 = 100;
/// Longer than an election on a machine that is busy with other tests.
const DEADLINE: Duration = Duration::from_secs(60);
const WITHIN: Duration = Duration::from_secs(60);

fn urls(cluster: &Cluster) -> Vec<String> {
    cluster.addresses().iter().map(|address| format!("http://{address}")).collect()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Lets `write` go on in so many tasks until it was stopped; `count` is told of each one that was acknowledged.
fn load<W, F>(runtime: &Runtime, stop: &Arc<AtomicBool>, count: &Arc<AtomicU64>, write: W) -> JoinSet<Vec<(u64, Fate)>>
where
    W: Fn(u64) -> F + Clone + Send + 'static,
    F: Future<Output = Fate> + Send,
{
    let _inside = runtime.enter();
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let (stop, count, write) = (stop.clone(), count.clone(), write.clone());
        tasks.spawn(async move {
            let mut fates = Vec::new();
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let id = number * WRITERS + writer;
                let fate = write(id).await;
                count.fetch_add(u64::from(fate == Fate::Acknowledged), Ordering::Relaxed);
                fates.push((id, fate));
            }
            fates
        });
    }
    tasks
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    Rejected,
    Unknown,
}

impl Fate {
    fn of(result: Result<raftlet_client::Reply, Error>) -> Fate {
        match result {
            Ok(reply) if reply.is_success() => Fate::Acknowledged,
            Ok(reply) => panic!("the module said {}", reply.status()),
            Err(Error::Rejected(_)) => Fate::Rejected,
            Err(Error::Unknown(_)) => Fate::Unknown,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Kills the leader twice under load; what was acknowledged goes on rising after each.
fn kill_leaders(cluster: &mut Cluster, acknowledged: &AtomicU64) {
    for _ in 0..2 {
        let rises = |what: &str| {
            let before = acknowledged.load(Ordering::Relaxed);
            wait::until(what, WITHIN, || (acknowledged.load(Ordering::Relaxed) > before + 2 * WRITERS).then_some(()));
        };
        rises("writes are acknowledged");
        let leader = cluster.leader();
        cluster.kill(leader);
        rises("writes are acknowledged without the old leader");
        cluster.restart(leader);
    }
}

#[test]
fn what_was_acknowledged_is_there_and_what_was_rejected_is_not() {
    let mut cluster = Cluster::start(3);
    let runtime = runtime();
    let client = runtime.block_on(async { Client::builder(urls(&cluster)).deadline(DEADLINE).build() }).unwrap();
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writing = client.clone();
    let tasks = load(&runtime, &stop, &acknowledged, move |id| {
        let client = writing.clone();
        async move { Fate::of(client.put(&format!("/kv/{id}"), id.to_string()).await) }
    });
    kill_leaders(&mut cluster, &acknowledged);
    stop.store(true, Ordering::Relaxed);
    let fates: Vec<(u64, Fate)> = runtime.block_on(tasks.join_all()).into_iter().flatten().collect();
    let figures = client.figures();
    println!(
        "{} writes, {} unknown; {figures:?}",
        fates.len(),
        fates.iter().filter(|(_, f)| *f == Fate::Unknown).count()
    );
    assert!(figures.exchanges < figures.requests / 4, "callers that wait together are sent together: {figures:?}");
    runtime.block_on(async {
        for chunk in fates.chunks(1000) {
            let queries = chunk.iter().map(|(id, _)| request(Method::Get, &format!("/kv/{id}"), "")).collect();
            let replies = client.query_batch(queries, Consistency::Linearizable).await.expect("an answer");
            for ((id, fate), reply) in chunk.iter().zip(replies.iter()) {
                let reply = reply.expect("an answer");
                let found = reply.status() == 200;
                assert!(!found || reply.body() == id.to_string(), "{id}: {:?}", reply.body());
                match fate {
                    Fate::Acknowledged => assert!(found, "{id} was acknowledged and is lost"),
                    Fate::Rejected => assert!(!found, "{id} was rejected and happened"),
                    Fate::Unknown => {}
                }
            }
        }
    });
    cluster.restart_all();
    cluster.wait_converged();
}

#[test]
fn with_keys_each_command_happens_once() {
    let module: Option<PathBuf> = Some(paths::guest("counter"));
    let mut cluster = Cluster::start_with(3, Options { module, ..Options::default() });
    let runtime = runtime();
    let builder = Client::builder(urls(&cluster)).deadline(DEADLINE).idempotency_keys(true);
    let client = runtime.block_on(async { builder.build() }).unwrap();
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let counting = client.clone();
    let tasks = load(&runtime, &stop, &acknowledged, move |_| {
        let client = counting.clone();
        async move { Fate::of(client.command(request(Method::Post, "/counter/all", "")).await) }
    });
    kill_leaders(&mut cluster, &acknowledged);
    stop.store(true, Ordering::Relaxed);
    let fates: Vec<(u64, Fate)> = runtime.block_on(tasks.join_all()).into_iter().flatten().collect();
    let lost = fates.iter().filter(|(_, fate)| *fate != Fate::Acknowledged).count();
    assert_eq!(lost, 0, "with a key nothing stays unknown");
    let total = runtime.block_on(client.get("/counter/all")).expect("an answer").body();
    let total: u64 = std::str::from_utf8(&total).expect("text").trim().parse().expect("a number");
    println!("{total} commands; {:?}", client.figures());
    assert_eq!(total, acknowledged.load(Ordering::Relaxed));
    assert!(client.figures().again > 0, "a leader died: something was sent again");
    cluster.restart_all();
    cluster.wait_converged();
}

#[test]
fn all_forms_give_the_same_replies() {
    let cluster = Cluster::start(3);
    let runtime = runtime();
    runtime.block_on(async {
        for batching in [true, false] {
            let client = Client::builder(urls(&cluster)).batching(batching).deadline(DEADLINE).build().unwrap();
            let path = format!("/kv/forms-{batching}");
            let put = |body: &str| keyed(request(Method::Put, &path, body), &format!("key-{batching}"));
            let first = client.command(put("one")).await.unwrap();
            assert_eq!((first.status(), first.is_replayed()), (201, false), "{first:?}");
            let etag = first.header("etag").expect("an ETag").to_vec();
            let again = client.command(put("one")).await.unwrap();
            assert_eq!((again.status(), again.is_replayed(), again.header("etag")), (201, true, Some(&etag[..])));
            assert!(again.index() > first.index() && again.term() >= first.term() && first.term() > 0);
            let reused = client.command(put("two")).await.unwrap_err();
            assert!(matches!(&reused, Error::Rejected(why) if why.kind == "idempotency-key-reused"), "{reused}");
            let read = client.get(&path).await.unwrap();
            assert_eq!((read.status(), read.body().as_ref(), read.header("etag")), (200, &b"one"[..], Some(&etag[..])));
            // Any node may answer it, perhaps one that is behind.
            let stale = || client.query(request(Method::Get, &path, ""), Consistency::Stale);
            while stale().await.unwrap().status() != 200 {}
            let head = client.query(request(Method::Head, &path, ""), Consistency::Linearizable).await.unwrap();
            assert_eq!(head.status(), 200);
            let missing: Request = request(Method::Delete, "/kv/nothing", "");
            assert_eq!(client.command(missing).await.unwrap().status(), 404);
        }
    });
}
