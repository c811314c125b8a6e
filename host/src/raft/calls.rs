//! Small questions to peers, each on a connection that is kept for the next one. Retries nothing: who asks does.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::network::message::{Answer, Call, Message};
use super::network::{FrameReader, FrameWriter, Outgoing, Peers};
use super::types::NodeId;

/// For one question, the handshake included. A node that is too busy for longer is as good as down for now.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Calls {
    peers: Arc<Peers>,
    open: Mutex<BTreeMap<NodeId, (FrameReader, FrameWriter)>>,
}

impl Calls {
    pub fn new(peers: Arc<Peers>) -> Self {
        Calls { peers, open: Mutex::default() }
    }

    /// # Errors
    /// The peer can't be reached, or doesn't answer in a second.
    pub async fn call(&self, node: NodeId, call: Call) -> io::Result<Answer> {
        // Taken out: a call that is cut off drops it, and its answer can't be taken for another's.
        let kept = self.open.lock().expect("no code panics under this lock").remove(&node);
        let exchange = async {
            let (mut reader, mut writer) = match kept {
                Some(open) => open,
                None => self.dial(node).await?,
            };
            let mut out = Outgoing::default();
            Message::Call(call).push_to(&mut out);
            writer.write(&mut out).await?;
            match Message::read(reader.next().await?)? {
                Message::Answer(answer) => Ok((answer, (reader, writer))),
                _ => Err(io::Error::other("a call was answered by another message")),
            }
        };
        let (answer, open) =
            tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.map_err(|_| io::ErrorKind::TimedOut)??;
        self.open.lock().expect("no code panics under this lock").insert(node, open);
        Ok(answer)
    }

    async fn dial(&self, node: NodeId) -> io::Result<(FrameReader, FrameWriter)> {
        let member = self.peers.member.get().and_then(|lookup| lookup(node));
        let address = self.peers.addresses.get(&node).cloned().or(member.as_ref().map(|m| m.address.clone()));
        let address = address.ok_or_else(|| io::Error::other(format!("node {node} has no address")))?;
        let dialled = self.peers.dial(node, &address, member.map(|m| m.identity)).await;
        dialled.map(|(reader, writer, _)| (reader, writer)).map_err(io::Error::other)
    }
}
