//! Frames (RFC 9113 sections 4 and 6): read from any split of the bytes, and written.

mod control;
mod head;
mod read;
pub mod write;

pub use control::Frame;
pub use head::{FrameHead, Kind};
pub use read::{FrameReader, Part};

/// What a client sends first.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Flags of frame headers.
pub mod flag {
    /// Of SETTINGS and PING: an answer.
    pub const ACK: u8 = 0x1;
    /// Of DATA and HEADERS: the sender has finished.
    pub const END_STREAM: u8 = 0x1;
    /// Of HEADERS and CONTINUATION: the header block is complete.
    pub const END_HEADERS: u8 = 0x4;
    /// Of DATA and HEADERS: the payload begins with the length of the padding.
    pub const PADDED: u8 = 0x8;
    /// Of HEADERS: a priority precedes the header block.
    pub const PRIORITY: u8 = 0x20;
}
