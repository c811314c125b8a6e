//! The answering side of peer connections: hyper for the upgrade, then frames. One connection carries any message;
//! appends go through one pipeline per connection and are answered in their order. Next: openraft, which drives
//! `log/` and `state_machine/`.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use openraft::EntryPayload;
use openraft::raft::AppendEntriesRequest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::Raft;
use super::super::audit::Audit;
use super::super::clock::now_ms;
use super::super::proposals::Proposals;
use super::super::types::{Entry, Kind, TypeConfig};
use super::frame::{FrameReader, FrameWriter, Outgoing};
use super::handshake::{Caller, Peers, split};
use super::install::Installer;
use super::interest::Interests;
use super::message::{Answer, Appended, Call, Message};
use super::snapshots::Serving;
use crate::log::Space;

/// Appends of one connection that wait for openraft's core. Beyond, the connection isn't read.
const APPENDS_WAITING_MAX: usize = 64;
/// Messages that wait to be written to one peer.
const OUTGOING_MAX: usize = 1024;
/// A caller that opens a connection and says nothing is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// After an accept error (no file descriptors left, most often).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Entries that come when the disk is nearly full wait this long for room; then the connection ends. Long, so that the
/// leader doesn't send them again and again, but under its patience (`client.rs`).
const ROOM_WAIT: Duration = Duration::from_secs(4);

/// What a peer's connection may reach.
pub struct Served {
    pub peers: Arc<Peers>,
    pub raft: Raft,
    pub proposals: Proposals,
    pub audit: Arc<Audit>,
    pub space: Space,
    pub serving: Arc<Serving>,
    pub interests: Arc<Interests>,
    pub installer: Arc<Installer>,
}

/// Accepts peers until dropped or aborted. All connections end with it.
pub async fn serve(listener: TcpListener, served: Arc<Served>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = served.clone();
                connections.spawn(async move {
                    if let Err(e) = connection(stream, served).await {
                        tracing::debug!("a peer connection ended: {e}");
                    }
                });
            }
            Err(e) => {
                tracing::warn!("can't accept a peer connection: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, served: Arc<Served>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (admitted, mut admission) = mpsc::channel(1);
    let door = served.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let response: Response<Full<Bytes>> = match door.peers.admit(&request) {
            Ok(caller) => {
                // Room for one, and one request is all that a connection brings before it is upgraded.
                let _ = admitted.try_send((caller, hyper::upgrade::on(&mut request)));
                door.peers.welcome()
            }
            Err(refusal) => refusal,
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)?;
    let Ok((caller, upgrade)) = admission.try_recv() else { return Ok(()) };
    let (reader, writer) = split(upgrade.await.map_err(io::Error::other)?).map_err(io::Error::other)?;
    session(caller, reader, writer, served).await
}

async fn session(caller: Caller, reader: FrameReader, writer: FrameWriter, served: Arc<Served>) -> io::Result<()> {
    let (out, outgoing) = mpsc::channel(OUTGOING_MAX);
    let mut tasks = JoinSet::new();
    tasks.spawn(write_all(writer, outgoing));
    tasks.spawn(read_all(caller, reader, out, served));
    // Whichever ends first ends the other.
    match tasks.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(e)) => Err(io::Error::other(e)),
        None => Ok(()),
    }
}

async fn write_all(mut writer: FrameWriter, mut outgoing: mpsc::Receiver<Message>) -> io::Result<()> {
    let mut ready = Vec::new();
    while outgoing.recv_many(&mut ready, OUTGOING_MAX).await > 0 {
        let mut out = Outgoing::default();
        for message in ready.drain(..) {
            message.push_to(&mut out);
        }
        writer.write(&mut out).await?;
    }
    Ok(())
}

