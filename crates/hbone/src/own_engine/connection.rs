//! A tunnel that its driver and its streams share.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http::HeaderMap;
use tokio::time::Instant;
use tunnel::{
    Change, Event, OpenError, RequestHead, ResponseHead, SendError, StreamId, Tunnel, Violation,
};

use super::Ended;
use super::wakers::Wakers;
use crate::byte_queue::ByteQueue;

/// How many bytes a stream may send while the peer reads nothing. The application has then done its
/// part, and the rest does not depend on its connection.
const STALLED_BYTES: usize = 256 * 1024;

/// A tunnel, shared by its driver and its streams. Whatever changes it wakes the others.
pub(super) struct Connection {
    state: RefCell<State>,
    began: Instant,
}

pub(super) struct State {
    pub(super) tunnel: Tunnel,
    streams: HashMap<StreamId, StreamState>,
    /// The task of the driver, if it waits.
    driver: Option<Waker>,
    /// Streams that wait until bytes were sent.
    blocked: Wakers,
    /// Whether the connection has not accepted any output for a while.
    is_stalled: bool,
    /// Requests that wait until the peer accepts another stream.
    room: Wakers,
    /// How the tunnel has ended.
    pub(super) ended: Option<Ended>,
}

/// What was received on a stream, and not handled yet.
#[derive(Default)]
pub(super) struct StreamState {
    pub(super) received: ByteQueue,
    /// Whether a reader waits, which takes everything as soon as it is woken.
    pub(super) is_awaited: bool,
    pub(super) response: Option<ResponseHead>,
    /// Whether the peer has half-closed, behind what is in the queue.
    pub(super) has_finished: bool,
    /// Whether this side has half-closed.
    is_finished_here: bool,
    /// The number of bytes that were sent while the tunnel is stalled.
    sent_stalled: usize,
    /// How the stream has ended as a whole.
    pub(super) end: Option<End>,
    wakers: Wakers,
}

/// How a stream has ended as a whole.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// By the peer, or because the peer violated the protocol.
    Stream(Change),
    /// With the tunnel.
    Tunnel(Ended),
}

/// A request that was received.
pub(super) struct Request {
    pub(super) handle: StreamHandle,
    pub(super) head: RequestHead,
}

/// A stream that exists until the handle is dropped, which resets it unless it is closed.
pub(super) struct StreamHandle {
    connection: Rc<Connection>,
    id: StreamId,
}

impl Connection {
    /// `begin` creates the tunnel at a time in milliseconds.
    pub(super) fn new<E>(begin: impl FnOnce(u64) -> Result<Tunnel, E>) -> Result<Rc<Self>, E> {
        let began = Instant::now();
        let state = State {
            tunnel: begin(0)?,
            streams: HashMap::new(),
            driver: None,
            blocked: Wakers::default(),
            is_stalled: false,
            room: Wakers::default(),
            ended: None,
        };
        let state = RefCell::new(state);
        Ok(Rc::new(Self { state, began }))
    }

    /// The time of the tunnel's clock.
    pub(super) fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// The instant at which the tunnel's clock has this time.
    pub(super) fn instant(&self, ms: u64) -> Instant {
        self.began + std::time::Duration::from_millis(ms)
    }

    /// Changes the tunnel, and wakes the driver if there is something to send or the tunnel is
    /// finished.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.borrow_mut();
        let changed = change(&mut state);
        if state.tunnel.unsent() > 0 || state.tunnel.is_finished() {
            state.wake_driver();
        }
        changed
    }

    /// As [`update`](Self::update), by the driver itself.
    pub(super) fn drive<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.borrow_mut())
    }

    /// The driver waits to be woken.
    pub(super) fn set_driver(&self, cx: &Context<'_>) {
        self.state.borrow_mut().driver = Some(cx.waker().clone());
    }

    /// Handles an event, except [`Event::Data`].
    pub(super) fn handle(self: &Rc<Self>, state: &mut State, event: Event) -> Option<Request> {
        match event {
            Event::Settings => state.room.wake(),
            Event::GoAway { .. } => state.room.wake(),
            Event::Request { id, head } => {
                state.streams.insert(id, StreamState::default());
                let connection = self.clone();
                let handle = StreamHandle { connection, id };
                return Some(Request { handle, head });
            }
            Event::Response { id, head } => {
                state.change_stream(id, |stream| stream.response = Some(head));
            }
            Event::Data { .. } => {}
            Event::Stream { id, change } => {
                state.change_stream(id, |stream| stream.note(change));
                state.room.wake();
            }
        }
        None
    }

    /// Notes that the tunnel has ended, for all its streams.
    pub(super) fn end(&self, ended: &Ended) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.tunnel.close();
        state.ended.get_or_insert_with(|| ended.clone());
        for stream in state.streams.values_mut() {
            if !(stream.has_finished && stream.is_finished_here) {
                stream.end.get_or_insert(End::Tunnel(ended.clone()));
                stream.wakers.wake();
            }
        }
        state.room.wake();
        state.blocked.wake();
    }

    /// Opens a stream as soon as the peer accepts another one.
    pub(super) fn poll_open(
        self: &Rc<Self>,
        cx: &Context<'_>,
        authority: &str,
        headers: &HeaderMap,
    ) -> Poll<Result<StreamHandle, OpenError>> {
        let opened = self.update(|state| {
            let opened = state.tunnel.open(authority, headers);
            match opened {
                Ok(id) => {
                    state.streams.insert(id, StreamState::default());
                }
                Err(OpenError::NoRoom) => state.room.add(cx),
                Err(_) => {}
            }
            opened
        });
        match opened {
            Err(OpenError::NoRoom) => Poll::Pending,
            opened => Poll::Ready(opened.map(|id| StreamHandle {
                connection: self.clone(),
                id,
            })),
        }
    }
}

