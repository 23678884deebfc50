//! The frame header, 9 bytes long.

use serde::{Deserialize, Serialize};

use crate::error::StreamId;

/// A type of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// DATA.
    Data,
    /// HEADERS.
    Headers,
    /// PRIORITY, which is ignored.
    Priority,
    /// RST_STREAM.
    ResetStream,
    /// SETTINGS.
    Settings,
    /// PUSH_PROMISE, which is never allowed.
    PushPromise,
    /// PING.
    Ping,
    /// GOAWAY.
    GoAway,
    /// WINDOW_UPDATE.
    WindowUpdate,
    /// CONTINUATION.
    Continuation,
    /// An extension, which is ignored.
    Unknown(u8),
}

impl Kind {
    const KNOWN: [Self; 10] = [
        Self::Data,
        Self::Headers,
        Self::Priority,
        Self::ResetStream,
        Self::Settings,
        Self::PushPromise,
        Self::Ping,
        Self::GoAway,
        Self::WindowUpdate,
        Self::Continuation,
    ];

    fn from_byte(byte: u8) -> Self {
        let known = Self::KNOWN.get(usize::from(byte));
        known.copied().unwrap_or(Self::Unknown(byte))
    }

    fn to_byte(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Headers => 1,
            Self::Priority => 2,
            Self::ResetStream => 3,
            Self::Settings => 4,
            Self::PushPromise => 5,
            Self::Ping => 6,
            Self::GoAway => 7,
            Self::WindowUpdate => 8,
            Self::Continuation => 9,
            Self::Unknown(byte) => byte,
        }
    }
}

/// A frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameHead {
    /// The length of the payload in bytes, below 2^24.
    pub length: u32,
    /// The type.
    pub kind: Kind,
    /// The flags; those without a meaning for the type are ignored.
    pub flags: u8,
    /// The stream, or the connection.
    pub stream: StreamId,
}

impl FrameHead {
    /// Its size in bytes.
    pub const SIZE: usize = 9;

    /// Parses a frame header. The reserved bit is ignored.
    pub fn parse(bytes: [u8; Self::SIZE]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind: Kind::from_byte(kind),
            flags,
            stream: StreamId(u32::from_be_bytes([s0, s1, s2, s3]) & StreamId::MAX.0),
        }
    }

    /// Encodes the frame header.
    pub fn encode(self) -> [u8; Self::SIZE] {
        let [_, l0, l1, l2] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.0.to_be_bytes();
        let kind = self.kind.to_byte();
        [l0, l1, l2, kind, self.flags, s0, s1, s2, s3]
    }

    /// Whether a flag is set.
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_keeps_its_number() {
        for byte in 0..=u8::MAX {
            assert_eq!(Kind::from_byte(byte).to_byte(), byte);
        }
        assert_eq!(Kind::from_byte(6), Kind::Ping);
        assert_eq!(Kind::from_byte(10), Kind::Unknown(10));
    }

    #[test]
    fn the_header_is_encoded_as_in_the_rfc() {
        let head = FrameHead {
            length: 0x01_02_03,
            kind: Kind::Headers,
            flags: 0x25,
            stream: StreamId(0x0a0b_0c0d),
        };
        let bytes = head.encode();
        assert_eq!(bytes, [1, 2, 3, 1, 0x25, 10, 11, 12, 13]);
        assert_eq!(FrameHead::parse(bytes), head);
        let mut reserved = bytes;
        reserved[5] |= 0x80;
        assert_eq!(FrameHead::parse(reserved), head);
    }
}
