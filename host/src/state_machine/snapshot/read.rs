//! Reads a snapshot and hands its parts to a [`Sink`], in their order, in flat memory. Owns every check: checksums,
//! order, lengths, counts, the content digest, and that nothing is missing or left over. Bytes that are no snapshot
//! are an error, never a panic. Who reads: `mod.rs` (verify, rewrite) and `load.rs`.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use raftlet_machine::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

use super::block::{BlockReader, Section, checksum, u32_at};
use super::{END, Footer, Header, MAGIC, SnapshotError, Summary, TRAILER_BYTES, VERSION};
use crate::state_machine::digest::Content;

/// Bytes of a header: a membership of hundreds of nodes fits.
const HEADER_BYTES_MAX: usize = 1 << 20;
/// Before the header.
const START_BYTES: usize = 20;
/// Bytes of a module, or of the pieces of one.
const MODULE_BYTES_MAX: u64 = 1 << 30;
/// Bytes of an idempotency key, and of its record: a whole reply and what belongs to it.
const SESSION_KEY_BYTES_MAX: usize = 64 << 10;
const SESSION_BYTES_MAX: usize = raftlet_machine::limits::REPLIES_BYTES_MAX + (1 << 20);
/// Lengths of key and value.
const RECORD_HEAD_BYTES: usize = 8;

/// Takes the parts of a snapshot.
pub(super) trait Sink {
    /// The next bytes of the active module.
    fn module(&mut self, part: &[u8]) -> io::Result<()>;
    /// The next bytes of a module that is on its way.
    fn pieces(&mut self, part: &[u8]) -> io::Result<()>;
    /// The map's next entry.
    fn entry(&mut self, key: &[u8], value: &[u8]) -> io::Result<()>;
    /// The sessions' next record.
    fn session(&mut self, key: &[u8], value: &[u8]) -> io::Result<()>;
}

/// Takes nothing: for whoever only wants to know whether all is well.
impl Sink for () {
    fn module(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn pieces(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn entry(&mut self, _: &[u8], _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn session(&mut self, _: &[u8], _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Why a snapshot can't be read.
#[derive(Debug)]
pub(super) enum ReadError {
    Damaged(String),
    Version(u32),
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::Damaged("it ends too early".into()),
            // A sector that can't be read is damage like any other.
            _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                ReadError::Damaged(format!("the disk can't read it: {error}"))
            }
            _ => ReadError::Io(error),
        }
    }
}

impl ReadError {
    pub(super) fn at(self, path: &Path) -> SnapshotError {
        let path = path.to_owned();
        match self {
            ReadError::Damaged(why) => SnapshotError::Damaged { path, why },
            ReadError::Version(found) => SnapshotError::Version { path, found },
            ReadError::Io(error) => SnapshotError::Io { path, error },
        }
    }
}

/// Reads a shared file from its beginning, whoever else reads it.
pub(super) struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl<'a> FromStart<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        FromStart { file, at: 0 }
    }
}

impl Read for FromStart<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

fn damaged<T>(why: impl Into<String>) -> Result<T, ReadError> {
    Err(ReadError::Damaged(why.into()))
}

/// A snapshot whose header was read.
pub(super) struct Reader<R> {
    input: R,
    pub(super) header: Header,
    /// Bytes before the first block.
    start: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn open(mut input: R) -> Result<Self, ReadError> {
        let mut start = [0; START_BYTES];
        input.read_exact(&mut start)?;
        if start[..8] != *MAGIC {
            return damaged("it doesn't begin like a snapshot");
        }
        let version = u32_at(&start, 8);
        let length = u32_at(&start, 12) as usize;
        if length > HEADER_BYTES_MAX {
            return damaged("its header can't be that long");
        }
        let mut encoded = vec![0; length];
        input.read_exact(&mut encoded)?;
        if checksum(0, &start[..16], &encoded) != u32_at(&start, 16) {
            return damaged("its header's checksum is wrong");
        }
        // After the checksum: a flipped bit is no newer version.
        if version != VERSION {
            return Err(ReadError::Version(version));
        }
        let (header, rest): (Header, _) = postcard::take_from_bytes(&encoded)
            .map_err(|e| ReadError::Damaged(format!("its header can't be read: {e}")))?;
        if !rest.is_empty() {
            return damaged("its header is longer than it should be");
        }
        Ok(Reader { input, header, start: (START_BYTES + length) as u64 })
    }

    /// Hands all parts to the sink. Only when this returns a summary is the snapshot whole and sound: what the sink took
    /// before is worth nothing else.
    pub(super) fn walk(mut self, sink: &mut impl Sink) -> Result<Summary, ReadError> {
        let mut blocks = BlockReader::new(self.header.id);
        let mut parts = Parts::new(&self.header);
        let mut bytes = self.start;
        let footer: Footer = loop {
            let before = blocks.count();
            let (section, data) = blocks.read(&mut Counting { input: &mut self.input, bytes: &mut bytes })?;
            parts.enter(section)?;
            if section != Section::Footer {
                parts.take(data, sink)?;
                continue;
            }
            let (footer, rest): (Footer, _) = postcard::take_from_bytes(data)
                .map_err(|e| ReadError::Damaged(format!("its footer can't be read: {e}")))?;
            if !rest.is_empty() || footer.blocks != before {
                return damaged("its footer is another file's");
            }
            break footer;
        };
        if parts.finish(&self.header)? != footer {
            return damaged("its content isn't what its footer says");
        }
        self.check_end(bytes)?;
        Ok(Summary::new(self.header, &footer, bytes + TRAILER_BYTES as u64))
    }

