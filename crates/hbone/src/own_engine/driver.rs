//! Moves bytes between a tunnel and its connection.

use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until, timeout};
use tunnel::{Event, Input, Received, RecordError, StreamId, TunnelError, Violation};

use super::connection::{Connection, Request, State, is_unresponsive};
use super::{Ended, blocks};
use crate::byte_queue::SMALL;
use crate::peer_alert::rejected_by_peer;
use crate::silence::log_unresponsive;
use crate::stream::ByteStream;

/// How many bytes are read before other tasks have their turn, the readers among them: well below a
/// millisecond of work.
const READ_PER_TURN: usize = blocks::BLOCK / 4;
/// How long the connection may accept nothing before the tunnel counts as stalled, in milliseconds.
const STALLED_MS: u64 = 250;
/// How long the end of a tunnel waits for the peer's.
const LINGER: Duration = Duration::from_secs(5);

/// Drives a tunnel. Its streams end when it is dropped.
pub(super) struct Driver {
    io: Box<dyn ByteStream>,
    connection: Rc<Connection>,
    /// When the tunnel's time has an effect.
    timer: Pin<Box<Sleep>>,
    /// Data that was received: where it is in the block, for readers that wait.
    pieces: Vec<(StreamId, Range<usize>)>,
    /// Whether the input was handled once.
    has_begun: bool,
    /// Whether the peer has sent any frame.
    has_heard: bool,
    /// When the connection has stopped to accept output.
    blocked_ms: Option<u64>,
    /// Why nothing can be written any more.
    write_error: Option<io::Error>,
    /// Whether this side of the connection was shut down.
    is_shut_down: bool,
}

/// How much a tunnel has received.
enum Progress {
    /// This many bytes, and there may be more.
    Some(usize),
    /// The peer has closed the tunnel in order.
    Closed,
}

/// The peer has closed the tunnel in order.
struct Closed;

/// What was read.
enum Read {
    /// This many bytes.
    Some(usize),
    /// The connection has ended.
    End,
}

impl Driver {
    pub(super) fn new(io: Box<dyn ByteStream>, connection: Rc<Connection>) -> Self {
        let timer = Box::pin(sleep_until(connection.instant(0)));
        Self {
            io,
            connection,
            timer,
            pieces: Vec::new(),
            has_begun: false,
            has_heard: false,
            blocked_ms: None,
            write_error: None,
            is_shut_down: false,
        }
    }

    /// Drives the tunnel to `peer` until it closes, and passes on its requests.
    pub(super) async fn run(
        mut self,
        peer: impl Display,
        mut handle: impl FnMut(Request),
    ) -> io::Result<()> {
        let ended = poll_fn(|cx| self.poll_turn(cx, &mut handle)).await;
        if self
            .connection
            .drive(|state| is_unresponsive(&state.tunnel))
        {
            log_unresponsive(peer);
        }
        self.end_streams(ended.as_ref().err());
        // Without an answer, what is left is lost.
        let _ = timeout(LINGER, poll_fn(|cx| self.poll_close(cx))).await;
        ended
    }

    fn end_streams(&self, error: Option<&io::Error>) {
        let ended = match error {
            Some(error) => Ended::new(error),
            None => Ended {
                kind: io::ErrorKind::BrokenPipe,
                text: "the tunnel closed".into(),
            },
        };
        self.connection.end(&ended);
    }