async fn read_all(
    caller: Caller,
    mut reader: FrameReader,
    out: mpsc::Sender<Message>,
    served: Arc<Served>,
) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    let mut appends: Option<mpsc::Sender<AppendEntriesRequest<TypeConfig>>> = None;
    let interest = served.interests.of(caller.node);
    loop {
        let message = tokio::select! {
            frame = reader.next() => Message::read(frame?)?,
            // The pipeline ended with a conflict or a higher vote (or openraft did): the connection ends with it,
            // because what the peer pipelined behind is void.
            Some(_) = tasks.join_next(), if appends.as_ref().is_some_and(|a| a.is_closed()) => return Ok(()),
        };
        if served.peers.identity().cluster.is_none() && !matches!(message, Message::Call(Call::Join { .. })) {
            // An empty folder neither votes nor takes entries before it was asked to join.
            return Err(io::Error::other(format!("node {} sent a message to a node that hasn't joined", caller.node)));
        }
        match message {
            Message::Append(request) => {
                // openraft must not see them: an append that the log refuses is the end of the node.
                // What an election and the membership need is small, and the reserve is for it.
                if request.entries.iter().any(is_large) && served.space.is_low() {
                    let room = tokio::time::timeout(ROOM_WAIT, served.space.enough());
                    room.await.map_err(|_| io::Error::other("entries were refused: the disk is nearly full"))?;
                }
                let feed = appends.get_or_insert_with(|| {
                    let (feed, requests) = mpsc::channel(APPENDS_WAITING_MAX);
                    tasks.spawn(append(served.raft.clone(), requests, out.clone(), served.space.clone()));
                    feed
                });
                if feed.send(request).await.is_err() {
                    return Ok(());
                }
            }
            Message::Call(call) => {
                let answer = match call {
                    Call::SnapshotPiece { name, offset, bytes } => served.serving.piece(&name, offset, bytes).await?,
                    call => Message::Answer(answer(call, &caller, &served).await?),
                };
                if out.send(answer).await.is_err() {
                    return Ok(());
                }
            }
            Message::Forward(forward) => {
                interest.asked();
                served.proposals.forwarded(caller.node, forward, out.clone()).await;
            }
            Message::ReadIndex { round } => {
                interest.asked();
                let (proposals, out) = (served.proposals.clone(), out.clone());
                tasks.spawn(async move {
                    let index = proposals.confirmed_index().await;
                    let _ = out.send(Message::ReadFrom { round, index }).await;
                });
            }
            Message::Ping => {
                if out.send(Message::Pong).await.is_err() {
                    return Ok(());
                }
            }
            Message::Pong
            | Message::Piece(_)
            | Message::Appended(_)
            | Message::Answer(_)
            | Message::Nack { .. }
            | Message::ReadFrom { .. } => {
                return Err(io::Error::other("a peer sent an answer to nothing"));
            }
        }
        if appends.is_none() {
            while tasks.try_join_next().is_some() {}
        }
    }
}

/// One pipeline: requests into openraft, answers out, in order. Ends after an answer that isn't success.
async fn append(
    raft: Raft,
    requests: mpsc::Receiver<AppendEntriesRequest<TypeConfig>>,
    out: mpsc::Sender<Message>,
    space: Space,
) {
    let requests = stream::unfold(requests, |mut r| async move { r.recv().await.map(|request| (request, r)) });
    let mut answers = std::pin::pin!(raft.stream_append(requests));
    while let Some(Ok(result)) = answers.next().await {
        let appended = Appended { result: result.into(), time_ms: now_ms(), low: space.is_low() };
        if out.send(Message::Appended(appended)).await.is_err() {
            return;
        }
    }
}

async fn answer(call: Call, caller: &Caller, served: &Served) -> io::Result<Answer> {
    let raft = &served.raft;
    Ok(match call {
        Call::Vote(request) => Answer::Vote(raft.vote(request).await.map_err(io::Error::other)?),
        Call::PreVote(request) => Answer::Vote(raft.pre_vote(request).await.map_err(io::Error::other)?),
        Call::TransferLeader(request) if request.to_node_id() == raft.node_id() && !served.audit.may_lead() => {
            Answer::Refused("this node must not lead".into())
        }
        Call::TransferLeader(request) => {
            Answer::LeaderTransferred(raft.handle_transfer_leader(request).await.map_err(io::Error::other)?)
        }
        Call::Join { cluster } => {
            let peers = &served.peers;
            let mut me = peers.me.write().expect("no code panics under this lock");
            match me.cluster {
                Some(mine) if mine == cluster => Answer::Done,
                Some(mine) => Answer::Refused(format!("this node belongs to cluster {mine:016x} already")),
                None => {
                    // Synced before it is answered, once in a folder's life: a short block is no harm.
                    me.join(&peers.dir, cluster)?;
                    tracing::info!("joined cluster {cluster:016x}");
                    Answer::Done
                }
            }
        }
        Call::Lead { node } => {
            raft.trigger().transfer_leader(node).await.map_err(io::Error::other)?;
            Answer::Done
        }
        Call::Audit { at } => Answer::Report(served.audit.report(&at)),
        Call::Verdict(verdict) => {
            served.audit.judge(verdict).await;
            Answer::Done
        }
        Call::Stop(split) => {
            served.audit.stop(split);
            Answer::Done
        }
        Call::Suspect => {
            served.audit.nudge();
            Answer::Done
        }
        Call::OfferSnapshot { at_least } => served.serving.offer(at_least).await,
        Call::InstallSnapshot { vote, offer } => served.installer.install(caller, vote, offer).await,
        Call::SnapshotPiece { .. } => Answer::Refused("a piece is answered by bytes".into()),
    })
}

/// Whether the entry may be of any size.
fn is_large(entry: &Entry) -> bool {
    matches!(&entry.payload, EntryPayload::Normal(proposal) if proposal.envelope.kind != Kind::Checkpoint)
}
