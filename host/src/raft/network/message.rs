//! What peers say to each other, as frames. Entries travel in the form they are logged in (`raft/codec.rs`); the
//! small messages are postcard. Bytes that are no message are an error, never a panic.

use std::io;

use bytes::{Buf, Bytes};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use super::super::audit::{NoMajority, Verdict};
use super::super::codec;
use super::super::hearing::Report;
use super::super::types::{BatchId, Kind, LogId, TypeConfig, Vote};
use super::frame::{Frame, Outgoing};
use super::snapshots::Offer;

/// Changing a message's form is a new protocol: peers compare this before the first frame.
pub const PROTOCOL: &str = "raftlet/2";

const APPEND: u8 = 1;
const APPENDED: u8 = 2;
const CALL: u8 = 3;
const ANSWER: u8 = 4;
const FORWARD: u8 = 5;
const NACK: u8 = 6;
const READ_INDEX: u8 = 7;
const READ_FROM: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const PIECE: u8 = 11;

pub enum Message {
    Append(AppendEntriesRequest<TypeConfig>),
    Appended(Appended),
    /// One at a time on a connection; [`Message::Answer`] follows.
    Call(Call),
    Answer(Answer),
    /// A batch for the leader of `term`. Answered only if it was certainly not logged ([`Message::Nack`]).
    Forward(Forward),
    Nack {
        sequence: u64,
        term: u64,
        /// Because there is no room.
        full: bool,
    },
    ReadIndex {
        round: u64,
    },
    /// `index` is none if the receiver can't vouch for being the leader.
    ReadFrom {
        round: u64,
        index: Option<u64>,
    },
    /// Answered by [`Message::Pong`] at once: a connection that is silent is dead.
    Ping,
    Pong,
    /// Bytes of a snapshot: the answer to [`Call::SnapshotPiece`].
    Piece(Bytes),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Appended {
    pub result: AppendResult,
    /// The follower's clock, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Its disk is nearly full: it takes no entries.
    pub low: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum AppendResult {
    Matching(Option<LogId>),
    Conflict(LogId),
    HigherVote(Vote),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Call {
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    /// To an empty node: become a member of this cluster.
    Join {
        cluster: u64,
    },
    /// To the leader: let this node lead.
    Lead {
        node: u64,
    },
    /// What is this node's digest chain at these indices, and how is it?
    Audit {
        at: Vec<u64>,
    },
    /// What a majority of the voters has.
    Verdict(Verdict),
    /// Voters differ without a majority: apply nothing.
    Stop(NoMajority),
    /// To the leader: this node is in doubt, compare now.
    Suspect,
    /// Which snapshot can be fetched, with at least this entry in it.
    OfferSnapshot {
        at_least: u64,
    },
    /// Some bytes of a snapshot. May be asked for ahead of the answers, which come in the same order.
    SnapshotPiece {
        name: String,
        offset: u64,
        bytes: u32,
    },
    /// From a leader: fetch this from me and install it. Repeated until the answer is neither
    /// [`Answer::SnapshotComing`] nor lost.
    InstallSnapshot {
        vote: Vote,
        offer: Offer,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    Vote(VoteResponse<TypeConfig>),
    LeaderTransferred(openraft::raft::TransferLeaderResponse<TypeConfig>),
    Done,
    Refused(String),
    Report(Report),
    SnapshotOffered(Box<Offer>),
    /// A newer one has replaced it.
    SnapshotGone,
    /// So many bytes are here; ask again.
    SnapshotComing {
        have: u64,
    },
    /// It is installed, or wasn't needed, or `vote` is higher than the leader's.
    SnapshotInstalled {
        vote: Vote,
    },
    /// What was fetched is damaged.
    SnapshotDamaged(String),
}

#[derive(Debug)]
pub struct Forward {
    pub term: u64,
    pub kind: Kind,
    pub id: BatchId,
    pub bytes: Bytes,
}

#[derive(Serialize, Deserialize)]
struct AppendHead {
    vote: Vote,
    prev: Option<LogId>,
    commit: Option<LogId>,
    entries: u32,
}

#[derive(Serialize, Deserialize)]
struct ForwardHead {
    term: u64,
    kind: Kind,
    node: u64,
    boot: u64,
    sequence: u64,
}

impl Message {
    pub fn push_to(&self, out: &mut Outgoing) {
        match self {
            Message::Append(request) => push_append(request, out),
            Message::Appended(m) => out.push(APPENDED, [post(m)]),
            Message::Call(m) => out.push(CALL, [post(m)]),
            Message::Answer(m) => out.push(ANSWER, [post(m)]),
            Message::Forward(f) => {
                let BatchId { node, boot, sequence } = f.id;
                let head = post(&ForwardHead { term: f.term, kind: f.kind, node, boot, sequence });
                out.push(FORWARD, [length_of(&head), head, f.bytes.clone()]);
            }
            Message::Nack { sequence, term, full } => out.push(NACK, [post(&(sequence, term, full))]),
            Message::ReadIndex { round } => out.push(READ_INDEX, [post(round)]),
            Message::Ping => out.push(PING, []),
            Message::Pong => out.push(PONG, []),
            Message::Piece(bytes) => out.push(PIECE, [bytes.clone()]),
            Message::ReadFrom { round, index } => out.push(READ_FROM, [post(&(round, index))]),
        }
    }

    pub fn read(frame: Frame) -> io::Result<Message> {
        let mut body = frame.body;
        Ok(match frame.kind {
            APPEND => Message::Append(read_append(body)?),
            APPENDED => Message::Appended(unpost(&body)?),
            CALL => Message::Call(unpost(&body)?),
            ANSWER => Message::Answer(unpost(&body)?),
            FORWARD => {
                let head = take_head(&mut body)?;
                let ForwardHead { term, kind, node, boot, sequence } = unpost(&head)?;
                Message::Forward(Forward { term, kind, id: BatchId { node, boot, sequence }, bytes: body })
            }
            NACK => {
                let (sequence, term, full) = unpost(&body)?;
                Message::Nack { sequence, term, full }
            }
            READ_INDEX => Message::ReadIndex { round: unpost(&body)? },
            READ_FROM => {
                let (round, index) = unpost(&body)?;
                Message::ReadFrom { round, index }
            }
            PING => Message::Ping,
            PONG => Message::Pong,
            PIECE => Message::Piece(body),
            kind => return Err(invalid(format!("a peer sent a message of the unknown kind {kind}"))),
        })
    }
}

impl From<StreamAppendResult<TypeConfig>> for AppendResult {
    fn from(result: StreamAppendResult<TypeConfig>) -> Self {
        match result {
            Ok(matching) => AppendResult::Matching(matching),
            Err(StreamAppendError::Conflict(at)) => AppendResult::Conflict(at),
            Err(StreamAppendError::HigherVote(vote)) => AppendResult::HigherVote(vote),
        }
    }
}

impl From<AppendResult> for StreamAppendResult<TypeConfig> {
    fn from(result: AppendResult) -> Self {
        match result {
            AppendResult::Matching(matching) => Ok(matching),
            AppendResult::Conflict(at) => Err(StreamAppendError::Conflict(at)),
            AppendResult::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote)),
        }
    }
}

pub fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn push_append(request: &AppendEntriesRequest<TypeConfig>, out: &mut Outgoing) {
    let entries = request.entries.len() as u32;
    let head =
        post(&AppendHead { vote: request.vote, prev: request.prev_log_id, commit: request.leader_commit, entries });
    let mut parts = Vec::with_capacity(2 + 2 * request.entries.len());
    parts.push(length_of(&head));
    parts.push(head);
    for entry in &request.entries {
        let (header, payload) = codec::encode(entry);
        parts.push(Bytes::copy_from_slice(&header));
        parts.push(payload);
    }
    out.push(APPEND, parts);
}

fn read_append(mut body: Bytes) -> io::Result<AppendEntriesRequest<TypeConfig>> {
    let head = take_head(&mut body)?;
    let AppendHead { vote, prev, commit, entries: count } = unpost(&head)?;
    let mut entries = Vec::with_capacity((count as usize).min(body.len() / codec::HEADER_BYTES));
    for _ in 0..count {
        let payload = codec::payload_len(&body).map_err(|e| invalid(e.to_string()))?;
        let length = usize::try_from(payload).ok().and_then(|p| p.checked_add(codec::HEADER_BYTES));
        let Some(length) = length.filter(|l| *l <= body.len()) else {
            return Err(invalid(format!("an entry claims {payload} bytes beyond its message's end")));
        };
        entries.push(codec::decode(body.split_to(length)).map_err(|e| invalid(e.to_string()))?);
    }
    if !body.is_empty() {
        return Err(invalid(format!("{} bytes follow the last entry of a message", body.len())));
    }
    Ok(AppendEntriesRequest { vote, prev_log_id: prev, entries, leader_commit: commit })
}

fn length_of(head: &Bytes) -> Bytes {
    Bytes::copy_from_slice(&(head.len() as u32).to_le_bytes())
}

fn take_head(body: &mut Bytes) -> io::Result<Bytes> {
    if body.len() < 4 {
        return Err(invalid("a message ends before its head".into()));
    }
    let length = body.get_u32_le() as usize;
    if length > body.len() {
        return Err(invalid("a message ends within its head".into()));
    }
    Ok(body.split_to(length))
}

fn post<T: Serialize>(value: &T) -> Bytes {
    postcard::to_allocvec(value).expect("messages can always be encoded").into()
}

fn unpost<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(|e| invalid(format!("a peer's message can't be read: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::{Entry, Envelope, Proposal};
    use openraft::EntryPayload;
    use openraft::entry::RaftEntry;

    fn bytes_of(message: &Message) -> Vec<u8> {
        let mut out = Outgoing::default();
        message.push_to(&mut out);
        let mut bytes = vec![0; out.remaining()];
        out.copy_to_slice(&mut bytes);
        bytes
    }

    fn read(bytes: &[u8]) -> io::Result<Message> {
        Message::read(Frame { kind: bytes[4], body: Bytes::copy_from_slice(&bytes[5..]) })
    }

    fn append() -> AppendEntriesRequest<TypeConfig> {
        let id = BatchId { node: 1, boot: 2, sequence: 3 };
        let envelope = Envelope { kind: Kind::Batch, id, time_ms: 4, stamp_index: 5, stamp_digest: [6; 16] };
        let normal = EntryPayload::Normal(Proposal { envelope, bytes: Bytes::from_static(b"\0|BATCH|\xff") });
        let entries = vec![Entry::new_blank(codec::log_id(1, 8)), Entry::new(codec::log_id(1, 9), normal)];
        let prev_log_id = Some(codec::log_id(1, 7));
        AppendEntriesRequest { vote: Vote::new_committed(1, 1), prev_log_id, entries, leader_commit: prev_log_id }
    }

    #[test]
    fn appends_and_forwards_survive_the_round_trip() {
        let request = append();
        let Message::Append(read_back) = read(&bytes_of(&Message::Append(request.clone()))).unwrap() else { panic!() };
        assert_eq!(format!("{read_back:?}"), format!("{request:?}"));
        assert_eq!(read_back.entries, request.entries);

        let id = BatchId { node: 1, boot: u64::MAX, sequence: 3 };
        let forward = Forward { term: 9, kind: Kind::Batch, id, bytes: Bytes::from_static(b"x") };
        let Message::Forward(f) = read(&bytes_of(&Message::Forward(forward))).unwrap() else { panic!() };
        assert_eq!((f.term, f.kind, f.id, &f.bytes[..]), (9, Kind::Batch, id, &b"x"[..]));
    }

    #[test]
    fn a_cut_or_altered_message_is_an_error_or_another_message_but_never_a_panic() {
        let good = bytes_of(&Message::Append(append()));
        for end in 5..good.len() {
            assert!(read(&good[..end]).is_err(), "cut at {end}");
        }
        for at in 4..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            let _ = read(&bad);
        }
    }
}
