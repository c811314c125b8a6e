//! A snapshot's content in memory, to become the state machine's. Never compiles the module: `replica.rs` does.

use std::io;

use super::read::Sink;
use super::{Header, Summary};
use crate::state_machine::map::{Entry, Map};

/// The content of a whole snapshot.
pub struct Loaded {
    pub header: Header,
    pub map: Map,
    /// Of the sessions.
    pub records: Map,
    /// Of the active module, if there is one.
    pub module: Vec<u8>,
    /// Bytes of a module that is on its way.
    pub pieces: Vec<u8>,
}

/// Takes all there is.
#[derive(Default)]
pub(super) struct Loading {
    map: Map,
    records: Map,
    module: Vec<u8>,
    pieces: Vec<u8>,
}

impl Loading {
    pub(super) fn finish(self, summary: Summary) -> Loaded {
        let Loading { map, records, module, pieces } = self;
        Loaded { header: summary.header, map, records, module, pieces }
    }
}

impl Sink for Loading {
    fn module(&mut self, part: &[u8]) -> io::Result<()> {
        self.module.extend_from_slice(part);
        Ok(())
    }

    fn pieces(&mut self, part: &[u8]) -> io::Result<()> {
        self.pieces.extend_from_slice(part);
        Ok(())
    }

    fn entry(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.map.insert(Entry::new(key, value));
        Ok(())
    }

    fn session(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.records.insert(Entry::new(key, value));
        Ok(())
    }
}
