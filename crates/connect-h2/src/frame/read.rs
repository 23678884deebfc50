//! Reads frames from bytes that arrive in any pieces.

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{StreamId, Violation};
use crate::frame::{FrameHead, Kind, PREFACE, flag};

/// Reads frames. DATA is passed on piece by piece without a copy; other frames are collected if
/// they arrive in pieces.
#[derive(Debug, Serialize, Deserialize)]
pub struct FrameReader {
    at: Position,
    /// The largest payload accepted, in bytes.
    max_frame: u32,
    /// The largest payload of frames that are collected, in bytes.
    max_collected: u32,
}

/// Where in the stream of frames the next byte is.
#[derive(Debug, Serialize, Deserialize)]
enum Position {
    /// In the client's preface, of which this many bytes have arrived.
    Preface(usize),
    /// In a frame header, of which this many bytes have arrived.
    Head([u8; FrameHead::SIZE], usize),
    /// In the payload of a frame that is collected.
    Payload(FrameHead, Vec<u8>),
    /// In a DATA frame.
    Data(DataFrame),
    /// In a frame that is ignored, with this many bytes left.
    Ignored(u32),
}

/// The rest of a DATA frame.
#[derive(Debug, Serialize, Deserialize)]
struct DataFrame {
    stream: StreamId,
    end_stream: bool,
    /// Whether the length of the padding is still to come.
    is_padding_unknown: bool,
    data: u32,
    padding: u32,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A frame other than DATA.
    Frame(FrameHead, Cow<'a, [u8]>),
    /// A DATA frame begins. Its whole length counts for flow control.
    DataHead {
        /// The stream, never the connection.
        stream: StreamId,
        /// The length of data and padding, in bytes.
        length: u32,
    },
    /// Data at this range of the input, never empty.
    Data(StreamId, Range<usize>),
    /// The DATA frame is complete.
    DataEnd {
        /// The stream.
        stream: StreamId,
        /// Whether the sender has finished.
        end_stream: bool,
    },
    /// A frame without effect begins: PRIORITY or an extension.
    Ignored,
}

impl FrameReader {
    /// Reads frames of at most `max_frame` bytes; except DATA, of at most `max_collected`. If
    /// `expects_preface`, the preface of a client comes first.
    pub fn new(expects_preface: bool, max_frame: u32, max_collected: u32) -> Self {
        let at = if expects_preface {
            Position::Preface(0)
        } else {
            Position::next_frame()
        };
        Self {
            at,
            max_frame,
            max_collected: max_collected.min(max_frame),
        }
    }

    /// Whether the client's preface is incomplete.
    pub fn is_in_preface(&self) -> bool {
        matches!(self.at, Position::Preface(_))
    }