    /// Receives, and sends once what all streams have sent. Completes when the tunnel ends.
    fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        handle: &mut impl FnMut(Request),
    ) -> Poll<io::Result<()>> {
        self.connection.set_driver(cx);
        let (mut is_ready, mut read) = (true, 0);
        while read < READ_PER_TURN {
            match self.poll_receive(cx, handle) {
                Poll::Ready(Ok(Progress::Some(bytes))) => read += bytes.max(1),
                Poll::Ready(Ok(Progress::Closed)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    is_ready = false;
                    break;
                }
            }
        }
        self.poll_tick(cx)?;
        let was_blocked = self.blocked_ms.is_some();
        let flushed = self.poll_flush(cx);
        if self.blocked_ms.is_some() && !was_blocked {
            self.poll_tick(cx)?; // waits for the time when the tunnel is stalled
        }
        match flushed {
            // What the peer has sent before it closed the connection is read first.
            Poll::Ready(Err(error)) => self.write_error = Some(error),
            Poll::Ready(Ok(())) if self.is_finished() => return Poll::Ready(Ok(())),
            _ => {}
        }
        if let Some(error) = self.connection.drive(|state| state.tunnel.failure()) {
            return Poll::Ready(Err(self.describe(error)));
        }
        if is_ready {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Whether no stream is open and none can follow.
    fn is_finished(&self) -> bool {
        self.connection
            .drive(|state| state.tunnel.failure().is_none() && state.tunnel.is_finished())
    }

    /// Reads once, and handles what is complete.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        handle: &mut impl FnMut(Request),
    ) -> Poll<io::Result<Progress>> {
        let mut requests = Vec::new();
        let received = self.poll_receive_requests(cx, &mut requests);
        requests.into_iter().for_each(handle);
        received
    }

    fn poll_receive_requests(
        &mut self,
        cx: &mut Context<'_>,
        requests: &mut Vec<Request>,
    ) -> Poll<io::Result<Progress>> {
        let connection = self.connection.clone();
        connection.drive(|state| {
            let mut block = blocks::take();
            let mut input = state.tunnel.input(&mut block);
            let read = self.poll_read(cx, &mut input);
            // The first frames may have arrived with the handshake.
            let received = if read.is_ready() || !self.has_begun {
                self.has_begun = true;
                self.handle_input(state, &mut input, requests)
            } else {
                Ok(None)
            };
            state.tunnel.hold(input);
            let block = block.freeze();
            for (id, range) in self.pieces.drain(..) {
                state.deliver(id, |queue| queue.push(block.slice(range)));
            }
            blocks::put(block);
            let received = match received {
                Ok(None) => match ready!(read)? {
                    Read::Some(bytes) => Ok(Progress::Some(bytes)),
                    Read::End => state.tunnel.end_of_input().map(|()| Progress::Closed),
                },
                Ok(Some(Closed)) => Ok(Progress::Closed),
                Err(error) => Err(error),
            };
            Poll::Ready(received.map_err(|error| self.describe(error)))
        })
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, input: &mut Input<'_>) -> Poll<io::Result<Read>> {
        let mut space = ReadBuf::new(input.space());
        let is_full = space.remaining() == 0;
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut space))?;
        let length = space.filled().len();
        input.fill(length);
        Poll::Ready(Ok(if length > 0 || is_full {
            Read::Some(length)
        } else {
            Read::End
        }))
    }

    /// Handles all of the input that is complete, except pieces for readers.
    fn handle_input(
        &mut self,
        state: &mut State,
        input: &mut Input<'_>,
        requests: &mut Vec<Request>,
    ) -> Result<Option<Closed>, TunnelError> {
        let now_ms = self.connection.now_ms();
        loop {
            match state.tunnel.receive(input, now_ms)? {
                Received::Event(event) => {
                    self.has_heard = true;
                    match event {
                        Event::Data { id, range } => self.handle_data(state, input, id, range),
                        event => requests.extend(self.connection.handle(state, event)),
                    }
                }
                Received::NeedMore => return Ok(None),
                Received::Closed => return Ok(Some(Closed)),
            }
        }
    }

    /// Passes data on as a part of the block if a reader is about to take it. Otherwise copies it,
    /// so that data that waits keeps no more memory than its length.
    fn handle_data(
        &mut self,
        state: &mut State,
        input: &Input<'_>,
        id: StreamId,
        range: Range<usize>,
    ) {
        let is_first = !self.pieces.iter().any(|(other, _)| *other == id);
        if is_first && (range.len() < SMALL || !state.is_awaited(id)) {
            state.deliver(id, |queue| queue.copy(input.data(range)));
        } else {
            self.pieces.push((id, range));
        }
    }

    /// Lets the tunnel do what is due, and waits for what is due next.
    fn poll_tick(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let connection = self.connection.clone();
        while let Some(due_ms) = connection.drive(|state| state.tunnel.deadline_ms()) {
            let stalled_ms = self.blocked_ms.map(|since| since + STALLED_MS);
            let deadline_ms = stalled_ms.map_or(due_ms, |stalled| stalled.min(due_ms));
            let deadline = connection.instant(deadline_ms);
            if deadline < self.timer.deadline() {
                self.timer.as_mut().reset(deadline);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                break;
            }
            let now_ms = connection.now_ms();
            if now_ms < deadline_ms {
                self.timer.as_mut().reset(deadline);
                continue;
            }
            if stalled_ms.is_some_and(|stalled| now_ms >= stalled) {
                connection.drive(State::stall);
                self.blocked_ms = Some(now_ms); // until then nothing more is due
            }
            if now_ms >= due_ms {
                let ticked = connection.drive(|state| {
                    state.tunnel.release_memory();
                    state.tunnel.tick(now_ms)
                });
                ticked.map_err(|error| self.describe(error))?;
            }
        }
        Ok(())
    }

    /// Sends the output. Completes when all of it is sent.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write_error.is_some() {
            return Poll::Pending;
        }
        let connection = self.connection.clone();
        connection.drive(|state| {
            loop {
                let output = state.tunnel.output();
                if output.is_empty() {
                    self.blocked_ms = None;
                    return Poll::Ready(Ok(()));
                }
                let Poll::Ready(sent) = Pin::new(&mut self.io).poll_write(cx, output) else {
                    self.blocked_ms.get_or_insert_with(|| connection.now_ms());
                    return Poll::Pending;
                };
                match sent? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    sent => {
                        self.blocked_ms = None;
                        state.sent(sent);
                    }
                }
            }
        })
    }

    /// Sends what is left, ends this side of the connection, and waits for the peer's end: if the
    /// socket were closed before the peer has everything, the kernel would discard the rest as soon
    /// as the peer sends anything.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write_error.is_none() && !self.is_shut_down {
            ready!(self.poll_flush(cx))?;
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            self.is_shut_down = true;
        }
        let mut ignored = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut ignored);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// The error of a tunnel, in the terms of the connection.
    fn describe(&mut self, error: TunnelError) -> io::Error {
        let kind = match error {
            // In TLS 1.3 a server rejects the client's certificate only when the client has
            // completed its handshake.
            TunnelError::Tls(RecordError::PeerAlert(alert)) if !self.has_heard => {
                return rejected_by_peer(AlertDescription::from(alert.0));
            }
            TunnelError::Tls(RecordError::Truncated) => match self.write_error.take() {
                Some(error) => return error,
                None => io::ErrorKind::UnexpectedEof,
            },
            TunnelError::Http2(Violation::PingTimeout | Violation::SettingsTimeout) => {
                io::ErrorKind::TimedOut
            }
            TunnelError::Http2(_) => io::ErrorKind::InvalidData,
            TunnelError::Tls(_) | TunnelError::Seal(_) | TunnelError::Unread => {
                io::ErrorKind::Other
            }
        };
        io::Error::new(kind, error)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.end_streams(None);
    }
}
