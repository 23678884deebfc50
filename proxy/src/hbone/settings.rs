//! The numbers of our HTTP/2, measured: 64 KiB frames, and windows such that a slow stream never stalls its siblings.

/// Streams on a tunnel that we accept.
pub(super) const MAX_STREAMS_ACCEPTED: u32 = 200;
/// Unsent bytes that a stream may hold.
pub(super) const SEND_BUFFER: usize = 256 * 1024;
/// Request headers, as the interface defines them.
pub(super) const MAX_REQUEST_HEADERS: u32 = 64 * 1024;
/// Response headers, as the interface defines them.
pub(super) const MAX_RESPONSE_HEADERS: u32 = 16 * 1024;

/// What may be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Http2 {
    /// Streams on a tunnel that we open, at most; a peer may allow fewer.
    pub(crate) streams: u32,
    /// Receive window of a stream in bytes: what one stream may have in flight.
    pub(crate) stream_window: u32,
    /// Receive window of a connection: all streams at once, so that those that nobody reads leave room for the others.
    pub(crate) connection_window: u32,
    /// Largest DATA frame that we receive.
    pub(crate) frame: u32,
}

impl Http2 {
    /// Small DATA frames that may wait unread on a connection, in the engine's unit; the default would let a single stream
    /// of one-byte writes end its whole connection.
    pub(super) fn small_frame_budget(&self) -> usize {
        self.connection_window as usize
    }
}
