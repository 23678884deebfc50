//! HTTP/2 settings. Their defaults were chosen by measurement: 64 KiB frames, and windows large
//! enough that a slow stream never stalls the others.

/// Maximum number of streams on an incoming tunnel. As many as Envoy opens before it has received
/// the settings: a stream that is refused fails the request, which Envoy does not repeat.
pub(crate) const MAX_STREAMS_ACCEPTED: u32 = 1024;
/// Maximum size of request headers, in bytes, like ztunnel's.
pub(crate) const MAX_REQUEST_HEADERS: u32 = 64 * 1024;
/// Maximum size of response headers, in bytes, like ztunnel's.
pub(crate) const MAX_RESPONSE_HEADERS: u32 = 16 * 1024;

/// The configurable HTTP/2 settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2 {
    /// Maximum number of streams on an outgoing tunnel. The peer may set a lower limit.
    pub streams: u32,
    /// Receive window of a stream, in bytes.
    pub stream_window: u32,
    /// Receive window of a connection, in bytes: large enough for all stream windows together, so
    /// that stalled streams do not block the others.
    pub connection_window: u32,
    /// Largest frame accepted, in bytes.
    pub frame: u32,
    /// By how many bytes the windows of all streams of a tunnel may grow while they limit distant
    /// peers. Only the second engine's do.
    pub growth: u64,
}
