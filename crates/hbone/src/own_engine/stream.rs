//! A tunnel stream, which splits into a source and a sink of bytes.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::task::{Context, Poll};

use byte_relay::{Chunks, Side, Sink, Source, StreamEnd};
use bytes::Buf;
use h2::Reason;
use tunnel::{Change, ErrorCode};

use super::connection::{End, StreamHandle};
use super::io::StreamIo;
use crate::held::HeldBytes;
use crate::stream_end::Resets;
use crate::tunnel::StreamGuard;

/// The most that is passed on at once, in bytes.
const MOST: usize = 256 * 1024;

/// A bidirectional tunnel stream.
pub(crate) struct Stream {
    pub(super) handle: StreamHandle,
    resets: Resets,
    /// The number of bytes that fill a packet of the tunnel.
    write_size: usize,
}

/// The receiving half of a tunnel stream.
pub(crate) struct StreamSource {
    stream: Rc<Stream>,
    held: Rc<dyn HeldBytes>,
    /// How many bytes of the queue `held` knows.
    noted: usize,
    /// How many bytes `held` knows of those that were read and not passed on yet.
    kept: usize,
}

/// The sending half of a tunnel stream.
pub(crate) struct StreamSink {
    stream: Rc<Stream>,
}

impl Stream {
    pub(super) fn new(handle: StreamHandle, resets: Resets, write_size: usize) -> Self {
        Self {
            handle,
            resets,
            write_size,
        }
    }

    pub(crate) fn write_size(&self) -> usize {
        self.write_size
    }

    /// Converts into a byte stream, which counts as open until it is dropped.
    pub(crate) fn into_io(self, guard: Option<StreamGuard>) -> StreamIo {
        StreamIo::new(self, guard)
    }

    /// Converts into a side that can be relayed. `held` takes account of the bytes that wait.
    pub(crate) fn into_side(self, held: Rc<dyn HeldBytes>) -> Side<StreamSource, StreamSink> {
        let stream = Rc::new(self);
        let source = StreamSource {
            stream: stream.clone(),
            held,
            noted: 0,
            kept: 0,
        };
        Side {
            source,
            sink: StreamSink { stream },
        }
    }

    /// Receives the next bytes, `None` at a half-close, and then the end.
    pub(super) fn poll_read(&self, cx: &Context<'_>) -> Poll<Result<Option<Chunks>, StreamEnd>> {
        let read = self.handle.poll(cx, |stream| {
            let read = match stream.received.pop_many(MOST) {
                Some(bytes) => Some(Ok(Some(bytes))),
                None if stream.has_finished => Some(Ok(None)),
                None => stream.end.clone().map(Err),
            };
            stream.is_awaited = read.is_none();
            read
        });
        read.map_err(|end| self.end(end))
    }

    /// The end of the stream as a whole, in the terms of the relay.
    pub(super) fn end(&self, end: End) -> StreamEnd {
        let change = match end {
            End::Stream(change) => change,
            End::Tunnel(ended) => return StreamEnd::Reset(ended.error()),
        };
        let text = match change {
            Change::Finished { code } => self.reset(code, true),
            Change::Reset { code, has_data } => self.reset(code, has_data),
            Change::Failed(violation) => Some(violation.to_string()),
            Change::Refused => Some("the peer refused the stream".to_owned()),
            Change::Ended | Change::Credit => None,
        };
        text.map_or(StreamEnd::Finished, |text| {
            StreamEnd::Reset(io::Error::new(ErrorKind::ConnectionReset, text))
        })
    }

    /// Describes an RST_STREAM of the peer, unless it is an orderly end.
    fn reset(&self, code: ErrorCode, has_data: bool) -> Option<String> {
        let is_orderly = self.resets.is_orderly_end(reason(code), has_data);
        (!is_orderly).then(|| format!("stream error received: {code}"))
    }
}

/// The code in the type of the interface.
pub(super) fn reason(code: ErrorCode) -> Reason {
    code.0.into()
}

impl Source for StreamSource {
    async fn read(&mut self, _size: usize) -> Result<Option<Chunks>, StreamEnd> {
        let read = poll_fn(|cx| self.stream.poll_read(cx)).await;
        if let Ok(Some(bytes)) = &read {
            let noted = bytes.len().min(self.noted);
            self.noted -= noted;
            self.held.remove(noted);
        }
        read
    }

    /// Copies what may be parts of the blocks that tunnels read into, and takes account of it.
    fn keep(&mut self, bytes: &mut Chunks) {
        bytes.detach();
        let more = bytes.len().saturating_sub(self.kept);
        if more > 0 {
            self.kept += more;
            self.held.add(more);
        }
    }

    /// Takes account of what arrives while the application does not read.
    async fn fill(&mut self) -> Infallible {
        loop {
            let noted = self.noted;
            let more = poll_fn(|cx| {
                self.stream.handle.poll(cx, |stream| {
                    let waiting = stream.received.len();
                    (waiting > noted).then(|| waiting - noted)
                })
            });
            let more = more.await;
            self.noted += more;
            self.held.add(more);
        }
    }

    fn discard(&mut self) {
        let discarded = self.stream.handle.discard_received();
        debug_assert!(discarded >= self.noted);
        (self.noted, self.kept) = (0, 0);
    }

    /// Opens the receive window by the given number of bytes. Only now that they have been passed
    /// on, so that the peer sends no faster than the application reads.
    fn release(&mut self, bytes: usize) {
        let kept = std::mem::take(&mut self.kept);
        if kept > 0 {
            self.held.remove(kept);
        }
        self.stream.handle.taken(bytes);
    }
}

impl StreamSink {
    /// Resets both directions at once, as RFC 9113 section 8.5 requires for a TCP reset.
    fn reset_now(&mut self) {
        let handle = &self.stream.handle;
        handle.update(|tunnel| tunnel.reset(handle.id(), ErrorCode::CONNECT_ERROR));
    }
}

impl Sink for StreamSink {
    fn write_size(&self) -> usize {
        self.stream.write_size
    }

    async fn write(&mut self, bytes: &mut Chunks) -> Result<(), StreamEnd> {
        let sent = poll_fn(|cx| self.stream.handle.poll_send(cx, bytes.chunk())).await;
        bytes.advance(sent.map_err(|end| self.stream.end(end))?);
        Ok(())
    }

    fn finish(&mut self) {
        self.stream.handle.finish();
    }

    async fn ended(&mut self) -> StreamEnd {
        let end = poll_fn(|cx| self.stream.handle.poll_end(cx)).await;
        self.stream.end(end)
    }

    /// What was written precedes the end: the tunnel sends it in order.
    async fn close(&mut self, end: &StreamEnd) {
        match end {
            StreamEnd::Finished => self.finish(),
            StreamEnd::Reset(_) => self.reset_now(),
        }
    }

    async fn reset(&mut self) {
        self.reset_now();
    }
}
