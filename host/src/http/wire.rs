//! A client's socket as hyper sees it: tells the pulse about progress, and hands out the bytes that were read to find
//! out the protocol. Decides nothing. `connection.rs` comes next.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::pulse::Pulse;

pub(super) struct Wire {
    socket: TokioIo<TcpStream>,
    /// Read before hyper began; comes first.
    prefix: Bytes,
    pulse: Arc<Pulse>,
}

impl Wire {
    pub(super) fn new(socket: TcpStream, prefix: Bytes, pulse: Arc<Pulse>) -> Self {
        Wire { socket: TokioIo::new(socket), prefix, pulse }
    }

    pub(super) fn into_socket(self) -> TcpStream {
        self.socket.into_inner()
    }

    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Ready(Ok(bytes)) => self.pulse.wrote(*bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.pulse.write_blocked(),
        }
        result
    }
}

impl Read for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.prefix.has_remaining() {
            let bytes = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..bytes]);
            self.prefix.advance(bytes);
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.socket).poll_read(cx, buf))?;
        self.pulse.received();
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    /// hyper asks for this when its own buffer is empty.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pulse.flushed();
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    /// Left to `connection.rs`, which has to linger first.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
