//! The rkyv types that cross the boundary between host and module, and nothing else. Their archived layout is a
//! published format (version [`FORMAT_VERSION`], golden files in `wit/tests`): changing it is a new version.

use rkyv::api::high::to_bytes_in;
use rkyv::rancor::Error as RancorError;
use rkyv::{Archive, Deserialize, Serialize};

/// Version of the archived layout of [`Batch`] and [`Replies`]. A log entry's own version, which stands in each entry,
/// is raised with it.
pub const FORMAT_VERSION: u8 = 1;

/// A reply without a body takes less in its archive. Modules archive replies: to add up what each takes costs them more
/// than letting the archive grow.
const SMALL_REPLY_BYTES: usize = 96;

/// Many commands (or queries) sealed together. One archive, never changed again.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub commands: Vec<Request>,
}

/// What a client sent.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    /// As received: begins with `/`, still percent-encoded, without the query.
    pub path: String,
    /// Without the `?`, still percent-encoded; empty if there is none.
    pub query: String,
    /// Those in [`crate::FORWARDED_HEADERS`], names in lower case.
    pub headers: Vec<Header>,
    pub body: Vec<u8>,
}

#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub name: String,
    pub value: Vec<u8>,
}

/// GET and HEAD are queries, the others are commands (RFC 9110 §9.2.1: safe methods).
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Debug, Clone, Copy, PartialEq, Eq))]
#[repr(u8)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

/// A module's answers, one for each command that was run, in their order.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Replies {
    pub replies: Vec<Reply>,
}

#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// An HTTP status code, 200 to 599.
    pub status: u16,
    /// Empty: no `Content-Type` is sent.
    pub content_type: String,
    pub headers: Vec<Header>,
    pub body: Vec<u8>,
}

/// The bytes are not an archive of the type that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidArchive(String);

impl core::fmt::Display for InvalidArchive {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "not a valid archive: {}", self.0)
    }
}

impl core::error::Error for InvalidArchive {}

impl Batch {
    /// The archive. This is the only encoding of a batch in its whole life.
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = |h: &Header| size_of::<ArchivedHeader>() + h.name.len() + h.value.len();
        let command = |c: &Request| {
            let headers: usize = c.headers.iter().map(header).sum();
            size_of::<ArchivedRequest>() + c.path.len() + c.query.len() + headers + c.body.len()
        };
        // Short texts stand inline, so this is a little more than it will take.
        let room = size_of::<ArchivedBatch>() + self.commands.iter().map(command).sum::<usize>();
        to_bytes_in::<_, RancorError>(self, Vec::with_capacity(room)).expect("archiving into memory can't fail")
    }

    /// Reads an archive in place, after validating all of it.
    pub fn access(bytes: &[u8]) -> Result<&ArchivedBatch, InvalidArchive> {
        rkyv::access::<ArchivedBatch, RancorError>(bytes).map_err(|e| InvalidArchive(e.to_string()))
    }
}

impl Replies {
    pub fn to_bytes(&self) -> Vec<u8> {
        let room = self.replies.len() * SMALL_REPLY_BYTES;
        to_bytes_in::<_, RancorError>(self, Vec::with_capacity(room)).expect("archiving into memory can't fail")
    }

    /// Reads an archive in place, after validating all of it.
    pub fn access(bytes: &[u8]) -> Result<&ArchivedReplies, InvalidArchive> {
        rkyv::access::<ArchivedReplies, RancorError>(bytes).map_err(|e| InvalidArchive(e.to_string()))
    }
}

impl Replies {
    /// Copies an archive into memory of its own, after validating all of it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidArchive> {
        rkyv::from_bytes::<Replies, RancorError>(bytes).map_err(|e| InvalidArchive(e.to_string()))
    }
}

impl Method {
    /// True for GET and HEAD.
    pub fn is_query(self) -> bool {
        matches!(self, Method::Get | Method::Head)
    }
}