    /// Reads on from `input[*at..]` and advances `at`; `None` if there is nothing more.
    ///
    /// # Errors
    /// If the bytes are no frames, or a frame is too large.
    pub fn read<'a>(
        &mut self,
        input: &'a [u8],
        at: &mut usize,
    ) -> Result<Option<Part<'a>>, Violation> {
        loop {
            let rest = &input[*at..];
            match &mut self.at {
                Position::Preface(arrived) => {
                    let expected = &PREFACE[*arrived..];
                    let length = expected.len().min(rest.len());
                    if rest[..length] != expected[..length] {
                        return Err(Violation::NoPreface);
                    }
                    *arrived += length;
                    *at += length;
                    if *arrived < PREFACE.len() {
                        return Ok(None);
                    }
                    self.at = Position::next_frame();
                }
                Position::Head(bytes, arrived) => {
                    let length = (FrameHead::SIZE - *arrived).min(rest.len());
                    bytes[*arrived..*arrived + length].copy_from_slice(&rest[..length]);
                    *arrived += length;
                    *at += length;
                    if *arrived < FrameHead::SIZE {
                        return Ok(None);
                    }
                    let head = FrameHead::parse(*bytes);
                    if let Some(part) = self.begin(head)? {
                        return Ok(Some(part));
                    }
                }
                Position::Payload(head, payload) => {
                    let wanted = head.length as usize - payload.len();
                    if rest.len() < wanted {
                        payload.extend_from_slice(rest);
                        *at = input.len();
                        return Ok(None);
                    }
                    let head = *head;
                    let mut whole = Cow::Borrowed(&rest[..wanted]);
                    if !payload.is_empty() {
                        payload.extend_from_slice(&rest[..wanted]);
                        whole = Cow::Owned(std::mem::take(payload));
                    }
                    *at += wanted;
                    self.at = Position::next_frame();
                    return Ok(Some(Part::Frame(head, whole)));
                }
                Position::Data(frame) => {
                    let (part, used) = frame.read(rest)?;
                    let stream = frame.stream;
                    let end_stream = frame.end_stream;
                    let from = *at;
                    *at += used;
                    return Ok(match part {
                        DataPart::Nothing => None,
                        DataPart::Data(range) => {
                            Some(Part::Data(stream, from + range.start..from + range.end))
                        }
                        DataPart::End => {
                            self.at = Position::next_frame();
                            Some(Part::DataEnd { stream, end_stream })
                        }
                    });
                }
                Position::Ignored(left) => {
                    let length = (*left as usize).min(rest.len());
                    *left -= length as u32;
                    *at += length;
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.at = Position::next_frame();
                }
            }
        }
    }

    fn begin(&mut self, head: FrameHead) -> Result<Option<Part<'static>>, Violation> {
        if head.length > self.max_frame {
            return Err(Violation::FrameTooLarge);
        }
        match head.kind {
            Kind::Data if head.stream.is_connection() => Err(Violation::UnexpectedStream),
            Kind::Data => {
                let is_padded = head.has(flag::PADDED);
                if is_padded && head.length == 0 {
                    return Err(Violation::InvalidFrameLength);
                }
                let frame = DataFrame {
                    stream: head.stream,
                    end_stream: head.has(flag::END_STREAM),
                    is_padding_unknown: is_padded,
                    data: head.length,
                    padding: 0,
                };
                let part = Part::DataHead {
                    stream: frame.stream,
                    length: head.length,
                };
                self.at = Position::Data(frame);
                Ok(Some(part))
            }
            Kind::Unknown(_) => {
                self.at = Position::Ignored(head.length);
                Ok(Some(Part::Ignored))
            }
            Kind::Headers | Kind::Continuation if head.length > self.max_collected => {
                Err(Violation::HeaderBlockTooLong)
            }
            _ if head.length > self.max_collected => Err(Violation::FrameTooLarge),
            _ => {
                self.at = Position::Payload(head, Vec::new());
                Ok(None)
            }
        }
    }
}

impl Position {
    fn next_frame() -> Self {
        Self::Head([0; FrameHead::SIZE], 0)
    }
}

/// What a piece of a DATA frame contains.
enum DataPart {
    Nothing,
    Data(Range<usize>),
    End,
}

