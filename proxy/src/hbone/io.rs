//! A stream of a tunnel as a connection, for a tunnel within it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client::StreamCount;
use super::stream::{HboneStream, into_io};

/// As much as is sent at once, in bytes.
const LARGEST_WRITE: usize = 64 * 1024;

/// A stream of a tunnel, and its place among the streams of that tunnel.
pub(crate) struct HboneIo {
    send: SendStream<Bytes>,
    recv: RecvStream,
    unread: Bytes,
    _count: StreamCount,
}

impl HboneIo {
    pub(crate) fn new(stream: HboneStream, count: StreamCount) -> Self {
        let (send, recv) = stream.into_parts();
        Self { send, recv, unread: Bytes::new(), _count: count }
    }
}

impl AsyncRead for HboneIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            match ready!(this.recv.poll_data(cx)) {
                Some(Ok(bytes)) => this.unread = bytes,
                Some(Err(e)) if e.is_reset() && e.reason() == Some(Reason::NO_ERROR) => return Poll::Ready(Ok(())),
                Some(Err(e)) => return Poll::Ready(Err(into_io(e))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = this.unread.len().min(to.remaining());
        to.put_slice(&this.unread[..taken]);
        this.unread.advance(taken);
        // Fails only when the stream is over, and then nothing more will come.
        let _ = this.recv.flow_control().release_capacity(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let wanted = bytes.len().min(LARGEST_WRITE);
        this.send.reserve_capacity(wanted);
        let mut granted = this.send.capacity();
        while granted == 0 {
            granted = match ready!(this.send.poll_capacity(cx)) {
                Some(granted) => granted.map_err(into_io)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let sent = granted.min(wanted);
        this.send.send_data(Bytes::copy_from_slice(&bytes[..sent]), false).map_err(into_io)?;
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // the outer tunnel sends by itself
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().send.send_data(Bytes::new(), true).map_err(into_io))
    }
}
