//! The calling side of openraft's network traits (between steps 3 and 6 of 8, leader to follower). One [`Link`] is
//! one connection; openraft asks for three per peer (log, heartbeat, snapshot) so that none waits behind another.
//! Appends are pipelined: the next is sent while the follower still syncs the last. Next: the follower's `server.rs`.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use futures_util::{Stream, StreamExt, future::BoxFuture, stream, stream::BoxStream};
use openraft::alias::SnapshotOf;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::clock::Clocks;
use super::super::room::Rooms;
use super::super::types::{LogId, Member, NodeId, SnapshotFile, TypeConfig, Vote};
use super::frame::{FrameReader, FrameWriter, Outgoing};
use super::handshake::Peers;
use super::interest::{Interest, Interests};
use super::message::{Answer, Call, Message, invalid};
use super::pipeline::{Closing, Pipeline, Requests};
use super::snapshots::{Offer, Serving};

/// A follower that owes an answer and is silent for this long has lost the connection (a cut link sends no reset).
/// Over the slowest honest fsync, so that a slow disk isn't taken for a dead one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Beside it, for the request's own way: bytes per second of the slowest link that entries of any size can pass.
const SLOWEST_LINK: u64 = 1 << 20;
/// Between attempts to reach a node that is down. Short: a refused connection on a local network is cheap.
const RETRY: Duration = Duration::from_millis(100);

/// A follower that fetches a snapshot says at least every second how far it is.
const SNAPSHOT_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Before a snapshot that was refused is offered again.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

pub struct Links {
    pub peers: Arc<Peers>,
    pub clocks: Arc<Clocks>,
    pub rooms: Arc<Rooms>,
    pub serving: Arc<Serving>,
    pub interests: Arc<Interests>,
}

/// A connection to one peer, opened when first used.
pub struct Link {
    me: NodeId,
    target: NodeId,
    address: String,
    identity: u64,
    peers: Arc<Peers>,
    clocks: Arc<Clocks>,
    rooms: Arc<Rooms>,
    serving: Arc<Serving>,
    interest: Arc<Interest>,
    open: Option<(FrameReader, FrameWriter)>,
    /// When the last attempt to connect failed, if it did.
    failed: Option<Instant>,
    /// Why the peer didn't install a snapshot, so that each reason is logged once.
    refused: Option<String>,
    /// The entry that it lacked when it last refused an append, and how often it said so again.
    lacked: Option<(LogId, u64)>,
}

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, member: &Member) -> Link {
        let address = self.peers.addresses.get(&target).unwrap_or(&member.address).clone();
        Link {
            me: self.peers.identity().node,
            target,
            address,
            identity: member.identity,
            peers: self.peers.clone(),
            clocks: self.clocks.clone(),
            rooms: self.rooms.clone(),
            serving: self.serving.clone(),
            interest: self.interests.of(target),
            open: None,
            failed: None,
            refused: None,
            lacked: None,
        }
    }
}

impl Link {
    /// Takes the connection out: if the caller is cancelled half-way, it is dropped, never reused.
    async fn take(&mut self) -> Result<(FrameReader, FrameWriter), RPCError<TypeConfig>> {
        if let Some(open) = self.open.take() {
            return Ok(open);
        }
        // openraft waits between the requests of a stream. Where no stream comes about it tries again at once: a leader
        // whose follower is down would do nothing else.
        if let Some(failed) = self.failed {
            tokio::time::sleep_until(failed + RETRY).await;
        }
        let dialled = self.peers.dial(self.target, &self.address, Some(self.identity)).await;
        self.failed = dialled.is_err().then(Instant::now);
        dialled.map(|(reader, writer, _)| (reader, writer)).map_err(|e| RPCError::Unreachable(Unreachable::new(&e)))
    }

    async fn call(&mut self, call: Call, option: RPCOption) -> Result<Answer, RPCError<TypeConfig>> {
        self.call_within(call, option.hard_ttl()).await
    }

    async fn call_within(&mut self, call: Call, limit: Duration) -> Result<Answer, RPCError<TypeConfig>> {
        let (mut reader, mut writer) = self.take().await?;
        let exchange = async {
            let mut out = Outgoing::default();
            Message::Call(call).push_to(&mut out);
            writer.write(&mut out).await?;
            match Message::read(reader.next().await?)? {
                Message::Answer(answer) => Ok(answer),
                _ => Err(invalid("a call was answered by another message".into())),
            }
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(Ok(answer)) => {
                self.open = Some((reader, writer));
                Ok(answer)
            }
            Ok(Err(e)) => Err(unreachable(e)),
            Err(_) => Err(RPCError::Timeout(Timeout {
                action: RPCTypes::Vote,
                id: self.me,
                target: self.target,
                timeout: limit,
            })),
        }
    }

    /// The follower refused to append behind an entry that it doesn't have. openraft goes back from there and tries again
    /// at once, but never behind what the follower has acknowledged: to one that lost that it would send the same for ever.
    fn lacks(&mut self, entry: LogId) {
        let times = self.lacked.filter(|(lacked, _)| *lacked == entry).map_or(0, |(_, times)| times + 1);
        self.lacked = Some((entry, times));
        if times == 1 {
            tracing::warn!("node {} still lacks the entry {entry}; has it lost what it acknowledged?", self.target);
        }
        // The connection ends with the refusal; the next one comes no sooner than to a node that is down.
        if times > 0 {
            self.failed = Some(Instant::now());
        }
    }

