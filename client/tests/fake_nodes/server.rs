//! Nodes that are none: they answer what a test wants, and write down what they were asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use raftlet_client::{Builder, Client};
use raftlet_machine::{Batch, Header, Replies, Reply};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What a node does with its next request for modules, instead of answering it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The problem document: status, kind, outcome.
    Refuse(u16, &'static str, &'static str),
    /// The request is executed, and the connection ends before the answer.
    BreakOff,
    /// Nothing comes, and the connection stays.
    Hang,
    /// The first request of the batch is refused by itself.
    RefuseFirst,
    /// The first request of the batch has happened before, and its reply isn't given.
    WithholdFirst,
    /// An answer that can't be read.
    Garble,
}

#[derive(Debug, Default)]
pub struct State {
    /// Node by position, if there is a leader.
    pub leader: Option<usize>,
    pub term: u64,
    pub faults: Vec<VecDeque<Fault>>,
    /// These nodes never answer anything.
    pub hung: Vec<usize>,
    /// Node and paths of each batch, or of each plain request.
    pub seen: Vec<(usize, Vec<String>)>,
    /// Heads of requests for modules.
    pub heads: Vec<String>,
    /// Paths whose commands were executed, with their keys.
    pub executed: Vec<(String, Option<String>)>,
}

#[derive(Debug, Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    urls: Vec<String>,
}

impl Fake {
    /// So many nodes; the first one leads.
    pub async fn start(nodes: usize) -> Fake {
        let faults = vec![VecDeque::new(); nodes];
        let state = Arc::new(Mutex::new(State { leader: Some(0), term: 1, faults, ..State::default() }));
        let mut urls = Vec::new();
        for node in 0..nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            urls.push(format!("http://{}", listener.local_addr().unwrap()));
            let state = state.clone();
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(serve(node, stream, state.clone()));
                }
            });
        }
        Fake { state, urls }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn fault(&self, node: usize, fault: Fault) {
        self.state().faults[node].push_back(fault);
    }

    pub fn lead(&self, node: Option<usize>) {
        let mut state = self.state();
        (state.leader, state.term) = (node, state.term + 1);
    }

    pub fn urls(&self) -> Vec<String> {
        self.urls.clone()
    }

    pub fn builder(&self) -> Builder {
        Client::builder(self.urls())
    }

    pub fn executed(&self, path: &str) -> usize {
        self.state().executed.iter().filter(|(executed, _)| executed == path).count()
    }
}

async fn serve(node: usize, mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut bytes = Vec::new();
    loop {
        let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
            match stream.read_buf(&mut bytes).await {
                Ok(1..) => continue,
                _ => return,
            }
        };
        let head = String::from_utf8(bytes[..at].to_vec()).unwrap().to_lowercase();
        let length = head
            .split("content-length: ")
            .nth(1)
            .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse::<usize>().unwrap());
        let end = at + 4 + length;
        while bytes.len() < end {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body = bytes[at + 4..end].to_vec();
        bytes.drain(..end);
        let response = answer(node, &head, &body, &state);
        match response {
            Some(response) if response.is_empty() => return,
            Some(response) => stream.write_all(&response).await.unwrap(),
            None => std::future::pending().await,
        }
    }
}

/// The response; empty: the connection ends; None: it hangs.
fn answer(node: usize, head: &str, body: &[u8], state: &Mutex<State>) -> Option<Vec<u8>> {
    let mut state = state.lock().unwrap();
    if state.hung.contains(&node) {
        return None;
    }
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    if target == "/_/status" {
        let role = if state.leader == Some(node) { "leader" } else { "follower" };
        let leader = state.leader.map_or("null".to_owned(), |leader| (leader + 1).to_string());
        let status = format!(
            r#"{{"node_id":{},"role":"{role}","leader_id":{leader},"term":{},"quarantine":null,"hold":null}}"#,
            node + 1,
            state.term
        );
        return Some(response(200, "application/json", "", status.as_bytes()));
    }
    let is_bulk = target.starts_with("/_/batch");
    let key = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
    let requests: Vec<(String, Option<String>, bool)> = if is_bulk {
        let batch = Batch::access(body).expect("a valid archive");
        let key_of = |headers: &[raftlet_machine::ArchivedHeader]| {
            headers.iter().find(|header| header.name == "idempotency-key").map(|header| key(&header.value))
        };
        let one = |request: &raftlet_machine::ArchivedRequest| {
            use raftlet_machine::ArchivedMethod::{Get, Head};
            (request.path.to_string(), key_of(&request.headers), matches!(request.method, Get | Head))
        };
        batch.commands.iter().map(one).collect()
    } else {
        let key = head.split("idempotency-key: ").nth(1).map(|rest| rest.split("\r\n").next().unwrap().to_owned());
        vec![(target.to_owned(), key, method == "get")]
    };
    state.heads.push(head.to_owned());
    state.seen.push((node, requests.iter().map(|(path, ..)| path.clone()).collect()));
    assert!(requests.iter().all(|(.., query)| *query == requests[0].2), "commands and queries are mixed");
    let fault = state.faults[node].pop_front();
    if let Some(Fault::Refuse(status, kind, outcome)) = fault {
        return Some(response(status, "application/problem+json", "", problem(kind, outcome).as_bytes()));
    }
    if requests.iter().any(|(path, ..)| path == "/bad") {
        let problem = problem("bad-request", "rejected");
        return Some(response(400, "application/problem+json", "", problem.as_bytes()));
    }
    if fault == Some(Fault::Hang) {
        return None;
    }
    let first = match fault {
        Some(Fault::RefuseFirst) => Some((503, "batch-budget", "rejected")),
        Some(Fault::WithholdFirst) => Some((504, "replay-budget", "unknown")),
        _ => None,
    };
    let refused = usize::from(first.is_some());
    let executed = requests.iter().skip(refused).map(|(path, key, _)| (path.clone(), key.clone()));
    state.executed.extend(executed);
    match fault {
        Some(Fault::BreakOff) => return Some(Vec::new()),
        Some(Fault::Garble) => return Some(response(200, "application/vnd.raftlet.replies", "", b"oh")),
        _ => {}
    }
    let place = format!("raftlet-index: 7\r\nraftlet-term: {}\r\n", state.term);
    if !is_bulk {
        return Some(response(201, "text/plain", &format!("{place}etag: \"7\"\r\n"), requests[0].0.as_bytes()));
    }
    let reply = |(position, (path, ..)): (usize, &(String, Option<String>, bool))| {
        if let Some((status, kind, outcome)) = first.filter(|_| position == 0) {
            let body = problem(kind, outcome).into_bytes();
            return Reply { status, content_type: "application/problem+json".into(), headers: Vec::new(), body };
        }
        let headers = vec![Header { name: "etag".into(), value: b"\"7\"".to_vec() }];
        Reply { status: 201, content_type: "text/plain".into(), headers, body: path.as_bytes().to_vec() }
    };
    let replies = Replies { replies: requests.iter().enumerate().map(reply).collect() };
    Some(response(200, "application/vnd.raftlet.replies", &place, &replies.to_bytes()))
}

fn problem(kind: &str, outcome: &str) -> String {
    format!(r#"{{"type":"/_/problems/{kind}","title":"t","status":1,"detail":"of the test","outcome":"{outcome}"}}"#)
}

fn response(status: u16, content_type: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\n{headers}content-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}
