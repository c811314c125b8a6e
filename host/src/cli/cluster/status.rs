//! `raftlet cluster status`: asks one node who the members are, then each of them. Shows what it was told and changes
//! nothing.

use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::ports::PEER_OFFSET;
use crate::cli::http::Url;
use crate::cli::node_status::{Member, NodeStatus};
use crate::cli::out::{say, table};

const TIMEOUT: Duration = Duration::from_secs(3);
/// Hexadecimal digits of a digest that are shown in the table.
const DIGEST_DIGITS: usize = 12;

/// Show the members of a cluster and how far each of them is
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  raftlet cluster status --url http://127.0.0.1:8081 --json")]
pub struct StatusArgs {
    /// Any node of the cluster
    #[arg(long, env = "RAFTLET_URL", default_value = "http://127.0.0.1:8080")]
    pub url: Url,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A member and what it answered itself; an error says why it didn't.
struct Seen {
    member: Member,
    url: Option<Url>,
    answer: Result<NodeStatus, String>,
}

pub async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let asked = NodeStatus::fetch(&args.url, TIMEOUT).await?;
    let seen = join_all(asked.members.iter().map(|member| see(member, &asked, &args.url))).await;
    if args.json {
        say(to_json(&asked, &seen));
    } else {
        say(to_table(&asked, &seen));
    }
    Ok(())
}

async fn see(member: &Member, asked: &NodeStatus, asked_url: &Url) -> Seen {
    let member = member.clone();
    if member.id == asked.node_id {
        return Seen { member, url: Some(asked_url.clone()), answer: Ok(asked.clone()) };
    }
    let Some(url) = client_url(&member) else {
        return Seen { member, url: None, answer: Err("client URL unknown".into()) };
    };
    match NodeStatus::fetch(&url, TIMEOUT).await {
        Ok(status) if status.node_id == member.id => Seen { member, url: Some(url), answer: Ok(status) },
        // Something else listens where the local cluster's rule says; that tells nothing about the member.
        Ok(_) => Seen { member, url: None, answer: Err("client URL unknown".into()) },
        Err(error) => Seen { member, url: Some(url), answer: Err(format!("{error:#}")) },
    }
}

/// Members are known by their peer addresses only. A local cluster's client ports are a fixed distance below.
fn client_url(member: &Member) -> Option<Url> {
    let (host, port) = member.peer_address.rsplit_once(':')?;
    let port = port.parse::<u16>().ok()?.checked_sub(PEER_OFFSET).filter(|port| *port > 0)?;
    (!host.is_empty()).then(|| Url::new(host, port))
}

fn to_table(asked: &NodeStatus, seen: &[Seen]) -> String {
    let number = |n: Option<u64>| n.map_or_else(|| "-".into(), |n| n.to_string());
    let short = |digest: &str| digest.chars().take(DIGEST_DIGITS).collect::<String>();
    let rows = seen.iter().map(|Seen { member, url, answer }| {
        let id = member.id.to_string();
        let url = url.as_ref().map_or_else(|| format!("(peers: {})", member.peer_address), Url::to_string);
        match answer {
            Ok(s) => {
                let module = s.module.as_ref();
                let module =
                    module.map_or_else(|| "-".into(), |m| format!("{} {} {}", m.name, m.version, short(&m.digest)));
                let digest = s.state_digest.as_deref().map_or_else(|| "-".into(), short);
                let (log, applied) = (number(s.last_log_index), number(s.applied_index));
                let admin = s.admin().unwrap_or("-").to_string();
                [id, url, s.role.clone(), s.term.to_string(), log, applied, module, digest, admin]
            }
            Err(_) => {
                let leads = asked.leader_id == Some(member.id);
                let role = if leads { "no answer (leader)" } else { "no answer" };
                let blank = || "-".to_string();
                [id, url, role.into(), blank(), blank(), blank(), blank(), blank(), blank()]
            }
        }
    });
    let mut text = table(["node", "URL", "role", "term", "log", "applied", "module", "state digest", "admin"], rows);
    if asked.leader_id.is_none() {
        text.push_str(&format!("\nNode {} knows no leader.", asked.node_id));
    }
    text
}

fn to_json(asked: &NodeStatus, seen: &[Seen]) -> Value {
    let nodes: Vec<Value> = seen
        .iter()
        .map(|Seen { member, url, answer }| {
            let url = url.as_ref().map(Url::to_string);
            match answer {
                Ok(status) => json!({ "node_id": member.id, "url": url, "status": status }),
                Err(error) => json!({ "node_id": member.id, "url": url, "error": error }),
            }
        })
        .collect();
    json!({ "leader_id": asked.leader_id, "term": asked.term, "members": asked.members, "nodes": nodes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::node_status::tests::status;

    fn seen() -> (NodeStatus, Vec<Seen>) {
        let asked = status(1, Some(2), 7);
        let see = |n: usize, answer| {
            let member = asked.members[n].clone();
            Seen { url: client_url(&member), member, answer }
        };
        let nodes = vec![see(0, Ok(asked.clone())), see(1, Ok(status(2, Some(2), 7))), see(2, Err("refused".into()))];
        (asked, nodes)
    }

    #[test]
    fn the_table_shows_each_member() {
        let (asked, seen) = seen();
        let text = to_table(&asked, &seen);
        let line = |id: &str| {
            let all: Vec<_> = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
            all.into_iter().find(|l| l.starts_with(id)).unwrap_or_else(|| panic!("no row {id} in\n{text}"))
        };
        assert_eq!(line("1 "), "1 http://127.0.0.1:8080 follower 7 12 11 kv 0.1.0 abababababab cdcdcdcdcdcd -");
        assert!(line("2 ").contains("http://127.0.0.1:8081 leader 7"));
        assert_eq!(line("3 "), "3 http://127.0.0.1:8082 no answer - - - - - -");
        assert!(!text.contains("knows no leader"));
        let headless = status(1, None, 7);
        assert!(to_table(&headless, &seen).ends_with("Node 1 knows no leader."));
    }

    #[test]
    fn the_object_says_the_same_to_machines() {
        let (asked, seen) = seen();
        let object = to_json(&asked, &seen);
        assert_eq!(object["leader_id"], 2);
        assert_eq!(object["nodes"][1]["status"]["role"], "leader");
        assert_eq!(object["nodes"][2], json!({ "node_id": 3, "url": "http://127.0.0.1:8082", "error": "refused" }));
    }

    #[test]
    fn a_client_url_is_a_thousand_below_or_unknown() {
        let url = |address: &str| {
            let member = Member { id: 1, peer_address: address.into(), role: "voter".into(), more: Default::default() };
            client_url(&member).map(|u| u.to_string())
        };
        assert_eq!(url("[::1]:9080"), Some("http://[::1]:8080".into()));
        for address in ["host:1000", "host:80", "host", ":9080", "host:x"] {
            assert_eq!(url(address), None, "{address}");
        }
    }
}