    /// Tells the follower to fetch the snapshot from here, and asks until it has installed it. It stays open here
    /// meanwhile, whatever newer ones are made.
    async fn install(
        &mut self,
        vote: Vote,
        file: SnapshotFile,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let call = Call::InstallSnapshot { vote, offer: Offer::of(&file) };
        loop {
            self.serving.hold(file.clone());
            match self.call_within(call.clone(), SNAPSHOT_ANSWER_TIMEOUT).await? {
                Answer::SnapshotComing { have } => {
                    tracing::debug!(peer = self.target, have, "the follower fetches a snapshot");
                }
                Answer::SnapshotInstalled { vote } => {
                    self.refused = None;
                    return Ok(SnapshotResponse::new(vote));
                }
                Answer::SnapshotDamaged(why) => {
                    tracing::warn!("node {} does not install the snapshot: {why}", self.target);
                    let serving = self.serving.clone();
                    tokio::spawn(async move { serving.suspect(file).await });
                    tokio::time::sleep(REFUSED_PAUSE).await;
                    return Err(Unreachable::new(&AnyError::error(why)).into());
                }
                Answer::Refused(why) => {
                    if self.refused.as_ref() != Some(&why) {
                        tracing::warn!("node {} does not install the snapshot: {why}", self.target);
                        self.refused = Some(why.clone());
                    }
                    tokio::time::sleep(REFUSED_PAUSE).await;
                    return Err(Unreachable::new(&AnyError::error(why)).into());
                }
                other => return Err(unexpected(other).into()),
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut answers = self.stream_append(stream::once(async { request }).boxed(), option).await?;
        match answers.next().await {
            Some(Ok(Ok(_))) => Ok(AppendEntriesResponse::Success),
            Some(Ok(Err(StreamAppendError::Conflict(_)))) => Ok(AppendEntriesResponse::Conflict),
            Some(Ok(Err(StreamAppendError::HigherVote(v)))) => Ok(AppendEntriesResponse::HigherVote(v)),
            Some(Err(e)) => Err(e),
            None => Err(unreachable(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            let (reader, writer) = self.take().await?;
            let (sent, expected) = mpsc::unbounded_channel();
            let pipeline = Pipeline::default();
            let input = Requests::new(input, pipeline.clone(), self.interest.clone());
            // A set, because it aborts its task when it is dropped.
            let mut sender = JoinSet::new();
            sender.spawn(send_all(input, writer, sent));
            let closing = Closing(pipeline.clone());
            let session = AppendSession { link: self, reader, expected, pipeline, sender, _closing: closing };
            Ok(stream::unfold(Some(session), next_answer).boxed())
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Call::Vote(request), option).await? {
            Answer::Vote(response) => Ok(response),
            other => Err(unexpected(other)),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Call::PreVote(request), option).await? {
            Answer::Vote(response) => Ok(response),
            other => Err(unexpected(other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            installed = self.install(vote, snapshot.snapshot) => installed,
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Call::TransferLeader(request), option).await? {
            Answer::LeaderTransferred(response) => Ok(response),
            other => Err(unexpected(other)),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY)))
    }
}

struct AppendSession<'s> {
    link: &'s mut Link,
    reader: FrameReader,
    /// For each request that was sent its size in bytes.
    expected: mpsc::UnboundedReceiver<u64>,
    pipeline: Pipeline,
    sender: JoinSet<io::Result<FrameWriter>>,
    _closing: Closing,
}

/// Sends requests as they come, everything that is ready in one write.
async fn send_all<S>(mut input: S, mut writer: FrameWriter, sent: mpsc::UnboundedSender<u64>) -> io::Result<FrameWriter>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    while let Some(request) = input.next().await {
        let mut out = Outgoing::default();
        Message::Append(request).push_to(&mut out);
        // Told before it is written: the answer may come while the write returns.
        if sent.send(out.remaining() as u64).is_err() {
            break;
        }
        writer.write(&mut out).await?;
    }
    Ok(writer)
}

type AppendAnswer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// The answer to the oldest request that has none, as far as openraft may be told of it. Ends when the input has ended and
/// all were answered; only then is the connection used again.
async fn next_answer<'s>(session: Option<AppendSession<'s>>) -> Option<(AppendAnswer, Option<AppendSession<'s>>)> {
    let mut session = session?;
    session.pipeline.asked();
    loop {
        let Some(bytes) = session.expected.recv().await else {
            return match session.sender.join_next().await? {
                Ok(Ok(writer)) => {
                    session.link.open = Some((session.reader, writer));
                    None
                }
                Ok(Err(e)) => Some((Err(unreachable(e)), None)),
                Err(e) => Some((Err(unreachable(io::Error::other(e))), None)),
            };
        };
        let limit = ANSWER_TIMEOUT + Duration::from_millis(bytes * 1_000 / SLOWEST_LINK);
        let frame = match tokio::time::timeout(limit, session.reader.next()).await {
            Ok(frame) => frame,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        match frame.and_then(Message::read) {
            Ok(Message::Appended(appended)) => {
                session.link.clocks.heard(session.link.target, appended.time_ms);
                session.link.rooms.heard(session.link.target, appended.low);
                let result: StreamAppendResult<TypeConfig> = appended.result.into();
                if !session.pipeline.answered(&result) {
                    continue;
                }
                if let Err(StreamAppendError::Conflict(lacks)) = &result {
                    session.link.lacks(*lacks);
                }
                // After a conflict or a higher vote both sides drop the connection: what was pipelined is void.
                let next = result.is_ok().then_some(session);
                return Some((Ok(result), next));
            }
            Ok(_) => {
                return Some((Err(unreachable(invalid("an append was answered by another message".into()))), None));
            }
            Err(e) => return Some((Err(unreachable(e)), None)),
        }
    }
}

fn unreachable(error: io::Error) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(&error))
}

fn unexpected(answer: Answer) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(&AnyError::error(format!("the peer answered {answer:?}"))))
}
