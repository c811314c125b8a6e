//! What the module answered: views into an archive of replies that many requests share. Next: `request.rs`.

use bytes::Bytes;
use raftlet_machine::{ArchivedReplies, ArchivedReply, Replies as Archive};

use crate::error::{Error, Problem};

/// A part of a validated archive of replies, and what came with it.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    archive: Bytes,
    first: usize,
    count: usize,
    index: u64,
    term: u64,
    /// An earlier attempt may have happened.
    doubt: bool,
}

/// The module's reply to one request. A view: the replies that came with it stay in memory as long as this does, or a
/// body cut out of it. Copy what is to be kept for long.
#[derive(Debug, Clone)]
pub struct Reply {
    archive: Bytes,
    position: usize,
    index: u64,
    term: u64,
}

/// The replies to an explicit batch, in the order of its requests.
#[derive(Debug, Clone)]
pub struct Replies {
    answer: Answer,
}

impl Answer {
    /// Validates the archive, which must have `count` replies.
    pub(crate) fn read(archive: Bytes, count: usize, index: u64, term: u64) -> Result<Answer, String> {
        let found = Archive::access(&archive).map_err(|error| error.to_string())?.replies.len();
        if found != count {
            return Err(format!("{found} replies to {count} requests"));
        }
        Ok(Answer { archive, first: 0, count, index, term, doubt: false })
    }

    /// Those from `first` on. They must be within this answer.
    pub(crate) fn part(&self, first: usize, count: usize) -> Answer {
        assert!(first + count <= self.count, "a part is inside the whole");
        Answer { archive: self.archive.clone(), first: self.first + first, count, ..*self }
    }

    /// The same after an attempt that may have happened.
    pub(crate) fn in_doubt(self, doubt: bool) -> Answer {
        Answer { doubt, ..self }
    }

    /// Whether the reply at the first position looks like one that is worth a second try. `problem` knows.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(archived(&self.archive, self.first).status.to_native(), 503 | 504)
    }

    pub(crate) fn term(&self) -> u64 {
        self.term
    }

    /// The problem of the node's at this position, if there is one.
    pub(crate) fn problem(&self, position: usize) -> Option<Problem> {
        let reply = archived(&self.archive, self.first + position);
        Problem::read(reply.status.to_native(), &reply.content_type, &reply.body)
    }

    fn reply(&self, position: usize) -> Result<Reply, Error> {
        assert!(position < self.count, "there are {} replies", self.count);
        match self.problem(position) {
            // Only what is known of the first attempt settles what became of it.
            Some(problem) if self.doubt && !is_replayed(archived(&self.archive, self.first + position)) => {
                Err(Error::Unknown(problem.refusal))
            }
            Some(problem) => Err(problem.into_error()),
            None => Ok(Reply {
                archive: self.archive.clone(),
                position: self.first + position,
                index: self.index,
                term: self.term,
            }),
        }
    }

    /// The only reply.
    pub(crate) fn into_reply(self) -> Result<Reply, Error> {
        self.reply(0)
    }

    pub(crate) fn into_replies(self) -> Replies {
        Replies { answer: self }
    }
}

/// `archive` must have been validated and have a reply at `position`.
fn archived(archive: &Bytes, position: usize) -> &ArchivedReply {
    // SAFETY: an `Answer` is only made of an archive that was validated, and the bytes are immutable.
    let replies = unsafe { rkyv::access_unchecked::<ArchivedReplies>(archive) };
    &replies.replies[position]
}

fn is_replayed(reply: &ArchivedReply) -> bool {
    reply.headers.iter().any(|header| header.name == "idempotent-replayed")
}

impl Reply {
    fn archived(&self) -> &ArchivedReply {
        archived(&self.archive, self.position)
    }

    /// The HTTP status, 200 to 599. A status over 399 is the module's own answer; failures of the host are errors.
    pub fn status(&self) -> u16 {
        self.archived().status.to_native()
    }

