//! The numbers of our HTTP/2, measured: 64 KiB frames, and windows such that a slow stream never stalls its siblings.

/// Streams on a tunnel that we accept.
pub(super) const MAX_STREAMS_ACCEPTED: u32 = 200;
/// Streams on a tunnel that we open, at most; a peer may allow fewer.
pub(super) const MAX_STREAMS_OPENED: usize = 100;
/// Receive window of a stream in bytes: what one stream may have in flight.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
/// Receive window of a connection: all streams at once, so that those that nobody reads leave room for the others.
pub(super) const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS_ACCEPTED;
/// Largest DATA frame that we receive.
pub(super) const MAX_FRAME: u32 = 64 * 1024;
/// Unsent bytes that a stream may hold.
pub(super) const SEND_BUFFER: usize = 256 * 1024;
/// Request headers, as the interface defines them.
pub(super) const MAX_REQUEST_HEADERS: u32 = 64 * 1024;
/// Response headers, as the interface defines them.
pub(super) const MAX_RESPONSE_HEADERS: u32 = 16 * 1024;
/// Small DATA frames that may wait unread on a connection, in the engine's unit; the default would let a single stream
/// of one-byte writes end its whole connection.
pub(super) const SMALL_FRAME_BUDGET: usize = CONNECTION_WINDOW as usize;
