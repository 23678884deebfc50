//! A connection.

mod control;
mod core;
mod drain;
mod headers;
mod incoming_data;
mod liveness;
mod outgoing;
mod receive;
mod state;

use http::{HeaderMap, StatusCode};

use self::core::Core;
use crate::config::{Config, Role};
use crate::error::{ErrorCode, StreamId, Violation};
use crate::event::Event;
use crate::frame::FrameHead;

pub use outgoing::{OpenError, SendError};
pub use state::{H2State, UnknownVersion};

/// One end of an HTTP/2 connection, without I/O and clocks.
///
/// * The caller passes what it receives to [`receive`](Self::receive) until there are no more
///   events, and calls [`tick`](Self::tick) at [`deadline_ms`](Self::deadline_ms).
/// * After each call of any method it sends [`output`](Self::output), as soon as the transport
///   accepts it: these frames wait for nothing, and nothing is sent before them.
/// * DATA is written by the caller: [`data_head`](Self::data_head) returns its header and accounts
///   for it.
/// * A stream begins with [`open`](Self::open) or [`Event::Request`] and exists until the caller
///   releases it, however it ends.
/// * Times are milliseconds of any clock that does not go back, the same one for the whole life of
///   the connection, also in another process.
#[derive(Debug)]
pub struct Connection {
    core: Core,
}

impl Connection {
    /// Begins a connection on a transport that was established now.
    pub fn new(role: Role, config: Config, now_ms: u64) -> Self {
        Self {
            core: Core::new(role, config, now_ms),
        }
    }

    /// Handles the received bytes `input[*at..]` until an event occurs, and advances `at` past what
    /// it has handled. Returns `None` when all bytes are handled without another event. The range
    /// of [`Event::Data`] refers to `input`.
    ///
    /// # Errors
    /// If the peer violated the protocol. The connection has then failed: the caller sends the
    /// output, which ends with GOAWAY, and closes the transport.
    pub fn receive(
        &mut self,
        input: &[u8],
        at: &mut usize,
        now_ms: u64,
    ) -> Result<Option<Event>, Violation> {
        self.core.receive(input, at, now_ms)
    }

    /// The frames to send, without DATA.
    pub fn output(&self) -> &[u8] {
        &self.core.out
    }

    /// Removes the first bytes of the output, which the transport has accepted.
    pub fn sent(&mut self, bytes: usize) {
        self.core.out.drain(..bytes.min(self.core.out.len()));
    }

    /// Takes the whole output.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.core.out)
    }

    /// Pings the peer or detects that it is unresponsive, if it is time to.
    ///
    /// # Errors
    /// If the connection has failed.
    pub fn tick(&mut self, now_ms: u64) -> Result<(), Violation> {
        self.core.tick(now_ms)
    }

    /// When [`tick`](Self::tick) is due; `None` if the connection has failed.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.core.deadline_ms()
    }

    /// When anything was last received.
    pub fn heard_ms(&self) -> u64 {
        self.core.liveness.heard_ms()
    }

    /// Pings the peer now, because something waits for it. Its answer changes
    /// [`heard_ms`](Self::heard_ms).
    pub fn ping(&mut self, now_ms: u64) {
        self.core.send_ping(now_ms);
    }

    /// How many streams a client may have open: none once either end closes the connection.
    pub fn max_streams(&self) -> u32 {
        self.core.max_streams()
    }

    /// The number of streams that are not closed.
    pub fn open_streams(&self) -> usize {
        self.core.open_streams()
    }

    /// Opens a stream to `authority`. Data may be sent before the response. `headers` are sent as
    /// they are; those of a single connection, such as `connection`, are not allowed in HTTP/2.
    ///
    /// # Errors
    /// Why the stream cannot be opened here.
    pub fn open(&mut self, authority: &str, headers: &HeaderMap) -> Result<StreamId, OpenError> {
        self.core.open(authority, headers)
    }

    /// Answers a request, with a status of at least 200. `end_stream`: this side sends no data.
    ///
    /// # Errors
    /// If the stream is closed or was answered.
    pub fn respond(
        &mut self,
        id: StreamId,
        status: StatusCode,
        headers: &HeaderMap,
        end_stream: bool,
    ) -> Result<(), SendError> {
        self.core.respond(id, status, headers, end_stream)
    }

    /// Answers a request with a status, ends the stream and releases it.
    pub fn reject(&mut self, id: StreamId, status: StatusCode) {
        let _ = self.core.respond(id, status, &HeaderMap::new(), true); // closed: nothing to answer
        self.core.release(id);
    }

    /// How many bytes of data one frame may have now. 0 if a window is closed,
    /// [`Change::Credit`](crate::Change::Credit) follows when it opens; or if the stream is closed
    /// for sending.
    pub fn capacity(&mut self, id: StreamId) -> u32 {
        self.core.capacity(id)
    }

    /// Whether data may be sent on a stream, now or when a window opens.
    pub fn can_send(&self, id: StreamId) -> bool {
        self.core.can_send(id)
    }

    /// The header of a DATA frame, behind which the caller sends `length` bytes of data. An empty
    /// frame needs no capacity. `end_stream`: this side has finished.
    ///
    /// # Errors
    /// If the frame must not be sent, now or at all.
    pub fn data_head(
        &mut self,
        id: StreamId,
        length: u32,
        end_stream: bool,
    ) -> Result<[u8; FrameHead::SIZE], SendError> {
        self.core.data_head(id, length, end_stream)
    }

    /// The application has taken received data: the peer may send as much again.
    pub fn taken(&mut self, id: StreamId, bytes: usize, now_ms: u64) {
        self.core.take(id, bytes, now_ms);
    }

    /// By how many bytes all receive windows together may grow beyond the configuration. The
    /// window of a stream grows while it limits the peer and the application keeps up. A smaller
    /// budget does not reduce windows that have grown.
    pub fn set_growth_budget(&mut self, bytes: u64) {
        self.core.growth_budget = bytes;
    }

    /// Resets a stream, unless it is closed. Data of the peer is discarded from now on.
    pub fn reset(&mut self, id: StreamId, code: ErrorCode) {
        self.core.reset_stream(id, code);
    }

    /// Ends the caller's interest in a stream, of which no more events follow. Resets it unless it
    /// is closed: without an error if this side has finished, as cancelled otherwise.
    pub fn release(&mut self, id: StreamId) {
        self.core.release(id);
    }

    /// Announces that no more streams are accepted. A server accepts those that are on the way
    /// until the client has read the announcement, and then announces the last one.
    pub fn drain(&mut self) {
        self.core.start_drain();
    }

    /// Whether the transport may close after the output was sent: the connection has failed, or
    /// no stream is open and none can follow.
    pub fn is_finished(&self) -> bool {
        self.core.has_finished()
    }

    /// Converts the connection into a value that another process may continue with. Data of
    /// earlier events is the caller's to keep.
    pub fn freeze(self) -> H2State {
        H2State::new(self.core)
    }

    /// Continues a connection.
    ///
    /// # Errors
    /// If another version of the software has written the state.
    pub fn thaw(state: H2State) -> Result<Self, UnknownVersion> {
        state.into_core().map(|core| Self { core })
    }
}
