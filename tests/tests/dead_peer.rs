//! A node that is down costs the others next to nothing, however long it stays away: few attempts to reach it, little
//! processor time, few lines in the log, whether clients write or not. When it is back it is caught up at once.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use raftlet_tests::cluster::ELECT_WITHIN;
use raftlet_tests::{Cluster, Response, seed, wait};

const OBSERVED: Duration = Duration::from_secs(3);
/// Until what was going on when the node died has failed.
const SETTLED: Duration = Duration::from_secs(1);
/// The leader has three links to it and tries each up to ten times a second; the other node asks now and then.
const DIALS_PER_SECOND_MAX: f64 = 40.0;
/// Of one core, both survivors together, in a dev build. Whoever spins takes a whole one.
const CORE_PERCENT_MAX: u32 = 30;
const LINES_PER_SECOND_MAX: f64 = 2.0;
/// A write every so often while it is watched under load.
const PACE: Duration = Duration::from_millis(50);
/// From the first answer of a node that is back until it has what it missed.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

#[test]
fn a_node_that_is_down_costs_little_and_is_caught_up_when_it_is_back() {
    let mut rng = seed::rng("dead_peer");
    let mut cluster = Cluster::start(3);
    for _ in 0..2 {
        let down = rng.u64(1..=3);
        let role = if cluster.leader() == down { "leader" } else { "follower" };
        cluster.kill(down);
        let leader = cluster.leader();
        println!("node {down}, a {role}, is down; node {leader} leads");
        sleep(SETTLED);
        watch(&cluster, leader, down, None, "nobody listens there");
        let door = Door::open(cluster.peer_address(down));
        watch(&cluster, leader, down, Some(&door), "connections end at once");
        drop(door);
        come_back(&mut cluster, leader, down);
    }
}

/// The survivors for a while, at rest and with writes.
fn watch(cluster: &Cluster, leader: u64, down: u64, door: Option<&Door>, what: &str) {
    for writes in [false, true] {
        let survivors = || cluster.ids().filter(|id| *id != down);
        let cpu = || survivors().map(|id| cluster.usage(id).cpu).sum::<Duration>();
        let lines = || survivors().map(|id| cluster.log(id).lines().count()).sum::<usize>();
        let dials = || door.map_or(0, |door| door.came.load(Ordering::Relaxed));
        let (cpu_before, lines_before, dials_before, began) = (cpu(), lines(), dials(), Instant::now());
        while began.elapsed() < OBSERVED {
            if writes {
                write(cluster, leader);
            }
            sleep(PACE);
        }
        let seconds = began.elapsed().as_secs_f64();
        let (used, said, came) = (cpu() - cpu_before, lines() - lines_before, dials() - dials_before);
        println!("    {what}, writes: {writes}: {used:?} of CPU, {said} lines, {came} dials in {seconds:.1} s");
        assert!(used < OBSERVED * CORE_PERCENT_MAX / 100, "two nodes used {used:?} in {seconds:.1} s");
        assert!((said as f64) < LINES_PER_SECOND_MAX * seconds, "{said} lines in {seconds:.1} s");
        assert!((came as f64) < DIALS_PER_SECOND_MAX * seconds, "{came} dials in {seconds:.1} s");
        if door.is_some() {
            assert!(came > 0, "nobody tries to reach it any more");
        }
    }
}

fn write(cluster: &Cluster, leader: u64) {
    let reply = cluster.client(leader).answer_within(ANSWER_WITHIN).put("/kv/dead-peer", b"x");
    assert!(reply.as_ref().is_ok_and(Response::is_success), "two of three acknowledge: {reply:?}");
}

fn come_back(cluster: &mut Cluster, leader: u64, down: u64) {
    cluster.restart(down);
    let first = wait::until("the node answers", ELECT_WITHIN, || cluster.status(down).map(|_| Instant::now()));
    let goal = cluster.status(leader).and_then(|s| s.applied_index).expect("the leader has applied something");
    wait::until("the node has what it missed", CAUGHT_UP_WITHIN, || {
        (cluster.status(down)?.applied_index? >= goal).then_some(())
    });
    println!("    caught up {:?} after its first answer", first.elapsed());
    cluster.wait_ready(down);
}

/// Takes connections at the address of a node that is down, and closes each when the first bytes have come.
struct Door {
    came: Arc<AtomicU64>,
    shut: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    fn open(address: SocketAddr) -> Door {
        const LOOKED_AT_EVERY: Duration = Duration::from_millis(1);
        let listener = TcpListener::bind(address).expect("the node is down");
        listener.set_nonblocking(true).expect("a listener that is polled");
        let (came, shut) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (came.clone(), shut.clone());
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        count.fetch_add(1, Ordering::Relaxed);
                        // Read first, so that its end is an end and not a reset. What is in it is no matter.
                        let _ = stream.set_nonblocking(false);
                        let _ = stream.set_read_timeout(Some(ANSWER_WITHIN));
                        let _ = stream.read(&mut [0; 1024]);
                    }
                    Err(_) => sleep(LOOKED_AT_EVERY),
                }
            }
        });
        Door { came, shut, thread: Some(thread) }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shut.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
