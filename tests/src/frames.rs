//! HTTP/2 frame by frame, for peers that see what is on the wire, or do what no library would.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// What a client begins with.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Kinds of frames (RFC 9113 section 6).
pub const HEADERS: u8 = 1;
/// Ends a stream at once.
pub const RST_STREAM: u8 = 3;
/// What one end takes.
pub const SETTINGS: u8 = 4;
/// Is anybody there?
pub const PING: u8 = 6;
/// No more streams.
pub const GOAWAY: u8 = 7;
/// More may be sent.
pub const WINDOW_UPDATE: u8 = 8;
/// Flag of SETTINGS and PING.
pub const ACK: u8 = 1;
/// Flag of HEADERS: they are whole.
pub const END_HEADERS: u8 = 4;

/// One frame.
#[derive(Debug)]
pub struct Frame {
    /// Its kind.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// As it goes over the wire.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The next one.
///
/// # Errors
/// When the connection ends.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let mut head = [0; 9];
    from.read_exact(&mut head).await?;
    let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap()];
    from.read_exact(&mut payload).await?;
    Ok(Frame { kind: head[3], flags: head[4], payload })
}

/// The pairs of a SETTINGS frame.
pub fn settings(frame: &Frame) -> Vec<(u16, u32)> {
    let pairs = frame.payload.chunks_exact(6);
    pairs.map(|p| (u16::from_be_bytes([p[0], p[1]]), u32::from_be_bytes([p[2], p[3], p[4], p[5]]))).collect()
}

/// CONNECT to an authority, as a block of headers without compression.
pub fn connect_block(authority: &str) -> Vec<u8> {
    let mut block = vec![];
    for (index, value) in [(2, "CONNECT"), (1, authority)] {
        // A literal that is not kept, with a name of the static table: `:method`, `:authority`.
        block.extend([index, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    }
    block
}
