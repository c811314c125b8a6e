//! Commands with an `Idempotency-Key`: sent until they are answered, and what must be the same of all their answers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::http::{Client, Failure, Response};

pub const KEY: &str = "idempotency-key";
pub const REPLAYED: &str = "idempotent-replayed";
/// For a command to be answered through an election, with repetitions.
pub const INSIST: Duration = Duration::from_secs(60);

/// Status, headers and body.
pub type Essence = (u16, Vec<(String, String)>, Vec<u8>);

/// What must be the same each time. What is left out tells of the entry and the moment, not of the command.
pub fn essence(response: &Response) -> Essence {
    let of_the_moment = ["date", "raftlet-index", "raftlet-term", REPLAYED, "retry-after"];
    let headers = response.headers.iter().filter(|(name, _)| !of_the_moment.contains(&name.as_str()));
    (response.status, headers.cloned().collect(), response.body.clone())
}

/// Sends the same request to one node after the other until one knows the answer.
#[track_caller]
pub fn insist(nodes: &[SocketAddr], first: usize, method: &str, target: &str, key: &str, body: &[u8]) -> Response {
    let deadline = Instant::now() + INSIST;
    for node in (0..nodes.len()).cycle().skip(first % nodes.len()) {
        let mut client = Client::new(nodes[node]).answer_within(Duration::from_secs(12));
        let last = match client.request(method, target, &[(KEY, key)], body) {
            Ok(response) if !matches!(response.status, 503 | 504) => return response,
            Ok(refused) => refused.to_string(),
            Err(Failure::NotSent(e) | Failure::Broken(e)) => e.to_string(),
        };
        assert!(Instant::now() < deadline, "{method} {target} was never answered; at last: {last}");
        std::thread::sleep(Duration::from_millis(20));
    }
    unreachable!("the cycle doesn't end");
}
