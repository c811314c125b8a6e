//! Writes a snapshot from its parts, as they come: header, module, pieces, the map's entries in key order, the sessions'
//! records in key order, footer. Memory is one block, whatever the state's size. Never opens a file: `folder.rs` does.

use std::io::{self, Write};

use super::block::{BlockWriter, DATA_BYTES_MAX, Section, checksum};
use super::read::Sink;
use super::{END, Footer, Header, MAGIC, Summary, VERSION};
use crate::state_machine::Published;
use crate::state_machine::digest::Content;

pub(super) struct Writer<W> {
    out: Counted<W>,
    header: Header,
    blocks: BlockWriter,
    section: Section,
    /// Of the section, not yet in a block.
    data: Vec<u8>,
    digest: Content,
    footer: Footer,
}

/// Knows how much was written.
struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W, header: Header) -> io::Result<Self> {
        let mut out = Counted { out, bytes: 0 };
        let encoded = postcard::to_allocvec(&header).map_err(io::Error::other)?;
        let mut start = Vec::from(MAGIC);
        start.extend(VERSION.to_le_bytes());
        start.extend((encoded.len() as u32).to_le_bytes());
        start.extend(checksum(0, &start, &encoded).to_le_bytes());
        out.write_all(&start)?;
        out.write_all(&encoded)?;
        Ok(Writer {
            blocks: BlockWriter::new(header.id),
            digest: Content::new(&header.facts()),
            header,
            out,
            section: Section::Module,
            data: Vec::with_capacity(DATA_BYTES_MAX),
            footer: Footer::default(),
        })
    }

    /// Footer and trailer. Returns the output and what was written.
    pub(super) fn finish(mut self) -> io::Result<(W, Summary)> {
        self.enter(Section::Footer)?;
        self.footer.blocks = self.blocks.count();
        self.footer.digest = self.digest.finish();
        let encoded = postcard::to_allocvec(&self.footer).map_err(io::Error::other)?;
        self.blocks.write(&mut self.out, Section::Footer, &encoded)?;
        // With its own bytes.
        let length = self.out.bytes + super::TRAILER_BYTES as u64;
        let mut trailer = Vec::from(length.to_le_bytes());
        trailer.extend(checksum(self.header.id, &trailer, END).to_le_bytes());
        trailer.extend(END);
        self.out.write_all(&trailer)?;
        self.out.flush()?;
        Ok((self.out.out, Summary::new(self.header, &self.footer, length)))
    }

    /// Begins a section, unless it is the one that is being written.
    fn enter(&mut self, section: Section) -> io::Result<()> {
        assert!(section >= self.section, "sections are written in their order");
        if section == self.section {
            return Ok(());
        }
        self.flush_block()?;
        if self.section < Section::Sessions && section >= Section::Sessions {
            self.digest.sessions();
        }
        self.section = section;
        Ok(())
    }

    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(DATA_BYTES_MAX - self.data.len()));
            self.data.extend_from_slice(now);
            bytes = later;
            if self.data.len() == DATA_BYTES_MAX {
                self.flush_block()?;
            }
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.put(&(key.len() as u32).to_le_bytes())?;
        self.put(&(value.len() as u32).to_le_bytes())?;
        self.put(key)?;
        self.put(value)?;
        self.digest.entry(key, value);
        Ok(())
    }

    fn flush_block(&mut self) -> io::Result<()> {
        if !self.data.is_empty() {
            self.blocks.write(&mut self.out, self.section, &self.data)?;
            self.data.clear();
        }
        Ok(())
    }
}

impl<W: Write> Sink for Writer<W> {
    fn module(&mut self, part: &[u8]) -> io::Result<()> {
        self.enter(Section::Module)?;
        self.put(part)
    }

    fn pieces(&mut self, part: &[u8]) -> io::Result<()> {
        self.enter(Section::Pieces)?;
        self.put(part)
    }

    fn entry(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.enter(Section::Map)?;
        self.footer.keys += 1;
        self.footer.bytes += (key.len() + value.len()) as u64;
        self.record(key, value)
    }

    fn session(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.enter(Section::Sessions)?;
        self.footer.sessions += 1;
        self.record(key, value)
    }
}

/// Writes a whole state.
pub(super) fn write_state<W: Write>(out: W, header: Header, state: &Published) -> io::Result<(W, Summary)> {
    let mut writer = Writer::new(out, header)?;
    if let Some(active) = &state.active {
        writer.module(&active.module)?;
    }
    if let Some(pieces) = &state.pieces {
        writer.pieces(&pieces.bytes)?;
    }
    for entry in state.map.iter() {
        writer.entry(entry.key(), entry.value())?;
    }
    for record in state.sessions.records().iter() {
        writer.session(record.key(), record.value())?;
    }
    writer.finish()
}
