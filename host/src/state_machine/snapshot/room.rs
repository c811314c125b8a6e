//! Whether the disk has room for one more snapshot. Asked before one is written or fetched, because a snapshot that fills
//! the disk takes the log's reserve with it, and a log that can't be written ends the node.

use std::fmt;
use std::io;
use std::sync::OnceLock;

/// `Err` says why so many bytes more should not be written now.
pub type HasRoom = Box<dyn Fn(u64) -> Result<(), String> + Send + Sync>;

/// Until it is told whom to ask, there is room.
#[derive(Default)]
pub(super) struct Room(OnceLock<HasRoom>);

impl Room {
    pub(super) fn ask(&self, has_room: HasRoom) {
        assert!(self.0.set(has_room).is_ok(), "set once, when the node starts");
    }

    pub(super) fn check(&self, bytes: u64) -> io::Result<()> {
        let Some(has_room) = self.0.get() else { return Ok(()) };
        has_room(bytes).map_err(|why| io::Error::new(io::ErrorKind::StorageFull, why))
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Room")
    }
}
