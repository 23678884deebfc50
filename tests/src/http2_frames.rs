//! HTTP/2 frames, for peers that inspect the wire or send what no library would.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The client's connection preface.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Kinds of frames (RFC 9113 section 6).
pub const DATA: u8 = 0;
/// Start of a stream, or an answer to it.
pub const HEADERS: u8 = 1;
/// Aborts a stream.
pub const RST_STREAM: u8 = 3;
/// Parameters of one end.
pub const SETTINGS: u8 = 4;
/// Liveness check.
pub const PING: u8 = 6;
/// Shutdown of the connection: no new streams.
pub const GOAWAY: u8 = 7;
/// Flow-control credit.
pub const WINDOW_UPDATE: u8 = 8;
/// Flag of SETTINGS and PING.
pub const ACK: u8 = 1;
/// Flag of DATA and HEADERS: a half-close.
pub const END_STREAM: u8 = 1;
/// Flag of HEADERS: no CONTINUATION follows.
pub const END_HEADERS: u8 = 4;

/// One frame.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// The stream that it belongs to; 0 for the connection.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Encodes a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Reads the next frame.
///
/// # Errors
/// When the connection is closed.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let mut head = [0; 9];
    from.read_exact(&mut head).await?;
    let mut payload =
        vec![0; usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap()];
    from.read_exact(&mut payload).await?;
    Ok(Frame {
        kind: head[3],
        flags: head[4],
        stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
        payload,
    })
}

/// The identifiers and values of a SETTINGS frame.
pub fn settings(frame: &Frame) -> Vec<(u16, u32)> {
    let pairs = frame.payload.chunks_exact(6);
    pairs
        .map(|p| {
            (
                u16::from_be_bytes([p[0], p[1]]),
                u32::from_be_bytes([p[2], p[3], p[4], p[5]]),
            )
        })
        .collect()
}

/// The uncompressed header block of a CONNECT request.
pub fn connect_block(authority: &str) -> Vec<u8> {
    let mut block = vec![];
    for (index, value) in [(2, "CONNECT"), (1, authority)] {
        // A literal without indexing, with a name from the static table: `:method`, `:authority`.
        block.extend([index, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    }
    block
}
