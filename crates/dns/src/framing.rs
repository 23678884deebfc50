//! Messages over TCP, each preceded by its length (RFC 1035 section 4.2.2).

use std::io;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use crate::{DEADLINE, forward};

/// Reads messages, however they are divided into segments.
pub(super) struct MessageReader<R> {
    reader: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: BytesMut::new(),
        }
    }

    /// Reads the next message; `None` at the end of the stream. Cancel safe.
    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(length) = self
                .buffer
                .first_chunk()
                .map(|l| usize::from(u16::from_be_bytes(*l)))
                && self.buffer.len() >= 2 + length
            {
                self.buffer.advance(2);
                return Ok(Some(self.buffer.split_to(length).to_vec()));
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Writes a length-prefixed message.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    // A single write, because some clients expect length and message in one segment.
    let bytes = [&length.to_be_bytes(), message].concat();
    forward::with_deadline(to.write_all(&bytes)).await
}

/// Messages that wait until a connection accepts them, so that a receiver that does not read delays
/// no other one.
pub(super) struct Outgoing<W> {
    writer: W,
    waiting: BytesMut,
    /// When bytes were last accepted, or began to wait.
    since: Instant,
}

impl<W: AsyncWrite + Unpin> Outgoing<W> {
    pub(super) fn new(writer: W) -> Self {
        Self {
            writer,
            waiting: BytesMut::new(),
            since: Instant::now(),
        }
    }

    /// Adds a message. One that is too long for TCP is dropped.
    pub(super) fn push(&mut self, message: &[u8]) {
        let Ok(length) = u16::try_from(message.len()) else {
            return;
        };
        if self.waiting.is_empty() {
            self.since = Instant::now();
        }
        // Contiguous, because some clients expect length and message in one segment.
        self.waiting.reserve(2 + message.len());
        self.waiting.put_u16(length);
        self.waiting.put_slice(message);
    }

    /// Writes what the connection accepts; pending while nothing waits. Cancel safe.
    pub(super) async fn write(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        if self.writer.write_buf(&mut self.waiting).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.since = Instant::now();
        Ok(())
    }

    /// Number of waiting bytes.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// When the receiver is considered gone, if bytes wait.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.since + DEADLINE)
    }
}
