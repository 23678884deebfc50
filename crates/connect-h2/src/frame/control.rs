//! The contents of all frames but DATA.

use crate::error::{ErrorCode, ProtocolError, StreamId, Violation};
use crate::frame::{FrameHead, Kind, flag};

/// A frame other than DATA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The beginning of a request, a response or trailers.
    Headers {
        /// The stream.
        stream: StreamId,
        /// Whether the sender has finished.
        end_stream: bool,
        /// Whether the block is complete.
        end_headers: bool,
        /// The block, or its beginning.
        fragment: &'a [u8],
    },
    /// More of a header block.
    Continuation {
        /// The stream.
        stream: StreamId,
        /// Whether the block is complete.
        end_headers: bool,
        /// The next part of the block.
        fragment: &'a [u8],
    },
    /// The end of both directions of a stream.
    Reset {
        /// The stream.
        stream: StreamId,
        /// The reason.
        code: ErrorCode,
    },
    /// The settings of the peer: identifiers and values, 6 bytes each.
    Settings(&'a [u8]),
    /// The peer has applied our settings.
    SettingsAck,
    /// A request for an answer.
    Ping([u8; 8]),
    /// An answer.
    Pong([u8; 8]),
    /// No streams after `last` are processed.
    GoAway {
        /// The last stream that may be processed.
        last: StreamId,
        /// The reason.
        code: ErrorCode,
    },
    /// A window opens.
    WindowUpdate {
        /// The stream, or the connection.
        stream: StreamId,
        /// The number of bytes, at least 1.
        increment: u32,
    },
    /// A frame without effect: PRIORITY or an extension.
    Ignored,
}

impl<'a> Frame<'a> {
    /// Parses the payload of a frame other than DATA.
    ///
    /// # Errors
    /// If the frame is invalid whatever the state of the connection is.
    pub fn parse(head: FrameHead, payload: &'a [u8]) -> Result<Self, ProtocolError> {
        let stream = head.stream;
        let of_stream = match head.kind {
            Kind::Settings | Kind::Ping | Kind::GoAway => Some(false),
            Kind::Headers | Kind::Continuation | Kind::ResetStream | Kind::Priority => Some(true),
            Kind::PushPromise => return Err(Violation::PushPromise.into()),
            Kind::WindowUpdate | Kind::Data | Kind::Unknown(_) => None,
        };
        if of_stream.is_some_and(|of_stream| of_stream == stream.is_connection()) {
            return Err(Violation::UnexpectedStream.into());
        }
        let end_headers = head.has(flag::END_HEADERS);
        Ok(match head.kind {
            Kind::Headers => Self::Headers {
                stream,
                end_stream: head.has(flag::END_STREAM),
                end_headers,
                fragment: header_fragment(head, payload)?,
            },
            Kind::Continuation => Self::Continuation {
                stream,
                end_headers,
                fragment: payload,
            },
            Kind::ResetStream => Self::Reset {
                stream,
                code: ErrorCode(u32::from_be_bytes(exactly(payload)?)),
            },
            Kind::Settings if head.has(flag::ACK) => {
                exactly::<0>(payload)?;
                Self::SettingsAck
            }
            Kind::Settings if payload.len().is_multiple_of(6) => Self::Settings(payload),
            Kind::Settings => return Err(Violation::InvalidFrameLength.into()),
            Kind::Ping if head.has(flag::ACK) => Self::Pong(exactly(payload)?),
            Kind::Ping => Self::Ping(exactly(payload)?),
            Kind::GoAway => Self::GoAway {
                last: StreamId(first_word(payload)? & StreamId::MAX.0),
                code: ErrorCode(first_word(&payload[4..])?),
            },
            Kind::WindowUpdate => {
                let word = u32::from_be_bytes(exactly(payload)?);
                let increment = word & 0x7fff_ffff;
                match (increment, stream.is_connection()) {
                    (0, true) => return Err(Violation::EmptyWindowUpdate.into()),
                    (0, false) => {
                        let empty = Violation::EmptyWindowUpdate;
                        return Err(ProtocolError::Stream(stream, empty));
                    }
                    _ => Self::WindowUpdate { stream, increment },
                }
            }
            Kind::Priority => {
                exactly::<5>(payload)?;
                Self::Ignored
            }
            Kind::Data | Kind::PushPromise | Kind::Unknown(_) => Self::Ignored,
        })
    }
}