    /// True for 200 to 299.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status())
    }

    /// Empty if the module named none.
    pub fn content_type(&self) -> &str {
        &self.archived().content_type
    }

    /// Names in lower case, and values.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.archived().headers.iter().map(|header| (header.name.as_str(), header.value.as_slice()))
    }

    /// The first header of this name, which is in lower case.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().find_map(|(own, value)| (own == name).then_some(value))
    }

    /// Cut out of the archive without a copy.
    pub fn body(&self) -> Bytes {
        self.archive.slice_ref(self.archived().body.as_slice())
    }

    /// Of a command: the log index it was applied at. Of a query: of the newest entry in the state that was read.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Raft's term of that entry.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The command had happened before: this is what it was answered then.
    pub fn is_replayed(&self) -> bool {
        is_replayed(self.archived())
    }
}

impl Replies {
    /// As many as there were requests.
    pub fn len(&self) -> usize {
        self.answer.count
    }

    /// A batch is never empty.
    pub fn is_empty(&self) -> bool {
        self.answer.count == 0
    }

    /// What became of the request at this position.
    ///
    /// # Errors
    /// The node refused or undid this request, and it alone.
    ///
    /// # Panics
    /// If there is no such position.
    pub fn get(&self, position: usize) -> Result<Reply, Error> {
        self.answer.reply(position)
    }

    /// In the order of the requests.
    pub fn iter(&self) -> impl Iterator<Item = Result<Reply, Error>> {
        (0..self.len()).map(|position| self.get(position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftlet_machine::{Header, Reply as Owned};

    fn archive() -> Bytes {
        let reply = |status, content_type: &str, body: &str| Owned {
            status,
            content_type: content_type.to_owned(),
            headers: vec![Header { name: "etag".into(), value: b"\"7\"".to_vec() }],
            body: body.as_bytes().to_vec(),
        };
        let problem = r#"{"type":"/_/problems/module-trap","detail":"d","outcome":"rejected"}"#;
        let replies =
            vec![reply(201, "text/plain", "one"), reply(500, "application/problem+json", problem), reply(404, "", "")];
        Archive { replies }.to_bytes().into()
    }

    #[test]
    fn replies_are_views_into_one_archive() {
        let archive = archive();
        let replies = Answer::read(archive.clone(), 3, 9, 2).unwrap().into_replies();
        let first = replies.get(0).unwrap();
        assert_eq!((first.status(), first.content_type(), first.index(), first.term()), (201, "text/plain", 9, 2));
        assert_eq!((first.header("etag"), first.header("none")), (Some(&b"\"7\""[..]), None));
        assert!(archive.as_ptr_range().contains(&first.body().as_ptr()), "the body was copied");
        assert!(matches!(replies.get(1), Err(Error::Rejected(refusal)) if refusal.kind == "module-trap"));
        assert_eq!(replies.iter().filter(Result::is_ok).count(), 2);
        let doubtful = Answer::read(archive.clone(), 3, 9, 2).unwrap().in_doubt(true).into_replies();
        assert!(matches!(doubtful.get(1), Err(Error::Unknown(refusal)) if refusal.kind == "module-trap"));
        assert!(doubtful.get(0).is_ok());
        assert!(!first.is_replayed() && !replies.is_empty());
    }

    #[test]
    fn a_part_begins_where_it_is_told() {
        let answer = Answer::read(archive(), 3, 1, 1).unwrap();
        assert_eq!(answer.part(2, 1).into_reply().unwrap().status(), 404);
        assert!(answer.part(1, 2).problem(0).is_some());
    }

    #[test]
    fn what_is_no_archive_of_as_many_replies_is_an_error() {
        let whole = archive();
        assert!(Answer::read(whole.clone(), 2, 1, 1).unwrap_err().contains("3 replies to 2"));
        let torn = whole.slice(..whole.len() - 1);
        assert!(Answer::read(torn, 3, 1, 1).unwrap_err().contains("archive"));
    }
}
