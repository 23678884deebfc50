//! A tunnel stream as a byte stream for the I/O of a nested tunnel.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use byte_relay::{Chunks, StreamEnd};
use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::Stream;
use crate::tunnel::StreamGuard;

/// A tunnel stream that implements `AsyncRead` and `AsyncWrite`.
pub(crate) struct StreamIo {
    stream: Stream,
    unread: Chunks,
    _guard: Option<StreamGuard>,
}

impl StreamIo {
    pub(super) fn new(stream: Stream, guard: Option<StreamGuard>) -> Self {
        Self {
            stream,
            unread: Chunks::default(),
            _guard: guard,
        }
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unread.is_empty() {
            match ready!(this.stream.poll_read(cx)) {
                Ok(Some(bytes)) => this.unread = bytes,
                // A peer that has sent everything may also reset its stream in order.
                Ok(None) | Err(StreamEnd::Finished) => return Poll::Ready(Ok(())),
                Err(StreamEnd::Reset(error)) => return Poll::Ready(Err(error)),
            }
        }
        let mut taken = 0;
        while !this.unread.is_empty() && to.remaining() > 0 {
            let chunk = this.unread.chunk();
            let read = chunk.len().min(to.remaining());
            to.put_slice(&chunk[..read]);
            this.unread.advance(read);
            taken += read;
        }
        this.unread.detach(); // the rest may be part of a block that tunnels read into
        this.stream.handle.taken(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let stream = &self.stream;
        let sent = ready!(stream.handle.poll_send(cx, bytes));
        Poll::Ready(sent.map_err(|end| match stream.end(end) {
            StreamEnd::Finished => io::ErrorKind::BrokenPipe.into(),
            StreamEnd::Reset(error) => error,
        }))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // the outer tunnel flushes on its own
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.handle.finish();
        Poll::Ready(Ok(()))
    }
}
