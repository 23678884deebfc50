//! Streams.

use connect_h2::{ErrorCode, OpenError, SendError, StreamId};
use http::{HeaderMap, StatusCode};

use crate::tunnel::{End, Tunnel};

impl Tunnel {
    /// Opens a stream to `authority`. Data may be sent before the response. `headers` are sent as
    /// they are; those of a single connection, such as `connection`, are not allowed in HTTP/2.
    ///
    /// # Errors
    /// Why the stream cannot be opened here.
    pub fn open(&mut self, authority: &str, headers: &HeaderMap) -> Result<StreamId, OpenError> {
        if self.has_ended() {
            return Err(OpenError::Closing);
        }
        self.http2.open(authority, headers)
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
        self.http2.respond(id, status, headers, end_stream)
    }

    /// Answers a request with a status, ends the stream and releases it.
    pub fn reject(&mut self, id: StreamId, status: StatusCode) {
        self.http2.reject(id, status);
    }

    /// How many bytes of data may be sent on a stream at once. 0 if it is closed for sending; if a
    /// window is closed, and [`Change::Credit`](crate::Change::Credit) follows when it opens; or if
    /// the tunnel [is full](Self::is_full), until bytes were [`sent`](Self::sent).
    pub fn capacity(&mut self, id: StreamId) -> usize {
        if self.has_ended() || self.is_full() {
            return 0;
        }
        self.http2.capacity(id) as usize
    }

    /// Sends the first bytes of `data` in as many frames as they need, and returns how many there
    /// were: fewer than all when the [`capacity`](Self::capacity) is used up. `end_stream`: this
    /// side has finished once all are accepted.
    ///
    /// # Errors
    /// If the stream is closed for sending, or is not answered yet.
    pub fn send(
        &mut self,
        id: StreamId,
        data: &[u8],
        end_stream: bool,
    ) -> Result<usize, SendError> {
        self.send_within(Self::capacity, id, data, end_stream)
    }

    /// Sends data as [`send`](Self::send), also if the tunnel [is full](Self::is_full): the peer
    /// reads nothing, and the caller limits how much more waits for it.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_beyond(&mut self, id: StreamId, data: &[u8]) -> Result<usize, SendError> {
        let capacity = |tunnel: &mut Self, id| tunnel.http2.capacity(id) as usize;
        let sent = self.send_within(capacity, id, data, false)?;
        self.beyond += sent;
        Ok(sent)
    }

    fn send_within(
        &mut self,
        capacity: impl Fn(&mut Self, StreamId) -> usize,
        id: StreamId,
        data: &[u8],
        end_stream: bool,
    ) -> Result<usize, SendError> {
        let mut accepted = 0;
        loop {
            let rest = &data[accepted..];
            let length = rest.len().min(capacity(self, id));
            let is_last = end_stream && length == rest.len();
            if length == 0 && !is_last {
                let is_open = !self.has_ended() && self.http2.can_send(id);
                return if is_open {
                    Ok(accepted)
                } else {
                    Err(SendError::Closed)
                };
            }
            self.send_frame(id, &rest[..length], is_last)?;
            accepted += length;
            if accepted == data.len() {
                return Ok(accepted);
            }
        }
    }

    /// Gathers a DATA frame, for which there is capacity.
    fn send_frame(&mut self, id: StreamId, data: &[u8], is_last: bool) -> Result<(), SendError> {
        if self.has_ended() {
            return Err(SendError::Closed);
        }
        let gathered = self.gather_control();
        let head = self.http2.data_head(id, data.len() as u32, is_last)?;
        let gathered = gathered
            .and_then(|()| self.gather(&head))
            .and_then(|()| self.gather(data));
        gathered.map_err(|error| {
            self.fail(error.into());
            SendError::Closed
        })
    }

    /// The application has taken received data: the peer may send as much again.
    pub fn taken(&mut self, id: StreamId, bytes: usize, now_ms: u64) {
        self.http2.taken(id, bytes, now_ms);
    }

    /// Resets a stream, unless it is closed. Data of the peer is discarded from now on.
    pub fn reset(&mut self, id: StreamId, code: ErrorCode) {
        self.http2.reset(id, code);
    }

    /// Ends the caller's interest in a stream, of which no more events follow. Resets it unless it
    /// is closed: without an error if this side has finished, as cancelled otherwise.
    pub fn release(&mut self, id: StreamId) {
        self.http2.release(id);
    }

    /// Announces that no more streams are accepted. A server accepts those that are on the way.
    pub fn drain(&mut self) {
        self.http2.drain();
    }

    /// Whether the tunnel should [`close`](Self::close): it has failed, or no stream is open and
    /// none can follow.
    pub fn is_finished(&self) -> bool {
        self.failure().is_some() || self.http2.is_finished()
    }

    /// How many streams a client may have open: none once either end closes the tunnel.
    pub fn max_streams(&self) -> usize {
        if self.has_ended() {
            return 0;
        }
        self.http2.max_streams() as usize
    }

    /// The number of streams that are not closed.
    pub fn open_streams(&self) -> usize {
        self.http2.open_streams()
    }

    /// By how many bytes all receive windows together may grow beyond the configuration.
    pub fn set_growth_budget(&mut self, bytes: u64) {
        self.http2.set_growth_budget(bytes);
    }

    /// When anything was last received.
    pub fn heard_ms(&self) -> u64 {
        self.http2.heard_ms()
    }

    /// Pings the peer now, because something waits for it. Its answer changes
    /// [`heard_ms`](Self::heard_ms).
    pub fn ping(&mut self, now_ms: u64) {
        self.http2.ping(now_ms);
    }

    /// Whether nothing more is sent but what ends the tunnel.
    fn has_ended(&self) -> bool {
        self.end != End::Open
    }
}
