//! A tunnel stream, which splits into a source and a sink of bytes.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io;
use std::rc::Rc;

use byte_relay::{Chunks, STALLED, Side, Sink, Source, StreamEnd};
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::io::StreamIo;
use super::unsent::Unsent;
use crate::byte_queue::ByteQueue;
use crate::held::HeldBytes;
use crate::stream_end::Resets;
use crate::tunnel::StreamGuard;

/// A bidirectional tunnel stream.
pub(crate) struct Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    resets: Resets,
    /// The number of bytes that fill a packet of the tunnel.
    write_size: usize,
}

/// The receiving half of a tunnel stream.
pub(crate) struct StreamSource {
    recv: RecvStream,
    shared: Rc<Shared>,
    /// Bytes that were received while the application did not read.
    queue: ByteQueue,
    /// Takes account of the queue.
    held: Rc<dyn HeldBytes>,
    /// What follows the queue.
    ended: Option<Result<(), h2::Error>>,
}

/// The sending half of a tunnel stream.
pub(crate) struct StreamSink {
    send: SendStream<Bytes>,
    shared: Rc<Shared>,
    write_size: usize,
    unsent: Unsent,
    /// Completes when everything up to the half-close was sent; `None` before the half-close.
    finished: Option<oneshot::Receiver<Infallible>>,
}

/// What both halves know about the peer.
struct Shared {
    resets: Resets,
    /// Whether the peer has sent data.
    has_data: Cell<bool>,
}

impl Stream {
    pub(super) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        resets: Resets,
        write_size: usize,
    ) -> Self {
        Self {
            send,
            recv,
            resets,
            write_size,
        }
    }

    pub(crate) fn write_size(&self) -> usize {
        self.write_size
    }

    /// Converts into a byte stream, which counts as open until it is dropped.
    pub(crate) fn into_io(self, guard: Option<StreamGuard>) -> StreamIo {
        StreamIo::new(self.send, self.recv, guard)
    }

    /// Converts into a side that can be relayed. `held` takes account of the bytes that wait.
    pub(crate) fn into_side(self, held: Rc<dyn HeldBytes>) -> Side<StreamSource, StreamSink> {
        let shared = Rc::new(Shared {
            resets: self.resets,
            has_data: Cell::new(false),
        });
        let source = StreamSource {
            recv: self.recv,
            shared: shared.clone(),
            queue: ByteQueue::default(),
            held,
            ended: None,
        };
        let sink = StreamSink {
            send: self.send,
            shared,
            write_size: self.write_size,
            unsent: Unsent::default(),
            finished: None,
        };
        Side { source, sink }
    }
}

impl StreamSource {
    /// Receives the next bytes, or the end and then `None`.
    async fn receive(&mut self) -> Option<Bytes> {
        loop {
            match self.recv.data().await {
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => {
                    self.shared.has_data.set(true);
                    return Some(bytes);
                }
                Some(Err(e)) => self.ended = Some(Err(e)),
                None => self.ended = Some(Ok(())),
            }
            if self.ended.is_some() {
                return None;
            }
        }
    }
}

impl Source for StreamSource {
    async fn read(&mut self, _size: usize) -> Result<Option<Chunks>, StreamEnd> {
        loop {
            if let Some(bytes) = self.queue.pop() {
                self.held.remove(bytes.len());
                return Ok(Some(bytes.into()));
            }
            match self.ended.take() {
                Some(Ok(())) => return Ok(None),
                Some(Err(e)) => return Err(self.shared.end(e)),
                None => {}
            }
            if let Some(bytes) = self.receive().await {
                return Ok(Some(bytes.into()));
            }
        }
    }

    /// Receives until the peer half-closes or ends the stream, then waits forever: frames that h2
    /// holds cost far more memory than their bytes, and h2 ends the tunnel when there are too many
    /// of them.
    async fn fill(&mut self) -> Infallible {
        while self.ended.is_none() {
            if let Some(bytes) = self.receive().await {
                self.held.add(bytes.len());
                self.queue.push(bytes);
            }
        }
        pending().await
    }

