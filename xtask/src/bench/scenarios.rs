//! What is measured. A scenario is a question; its runs are measured one after the other, in each round.

/// Whom a run measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// So many nodes with these settings.
    Raftlet {
        nodes: u64,
        settings: &'static [&'static str],
    },
    Etcd,
}

/// One call of the client program.
pub struct Run {
    pub label: String,
    pub side: Side,
    pub args: Vec<String>,
    /// None: the arguments say how many operations.
    pub seconds: Option<u64>,
    /// How often it is measured, one time after the other, in each round.
    pub windows: usize,
    /// Of the charts: the line that it is on, and where.
    pub line: &'static str,
    pub clients: u32,
}

pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub runs: Vec<Run>,
    /// Long ones aren't repeated so often.
    pub rounds_max: usize,
}

pub const THREE: Side = Side::Raftlet { nodes: 3, settings: &[] };
const ONE: Side = Side::Raftlet { nodes: 1, settings: &[] };

/// How long a run takes where time decides.
const SECONDS: u64 = 5;
pub const CLIENTS: [u32; 6] = [1, 10, 50, 200, 500, 1_000];

/// How the server gathers commands, by the settings of its batcher. The clients send one command a request.
const BATCHING: [(&str, &[&str]); 5] = [
    ("adaptive", &[]),
    ("off", &["--batching", "off"]),
    ("fixed, 10", &["--batching", "fixed", "--batch-max-ops", "10", "--batch-max-delay", "2ms"]),
    ("fixed, 50", &["--batching", "fixed", "--batch-max-ops", "50", "--batch-max-delay", "2ms"]),
    ("fixed, 100", &["--batching", "fixed", "--batch-max-ops", "100", "--batch-max-delay", "2ms"]),
];

fn run(label: &str, side: Side, line: &'static str, clients: u32, args: &str) -> Run {
    let mut args: Vec<String> = args.split_whitespace().map(String::from).collect();
    args.extend(["--clients".into(), clients.to_string()]);
    let label = format!("{label}, {clients} clients");
    Run { label, side, args, seconds: Some(SECONDS), windows: 1, line, clients }
}

fn once(run: Run) -> Run {
    Run { seconds: None, ..run }
}

pub fn all() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "seed",
            about: "50 clients, 50,000 writes of 100 bytes",
            runs: vec![
                once(run("Raftlet", THREE, "Raftlet", 50, "--ops 50000")),
                once(run("Raftlet, a connection each", THREE, "Raftlet, direct", 50, "--ops 50000 --client direct")),
                once(run("etcd", Side::Etcd, "etcd", 50, "--ops 50000")),
            ],
            rounds_max: usize::MAX,
        },
        Scenario {
            name: "sustained",
            about: "the same for 60 s",
            runs: vec![
                Run { seconds: Some(60), ..run("Raftlet", THREE, "Raftlet", 50, "") },
                Run { seconds: Some(60), ..run("etcd", Side::Etcd, "etcd", 50, "") },
            ],
            rounds_max: usize::MAX,
        },
        curve("writes", "writes of 100 bytes, 1 to 1,000 clients", ""),
        curve("reads", "linearizable reads, 1 to 1,000 clients", "--read-percent 100"),
        Scenario {
            name: "mixed",
            about: "90 % linearizable reads, 10 % writes",
            runs: [50, 1_000]
                .into_iter()
                .flat_map(|clients| {
                    [
                        run("Raftlet", THREE, "Raftlet", clients, "--read-percent 90"),
                        run("etcd", Side::Etcd, "etcd", clients, "--read-percent 90"),
                    ]
                })
                .collect(),
            rounds_max: usize::MAX,
        },
        Scenario {
            name: "batching",
            about: "how the server gathers commands: adaptive, off, fixed sizes with 2 ms; one command a request",
            runs: BATCHING
                .into_iter()
                .flat_map(|(name, settings)| {
                    [1, 10, 50, 200, 1_000].map(|clients| {
                        run(name, Side::Raftlet { nodes: 3, settings }, name, clients, "--client direct")
                    })
                })
                .collect(),
            rounds_max: usize::MAX,
        },
        Scenario {
            name: "bulk",
            about: "requests of 1,000 writes of 16 bytes",
            runs: vec![
                run("three nodes", THREE, "bulk", 4, "--bulk 1000 --value-bytes 16"),
                run("one node", ONE, "bulk, one node", 4, "--bulk 1000 --value-bytes 16"),
            ],
            rounds_max: usize::MAX,
        },
        Scenario {
            name: "overload",
            about: "twice what it can take, for 30 s, three times: what is offered beyond that is refused; 100,000 keys",
            runs: vec![
                run("the peak", THREE, "peak", 1_000, "--keys 100000"),
                // `TWICE` is replaced with twice what the first run did.
                Run { seconds: Some(30), ..run("twice that", THREE, "overload", 1_000, "--keys 100000 --rate TWICE") },
                Run { seconds: Some(30), ..run("again", THREE, "overload", 1_000, "--keys 100000 --rate TWICE") },
                Run { seconds: Some(30), ..run("and again", THREE, "overload", 1_000, "--keys 100000 --rate TWICE") },
            ],
            rounds_max: 1,
        },
        Scenario {
            name: "state",
            about: "50 clients on a state of 10 thousand, 1 million and 10 million keys, nine times each",
            runs: [("10 thousand keys", "10000"), ("1 million keys", "990000"), ("10 million keys", "9000000")]
                .into_iter()
                .flat_map(|(label, ops)| {
                    let fill = format!("--bulk 1000 --value-bytes 16 --ops {ops}");
                    [
                        once(run(&format!("filling up to {label}"), THREE, "fill", 4, &fill)),
                        // Some windows have a snapshot in them and some have not.
                        Run { windows: 9, ..run(label, THREE, "Raftlet", 50, "--value-bytes 16") },
                    ]
                })
                .collect(),
            rounds_max: 1,
        },
    ]
}

/// The same operations from few clients to many, for both.
fn curve(name: &'static str, about: &'static str, args: &str) -> Scenario {
    let runs = CLIENTS.into_iter().flat_map(|clients| {
        [
            run("Raftlet", THREE, "Raftlet", clients, args),
            run("Raftlet, a connection each", THREE, "Raftlet, direct", clients, &format!("{args} --client direct")),
            run("etcd", Side::Etcd, "etcd", clients, args),
        ]
    });
    Scenario { name, about, runs: runs.collect(), rounds_max: usize::MAX }
}