    fn check_end(&mut self, bytes: u64) -> Result<(), ReadError> {
        let mut trailer = [0; TRAILER_BYTES];
        self.input.read_exact(&mut trailer)?;
        let length = u64::from_le_bytes(trailer[..8].try_into().expect("8 bytes"));
        let crc = checksum(self.header.id, &trailer[..8], END);
        if length != bytes + TRAILER_BYTES as u64 || u32_at(&trailer, 8) != crc || trailer[12..] != *END {
            return damaged("its end is wrong");
        }
        if self.input.read(&mut [0])? != 0 {
            return damaged("there is more after its end");
        }
        Ok(())
    }
}

struct Counting<'a, R> {
    input: &'a mut R,
    bytes: &'a mut u64,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        *self.bytes += read as u64;
        Ok(read)
    }
}

/// Puts the sections' bytes together again, and checks them.
struct Parts {
    section: Section,
    /// The beginning of a record that goes on in the next block.
    open: Vec<u8>,
    last_key: Option<Vec<u8>>,
    module: blake3::Hasher,
    module_bytes: u64,
    pieces_bytes: u64,
    digest: Content,
    footer: Footer,
    blocks: u64,
}

impl Parts {
    fn new(header: &Header) -> Self {
        Parts {
            section: Section::Module,
            open: Vec::new(),
            last_key: None,
            module: blake3::Hasher::new(),
            module_bytes: 0,
            pieces_bytes: 0,
            digest: Content::new(&header.facts()),
            footer: Footer::default(),
            blocks: 0,
        }
    }

    fn enter(&mut self, section: Section) -> Result<(), ReadError> {
        if section < self.section {
            return damaged("its parts are out of order");
        }
        if section == self.section {
            return Ok(());
        }
        if !self.open.is_empty() {
            return damaged("a record in it is cut off");
        }
        self.last_key = None;
        if self.section < Section::Sessions && section >= Section::Sessions {
            self.digest.sessions();
        }
        self.section = section;
        Ok(())
    }

    fn take(&mut self, data: &[u8], sink: &mut impl Sink) -> Result<(), ReadError> {
        self.blocks += 1;
        match self.section {
            Section::Module => {
                self.module_bytes += data.len() as u64;
                check_module_bytes(self.module_bytes)?;
                self.module.update(data);
                sink.module(data).map_err(ReadError::Io)
            }
            Section::Pieces => {
                self.pieces_bytes += data.len() as u64;
                check_module_bytes(self.pieces_bytes)?;
                sink.pieces(data).map_err(ReadError::Io)
            }
            Section::Map | Section::Sessions => self.records(data, sink),
            Section::Footer => damaged("there is a second footer"),
        }
    }

    fn records(&mut self, data: &[u8], sink: &mut impl Sink) -> Result<(), ReadError> {
        let mut buffer = std::mem::take(&mut self.open);
        buffer.extend_from_slice(data);
        let mut at = 0;
        while let Some(head) = buffer[at..].first_chunk::<RECORD_HEAD_BYTES>() {
            let (key_len, value_len) = (u32_at(head, 0) as usize, u32_at(head, 4) as usize);
            let (key_max, value_max) = match self.section {
                Section::Map => (KEY_BYTES_MAX, VALUE_BYTES_MAX),
                _ => (SESSION_KEY_BYTES_MAX, SESSION_BYTES_MAX),
            };
            if key_len > key_max || value_len > value_max {
                return damaged("a record in it is longer than any can be");
            }
            let Some(record) = buffer[at + RECORD_HEAD_BYTES..].get(..key_len + value_len) else { break };
            let (key, value) = record.split_at(key_len);
            self.record(key, value, sink)?;
            at += RECORD_HEAD_BYTES + record.len();
        }
        buffer.drain(..at);
        self.open = buffer;
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8], sink: &mut impl Sink) -> Result<(), ReadError> {
        if self.last_key.as_deref().is_some_and(|last| last >= key) {
            return damaged("its keys are out of order");
        }
        let last = self.last_key.get_or_insert_default();
        last.clear();
        last.extend_from_slice(key);
        self.digest.entry(key, value);
        if self.section == Section::Map {
            self.footer.keys += 1;
            self.footer.bytes += (key.len() + value.len()) as u64;
            return sink.entry(key, value).map_err(ReadError::Io);
        }
        self.footer.sessions += 1;
        sink.session(key, value).map_err(ReadError::Io)
    }

    /// The footer that this content should have.
    fn finish(self, header: &Header) -> Result<Footer, ReadError> {
        let (module, module_bytes) = match &header.activation {
            Some(activation) => (activation.digest, activation.bytes),
            None => (*blake3::hash(&[]).as_bytes(), 0),
        };
        if self.module_bytes != module_bytes || self.module.finalize() != module {
            return damaged("the module in it is not the one it names");
        }
        if self.pieces_bytes != header.pieces.map_or(0, |p| p.bytes) {
            return damaged("the pieces of a module in it aren't all there");
        }
        Ok(Footer { blocks: self.blocks, digest: self.digest.finish(), ..self.footer })
    }
}

fn check_module_bytes(bytes: u64) -> Result<(), ReadError> {
    if bytes > MODULE_BYTES_MAX { damaged("the module in it is longer than any can be") } else { Ok(()) }
}
