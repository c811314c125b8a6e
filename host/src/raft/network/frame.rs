//! Frames on an upgraded peer connection: `u32` length (of what follows), `u8` kind, body. Bodies are lists of
//! `Bytes`, written with one vectored write, so that a batch is not copied to be sent. Knows no Raft.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// A frame that claims more is refused, before memory is taken for it. Twice what openraft may put in one message.
pub const FRAME_BYTES_MAX: usize = 128 << 20;
/// At least this much room is made for a read.
const READ_BYTES: usize = 64 << 10;
/// A smaller body is copied out of the read buffer. Entries stay in memory for a while: a slice would keep all of the
/// buffer with it, and every read would need a new one.
const COPIED_BYTES_MAX: usize = 32 << 10;

pub struct Frame {
    pub kind: u8,
    pub body: Bytes,
}

pub struct FrameReader {
    io: OwnedReadHalf,
    buffer: BytesMut,
}

impl FrameReader {
    /// `read_ahead` is what HTTP had read beyond the upgrade.
    pub fn new(io: OwnedReadHalf, read_ahead: Bytes) -> Self {
        FrameReader { io, buffer: BytesMut::from(read_ahead) }
    }

    /// The next frame; `UnexpectedEof` when the peer is gone. Cancel-safe: a partly read frame stays buffered.
    pub async fn next(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn buffered(&mut self) -> io::Result<Option<Frame>> {
        let Some(length) = self.buffer.get(..4) else {
            self.buffer.reserve(READ_BYTES);
            return Ok(None);
        };
        let length = u32::from_le_bytes(length.try_into().expect("4 bytes")) as usize;
        if length == 0 || length > FRAME_BYTES_MAX {
            let text = format!("a peer sent a frame of {length} bytes; 1 to {FRAME_BYTES_MAX} are allowed");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if self.buffer.len() < 4 + length {
            self.buffer.reserve((4 + length - self.buffer.len()).max(READ_BYTES));
            return Ok(None);
        }
        let kind = self.buffer[4];
        self.buffer.advance(5);
        let body = if length <= COPIED_BYTES_MAX {
            let body = Bytes::copy_from_slice(&self.buffer[..length - 1]);
            self.buffer.advance(length - 1);
            body
        } else {
            self.buffer.split_to(length - 1).freeze()
        };
        Ok(Some(Frame { kind, body }))
    }
}

pub struct FrameWriter {
    io: OwnedWriteHalf,
}

impl FrameWriter {
    pub fn new(io: OwnedWriteHalf) -> Self {
        FrameWriter { io }
    }

    /// Writes all frames with as few system calls as the kernel allows. Not cancel-safe: a dropped call may leave
    /// half a frame behind, so the connection must be dropped with it.
    pub async fn write(&mut self, frames: &mut Outgoing) -> io::Result<()> {
        self.io.write_all_buf(frames).await
    }
}

/// Frames that wait to be written.
#[derive(Default)]
pub struct Outgoing {
    parts: VecDeque<Bytes>,
    remaining: usize,
}

impl Outgoing {
    pub fn push(&mut self, kind: u8, body: impl IntoIterator<Item = Bytes>) {
        let at = self.parts.len();
        let mut length = 1;
        for part in body.into_iter().filter(|p| !p.is_empty()) {
            length += part.len();
            self.parts.push_back(part);
        }
        let mut head = [0; 5];
        let stated = u32::try_from(length).expect("openraft and the batcher bound a message far below 4 GiB");
        head[..4].copy_from_slice(&stated.to_le_bytes());
        head[4] = kind;
        self.parts.insert(at, Bytes::copy_from_slice(&head));
        self.remaining += 4 + length;
    }
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |b| b)
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let mut n = 0;
        for (slot, part) in out.iter_mut().zip(&self.parts) {
            *slot = IoSlice::new(part);
            n += 1;
        }
        n
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining);
        self.remaining -= count;
        while count > 0 {
            let front = self.parts.front_mut().expect("remaining counts what is in parts");
            if front.len() > count {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.parts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (FrameWriter, FrameReader, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let a = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (b, _) = listener.accept().await.unwrap();
        let (c, d) = {
            let c = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            (c, listener.accept().await.unwrap().0)
        };
        let (_, writer) = a.into_split();
        let (reader, _) = b.into_split();
        (FrameWriter::new(writer), FrameReader::new(reader, Bytes::new()), c, d)
    }

    #[tokio::test]
    async fn frames_of_many_parts_arrive_whole_and_in_order() {
        let (mut writer, mut reader, _c, _d) = pair().await;
        let big = Bytes::from(vec![7u8; 3 << 20]);
        let mut out = Outgoing::default();
        out.push(1, [Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(b"c")]);
        out.push(2, (0..100).map(|_| big.slice(..30_000)));
        out.push(3, []);
        let send = async { writer.write(&mut out).await.unwrap() };
        let receive = async {
            let f = reader.next().await.unwrap();
            assert_eq!((f.kind, &f.body[..]), (1, &b"abc"[..]));
            let f = reader.next().await.unwrap();
            assert_eq!((f.kind, f.body.len()), (2, 3_000_000));
            let f = reader.next().await.unwrap();
            assert_eq!((f.kind, f.body.len()), (3, 0));
        };
        tokio::join!(send, receive);
    }

    #[tokio::test]
    async fn a_frame_that_claims_too_much_is_refused() {
        let (_w, _r, mut raw, other) = pair().await;
        let (reader, _keep) = other.into_split();
        let mut reader = FrameReader::new(reader, Bytes::new());
        raw.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        let error = reader.next().await.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