/// Removes padding and priority.
fn header_fragment(head: FrameHead, payload: &[u8]) -> Result<&[u8], Violation> {
    let mut rest = payload;
    let mut padding = 0;
    if head.has(flag::PADDED) {
        let (length, after) = rest.split_first().ok_or(Violation::InvalidFrameLength)?;
        padding = usize::from(*length);
        rest = after;
    }
    if head.has(flag::PRIORITY) {
        rest = rest.get(5..).ok_or(Violation::InvalidFrameLength)?;
    }
    let length = rest.len().checked_sub(padding);
    Ok(&rest[..length.ok_or(Violation::InvalidPadding)?])
}

fn exactly<const N: usize>(payload: &[u8]) -> Result<[u8; N], Violation> {
    payload
        .try_into()
        .map_err(|_| Violation::InvalidFrameLength)
}

fn first_word(payload: &[u8]) -> Result<u32, Violation> {
    let word = payload.first_chunk::<4>();
    Ok(u32::from_be_bytes(
        *word.ok_or(Violation::InvalidFrameLength)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Result<Frame<'_>, Violation> {
        let head = FrameHead {
            length: payload.len() as u32,
            kind,
            flags,
            stream: StreamId(stream),
        };
        Frame::parse(head, payload).map_err(|e| match e {
            ProtocolError::Connection(violation) | ProtocolError::Stream(_, violation) => violation,
        })
    }

    #[test]
    fn padding_and_priority_are_removed_from_headers() {
        let flags = flag::PADDED | flag::PRIORITY | flag::END_HEADERS;
        let parsed = parse(Kind::Headers, flags, 1, b"\x02ppppphead00");
        let Ok(Frame::Headers { fragment, .. }) = parsed else {
            panic!("{parsed:?}");
        };
        assert_eq!(fragment, b"head");
        let all_padding = parse(Kind::Headers, flag::PADDED, 1, b"\x0200");
        assert!(matches!(
            all_padding,
            Ok(Frame::Headers { fragment: [], .. })
        ));
        for (flags, payload) in [
            (flag::PADDED, &b"\x0300"[..]),
            (flag::PADDED, b""),
            (flag::PRIORITY, b"pppp"),
        ] {
            assert!(parse(Kind::Headers, flags, 1, payload).is_err());
        }
    }

    #[test]
    fn frames_of_a_wrong_length_are_rejected() {
        for (kind, flags, stream, payload) in [
            (Kind::Ping, 0, 0, &[0; 7][..]),
            (Kind::Settings, 0, 0, &[0; 7]),
            (Kind::Settings, flag::ACK, 0, &[0; 6]),
            (Kind::GoAway, 0, 0, &[0; 7]),
            (Kind::GoAway, 0, 0, &[]),
            (Kind::ResetStream, 0, 1, &[0; 5]),
            (Kind::WindowUpdate, 0, 1, &[0; 3]),
            (Kind::Priority, 0, 1, &[0; 4]),
        ] {
            let parsed = parse(kind, flags, stream, payload);
            assert_eq!(parsed, Err(Violation::InvalidFrameLength), "{kind:?}");
        }
    }

    #[test]
    fn frames_on_a_wrong_stream_are_rejected() {
        for (kind, stream, payload) in [
            (Kind::Ping, 1, &[0; 8][..]),
            (Kind::Settings, 1, &[]),
            (Kind::GoAway, 1, &[0; 8]),
            (Kind::Headers, 0, &[]),
            (Kind::Continuation, 0, &[]),
            (Kind::ResetStream, 0, &[0; 4]),
            (Kind::Priority, 0, &[0; 5]),
        ] {
            let parsed = parse(kind, 0, stream, payload);
            assert_eq!(parsed, Err(Violation::UnexpectedStream), "{kind:?}");
        }
    }

    #[test]
    fn push_promises_and_empty_window_updates_are_rejected() {
        let pushed = parse(Kind::PushPromise, 0, 1, &[0; 4]);
        assert_eq!(pushed, Err(Violation::PushPromise));
        for stream in [0, 1] {
            let update = parse(Kind::WindowUpdate, 0, stream, &[0x80, 0, 0, 0]);
            assert_eq!(update, Err(Violation::EmptyWindowUpdate));
        }
    }
}