impl DataFrame {
    /// Reads from `rest`; returns what it contains, and the number of bytes used.
    fn read(&mut self, rest: &[u8]) -> Result<(DataPart, usize), Violation> {
        let mut used = 0;
        if self.is_padding_unknown {
            let Some(padding) = rest.first() else {
                return Ok((DataPart::Nothing, 0));
            };
            used = 1;
            self.is_padding_unknown = false;
            self.padding = u32::from(*padding);
            let data = (self.data - 1).checked_sub(self.padding); // its length counts
            self.data = data.ok_or(Violation::InvalidPadding)?;
        }
        let rest = &rest[used..];
        let data = (self.data as usize).min(rest.len());
        if data > 0 {
            self.data -= data as u32;
            return Ok((DataPart::Data(used..used + data), used + data));
        }
        let padding = (self.padding as usize).min(rest.len());
        if self.data == 0 {
            self.padding -= padding as u32;
            used += padding;
            if self.padding == 0 {
                return Ok((DataPart::End, used));
            }
        }
        Ok((DataPart::Nothing, used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::write;
    use proptest::prelude::*;

    /// A part without ranges, adjacent data joined.
    #[derive(Debug, PartialEq, Eq)]
    enum Seen {
        Frame(FrameHead, Vec<u8>),
        DataHead(u32, u32),
        Data(u32, Vec<u8>),
        DataEnd(u32, bool),
        Ignored,
    }

    fn read_all(reader: &mut FrameReader, pieces: &[&[u8]]) -> Result<Vec<Seen>, Violation> {
        let mut seen = Vec::new();
        for piece in pieces {
            let mut at = 0;
            while let Some(part) = reader.read(piece, &mut at)? {
                let next = match part {
                    Part::Frame(head, payload) => Seen::Frame(head, payload.into_owned()),
                    Part::DataHead { stream, length } => Seen::DataHead(stream.0, length),
                    Part::Data(stream, range) => {
                        let bytes = &piece[range];
                        if let Some(Seen::Data(_, before)) = seen.last_mut() {
                            before.extend_from_slice(bytes);
                            continue;
                        }
                        Seen::Data(stream.0, bytes.to_vec())
                    }
                    Part::DataEnd { stream, end_stream } => Seen::DataEnd(stream.0, end_stream),
                    Part::Ignored => Seen::Ignored,
                };
                seen.push(next);
            }
            assert_eq!(at, piece.len(), "everything is read");
        }
        Ok(seen)
    }

    fn frame(kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let head = FrameHead {
            length: payload.len() as u32,
            kind,
            flags,
            stream: StreamId(stream),
        };
        [&head.encode()[..], payload].concat()
    }

    #[test]
    fn padding_is_no_data() {
        let bytes = frame(
            Kind::Data,
            flag::PADDED | flag::END_STREAM,
            3,
            b"\x04data0000",
        );
        let seen = read_all(&mut FrameReader::new(false, 100, 100), &[&bytes]);
        let expected = vec![
            Seen::DataHead(3, 9),
            Seen::Data(3, b"data".to_vec()),
            Seen::DataEnd(3, true),
        ];
        assert_eq!(seen, Ok(expected));
    }

    #[test]
    fn padding_as_long_as_the_frame_is_rejected() {
        for payload in [&b"\x01"[..], b"\x04000"] {
            let bytes = frame(Kind::Data, flag::PADDED, 1, payload);
            let seen = read_all(&mut FrameReader::new(false, 100, 100), &[&bytes]);
            assert_eq!(seen, Err(Violation::InvalidPadding));
        }
    }

    #[test]
    fn large_frames_are_rejected_by_their_header() {
        let cases = [
            (Kind::Data, 101, Violation::FrameTooLarge),
            (Kind::Unknown(77), 101, Violation::FrameTooLarge),
            (Kind::Settings, 51, Violation::FrameTooLarge),
            (Kind::Headers, 51, Violation::HeaderBlockTooLong),
        ];
        for (kind, length, violation) in cases {
            let head = &frame(kind, 0, 1, &vec![0; length])[..FrameHead::SIZE];
            let seen = read_all(&mut FrameReader::new(false, 100, 50), &[head]);
            assert_eq!(seen, Err(violation), "{kind:?}");
        }
    }

    #[test]
    fn another_protocol_is_rejected_at_its_first_bytes() {
        let mut reader = FrameReader::new(true, 100, 100);
        assert_eq!(
            read_all(&mut reader, &[b"PRI ", b"HTTP"]),
            Err(Violation::NoPreface)
        );
    }

    proptest! {
        #[test]
        fn any_split_yields_the_same_frames(
            frames in prop::collection::vec(
                (0..12_u8, any::<u8>(), 1..4_u32, prop::collection::vec(any::<u8>(), 0..40)),
                0..8,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut bytes = PREFACE.to_vec();
            for (kind, flags, stream, payload) in frames {
                let mut head = frame(Kind::Data, flags, stream, &payload);
                head[3] = kind;
                bytes.extend(head);
            }
            write::ping(&mut bytes, *b"12345678", false);
            let whole = read_all(&mut FrameReader::new(true, 100, 30), &[&bytes]);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut from = 0;
            let pieces: Vec<&[u8]> = cuts
                .iter()
                .map(|to| &bytes[std::mem::replace(&mut from, *to)..*to])
                .collect();
            let split = read_all(&mut FrameReader::new(true, 100, 30), &pieces);
            prop_assert_eq!(split, whole);
        }
    }
}