impl State {
    /// Notes that the first bytes of the output were sent.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.tunnel.sent(bytes);
        if std::mem::take(&mut self.is_stalled) {
            self.streams.values_mut().for_each(|s| s.sent_stalled = 0);
        }
        if !self.tunnel.is_full() {
            self.blocked.wake();
        }
    }

    /// Notes that the connection has not accepted any output for a while. Each stream may send a
    /// limited number of bytes meanwhile.
    pub(super) fn stall(&mut self) {
        if !std::mem::replace(&mut self.is_stalled, true) {
            self.blocked.wake();
        }
    }

    /// Sends the first of some bytes; 0 if none are accepted now.
    fn send(&mut self, id: StreamId, data: &[u8]) -> Result<usize, SendError> {
        if !(self.is_stalled && self.tunnel.is_full()) {
            return self.tunnel.send(id, data, false);
        }
        let stream = self.streams.get_mut(&id).ok_or(SendError::Closed)?;
        let room = STALLED_BYTES.saturating_sub(stream.sent_stalled);
        let sent = self.tunnel.send_beyond(id, &data[..data.len().min(room)])?;
        stream.sent_stalled += sent;
        Ok(sent)
    }

    /// Whether the reader of a stream waits for data.
    pub(super) fn is_awaited(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|s| s.is_awaited)
    }

    /// Appends received data to a stream.
    pub(super) fn deliver(&mut self, id: StreamId, append: impl FnOnce(&mut ByteQueue)) {
        self.change_stream(id, |stream| append(&mut stream.received));
    }

    fn wake_driver(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// Changes what is known about a stream, if the caller has not released it.
    fn change_stream(&mut self, id: StreamId, change: impl FnOnce(&mut StreamState)) {
        if let Some(stream) = self.streams.get_mut(&id) {
            change(stream);
            stream.wakers.wake();
        }
    }
}

impl StreamState {
    fn note(&mut self, change: Change) {
        match change {
            Change::Ended => self.has_finished = true,
            Change::Credit => {}
            Change::Finished { .. }
            | Change::Reset { .. }
            | Change::Refused
            | Change::Failed(_) => {
                self.end.get_or_insert(End::Stream(change));
            }
        }
    }
}

impl StreamHandle {
    pub(super) fn id(&self) -> StreamId {
        self.id
    }

    /// Changes the tunnel.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut Tunnel) -> T) -> T {
        self.connection.update(|state| change(&mut state.tunnel))
    }

    /// Waits until `check` finds what it looks for in the stream.
    pub(super) fn poll<T>(
        &self,
        cx: &Context<'_>,
        check: impl FnOnce(&mut StreamState) -> Option<T>,
    ) -> Poll<T> {
        let mut state = self.connection.state.borrow_mut();
        let stream = state.streams.get_mut(&self.id);
        let stream = stream.expect("a stream exists until its handle is dropped");
        match check(stream) {
            Some(found) => Poll::Ready(found),
            None => {
                stream.wakers.add(cx);
                Poll::Pending
            }
        }
    }

    /// How the stream has ended as a whole.
    pub(super) fn poll_end(&self, cx: &Context<'_>) -> Poll<End> {
        self.poll(cx, |stream| stream.end.clone())
    }

    /// Sends the first of some bytes, at least one, and returns how many.
    pub(super) fn poll_send(&self, cx: &Context<'_>, data: &[u8]) -> Poll<Result<usize, End>> {
        if let Poll::Ready(end) = self.poll_end(cx) {
            return Poll::Ready(Err(end));
        }
        self.connection
            .update(|state| match state.send(self.id, data) {
                Ok(sent) if sent > 0 => Poll::Ready(Ok(sent)),
                // Blocked by a window; or the stream has ended, which is about to be noted.
                _ => {
                    if state.tunnel.is_full() {
                        state.blocked.add(cx);
                    }
                    Poll::Pending
                }
            })
    }

    /// Frees what was received and not read. Returns how many bytes that were.
    pub(super) fn discard_received(&self) -> usize {
        self.connection.drive(|state| {
            let mut discarded = 0;
            state.change_stream(self.id, |stream| {
                discarded = std::mem::take(&mut stream.received).len();
            });
            discarded
        })
    }

    /// Half-closes the stream.
    pub(super) fn finish(&self) {
        self.connection.update(|state| {
            state.change_stream(self.id, |stream| stream.is_finished_here = true);
            // An error: the stream has ended as a whole.
            let _ = state.tunnel.send(self.id, &[], true);
        });
    }

    /// Lets the peer send as much again as was passed on.
    pub(super) fn taken(&self, bytes: usize) {
        let now_ms = self.connection.now_ms();
        self.update(|tunnel| tunnel.taken(self.id, bytes, now_ms));
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        self.connection.update(|state| {
            state.streams.remove(&self.id);
            state.tunnel.release(self.id);
            state.room.wake();
        });
    }
}

/// Whether the peer does not answer pings any more.
pub(super) fn is_unresponsive(tunnel: &Tunnel) -> bool {
    let failure = tunnel.failure();
    failure == Some(tunnel::TunnelError::Http2(Violation::PingTimeout))
}