    fn discard(&mut self) {
        self.queue = ByteQueue::default();
    }

    /// Opens the receive window by the given number of bytes. Only now that they have been passed
    /// on, so that the peer sends no faster than the application reads.
    fn release(&mut self, bytes: usize) {
        // Fails only if the stream is closed, and then no more data follows.
        let _ = self.recv.flow_control().release_capacity(bytes);
    }
}

impl StreamSink {
    /// Waits until everything that was written has been handed to the tunnel's connection.
    async fn flush(&mut self) {
        match &mut self.finished {
            Some(sent) => drop(sent.await), // an error: the marker was sent and dropped
            None => self.unsent.until_sent().await,
        }
    }

    /// Resets both directions at once, as RFC 9113 section 8.5 requires for a TCP reset. Data that
    /// is not sent yet is lost.
    fn reset_now(&mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }
}

impl Sink for StreamSink {
    fn write_size(&self) -> usize {
        self.write_size
    }

    async fn write(&mut self, bytes: &mut Chunks) -> Result<(), StreamEnd> {
        loop {
            self.send.reserve_capacity(bytes.len());
            let granted = match self.send.capacity() {
                0 => match poll_fn(|cx| self.send.poll_capacity(cx)).await {
                    Some(granted) => granted.map_err(|e| self.shared.end(e))?,
                    None => return Err(self.ended().await),
                },
                granted => granted,
            };
            if granted > 0 {
                let chunk = bytes.split_first(granted);
                return match self.send.send_data(self.unsent.track(chunk), false) {
                    Ok(()) => Ok(()),
                    Err(_) => Err(self.ended().await),
                };
            }
        }
    }

    fn finish(&mut self) {
        let (marker, sent) = marker();
        self.finished = Some(sent);
        let _ = self.send.send_data(marker, true); // an error is reported by `ended`
    }

    async fn ended(&mut self) -> StreamEnd {
        match poll_fn(|cx| self.send.poll_reset(cx)).await {
            Ok(reason) => self.shared.end(reason.into()),
            Err(e) => self.shared.end(e),
        }
    }

    async fn close(&mut self, end: &StreamEnd) {
        match end {
            StreamEnd::Finished => self.finish(),
            StreamEnd::Reset(_) => {
                // The peer may not accept the rest: the reset then replaces it.
                let _ = timeout(STALLED, self.flush()).await;
                self.reset_now();
            }
        }
    }

    async fn reset(&mut self) {
        self.reset_now();
    }
}

impl Shared {
    fn end(&self, error: h2::Error) -> StreamEnd {
        let is_orderly = match error.reason() {
            Some(reason) if !error.is_go_away() => {
                self.resets.is_orderly_end(reason, self.has_data.get())
            }
            _ => false,
        };
        if is_orderly {
            StreamEnd::Finished
        } else {
            StreamEnd::Reset(into_io(error))
        }
    }
}

/// An empty chunk whose receiver fails when the chunk, and thus all chunks before it, was sent.
fn marker() -> (Bytes, oneshot::Receiver<Infallible>) {
    struct Marker(#[expect(dead_code)] oneshot::Sender<Infallible>);
    impl AsRef<[u8]> for Marker {
        fn as_ref(&self) -> &[u8] {
            &[]
        }
    }
    let (sender, sent) = oneshot::channel();
    (Bytes::from_owner(Marker(sender)), sent)
}

/// Converts what h2 has received: the next bytes, or `None` if the peer has finished.
pub(crate) fn received(next: Option<Result<Bytes, h2::Error>>) -> io::Result<Option<Bytes>> {
    match next.transpose() {
        // A peer that has sent everything may close its stream this way.
        Err(e) if e.is_reset() && e.reason() == Some(Reason::NO_ERROR) => Ok(None),
        next => next.map_err(into_io),
    }
}

pub(crate) fn into_io(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error
            .into_io()
            .unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    let kind = if error.is_reset() {
        io::ErrorKind::ConnectionReset
    } else {
        io::ErrorKind::BrokenPipe
    };
    io::Error::new(kind, error)
}
