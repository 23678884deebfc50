//! Writes frames. Values must be in range: increments from 1 to 2^31 - 1, lengths below 2^24.

use crate::error::{ErrorCode, StreamId};
use crate::frame::{FrameHead, Kind, flag};

/// Appends a frame.
fn frame(out: &mut Vec<u8>, kind: Kind, flags: u8, stream: StreamId, payload: &[&[u8]]) {
    let length = payload.iter().map(|part| part.len()).sum::<usize>() as u32;
    let head = FrameHead {
        length,
        kind,
        flags,
        stream,
    };
    out.extend_from_slice(&head.encode());
    for part in payload {
        out.extend_from_slice(part);
    }
}

/// Appends PING, or the answer to one.
pub fn ping(out: &mut Vec<u8>, payload: [u8; 8], is_answer: bool) {
    let flags = if is_answer { flag::ACK } else { 0 };
    frame(out, Kind::Ping, flags, StreamId::CONNECTION, &[&payload]);
}

/// Appends SETTINGS with this payload.
pub fn settings(out: &mut Vec<u8>, payload: &[u8]) {
    frame(out, Kind::Settings, 0, StreamId::CONNECTION, &[payload]);
}

/// Appends the acknowledgement of SETTINGS.
pub fn settings_ack(out: &mut Vec<u8>) {
    frame(out, Kind::Settings, flag::ACK, StreamId::CONNECTION, &[]);
}

/// Appends WINDOW_UPDATE.
pub fn window_update(out: &mut Vec<u8>, stream: StreamId, increment: u32) {
    let increment = increment.to_be_bytes();
    frame(out, Kind::WindowUpdate, 0, stream, &[&increment]);
}

/// Appends RST_STREAM.
pub fn reset(out: &mut Vec<u8>, stream: StreamId, code: ErrorCode) {
    frame(out, Kind::ResetStream, 0, stream, &[&code.0.to_be_bytes()]);
}

/// Appends GOAWAY; `debug` is text for people.
pub fn go_away(out: &mut Vec<u8>, last: StreamId, code: ErrorCode, debug: &str) {
    let (last, code) = (last.0.to_be_bytes(), code.0.to_be_bytes());
    let payload = [&last[..], &code, debug.as_bytes()];
    frame(out, Kind::GoAway, 0, StreamId::CONNECTION, &payload);
}

/// Appends a header block as HEADERS and as many CONTINUATION as the size of frames requires.
pub fn headers(
    out: &mut Vec<u8>,
    stream: StreamId,
    block: &[u8],
    end_stream: bool,
    max_frame: u32,
) {
    let (mut kind, mut flags) = (Kind::Headers, 0);
    if end_stream {
        flags |= flag::END_STREAM;
    }
    let mut rest = block;
    loop {
        let (part, after) = rest.split_at(rest.len().min(max_frame as usize));
        if after.is_empty() {
            return frame(out, kind, flags | flag::END_HEADERS, stream, &[part]);
        }
        frame(out, kind, flags, stream, &[part]);
        (kind, flags, rest) = (Kind::Continuation, 0, after);
    }
}

/// The header of a DATA frame without padding, for a payload that the caller writes behind it.
pub fn data_head(stream: StreamId, length: u32, end_stream: bool) -> [u8; FrameHead::SIZE] {
    let head = FrameHead {
        length,
        kind: Kind::Data,
        flags: if end_stream { flag::END_STREAM } else { 0 },
        stream,
    };
    head.encode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, FrameReader, Part};

    fn parsed(bytes: &[u8]) -> Vec<String> {
        let mut reader = FrameReader::new(false, 1 << 14, 1 << 14);
        let (mut at, mut seen) = (0, Vec::new());
        while let Some(part) = reader.read(bytes, &mut at).unwrap() {
            let Part::Frame(head, payload) = part else {
                panic!("{part:?}");
            };
            seen.push(format!("{:?}", Frame::parse(head, &payload).unwrap()));
        }
        seen
    }

    #[test]
    fn written_frames_are_read_as_they_are() {
        let mut out = Vec::new();
        ping(&mut out, [1; 8], false);
        ping(&mut out, [2; 8], true);
        settings(&mut out, &[0, 4, 0, 0, 0, 9]);
        settings_ack(&mut out);
        window_update(&mut out, StreamId(3), 7);
        reset(&mut out, StreamId(3), ErrorCode::CANCEL);
        go_away(&mut out, StreamId(5), ErrorCode::NO_ERROR, "bye");
        let expected = [
            format!("{:?}", Frame::Ping([1; 8])),
            format!("{:?}", Frame::Pong([2; 8])),
            format!("{:?}", Frame::Settings(&[0, 4, 0, 0, 0, 9])),
            "SettingsAck".to_owned(),
            "WindowUpdate { stream: StreamId(3), increment: 7 }".to_owned(),
            "Reset { stream: StreamId(3), code: CANCEL }".to_owned(),
            "GoAway { last: StreamId(5), code: NO_ERROR }".to_owned(),
        ];
        assert_eq!(parsed(&out), expected);
    }

    #[test]
    fn long_header_blocks_continue_in_further_frames() {
        let mut out = Vec::new();
        headers(&mut out, StreamId(1), b"abcdefgh", true, 3);
        let fragments: String = parsed(&out)
            .iter()
            .map(|frame| frame.replace("stream: StreamId(1), ", "") + "\n")
            .collect();
        assert_eq!(
            fragments,
            "Headers { end_stream: true, end_headers: false, fragment: [97, 98, 99] }\n\
             Continuation { end_headers: false, fragment: [100, 101, 102] }\n\
             Continuation { end_headers: true, fragment: [103, 104] }\n"
        );
        let mut exact = Vec::new();
        headers(&mut exact, StreamId(1), b"abc", false, 3);
        assert_eq!(parsed(&exact).len(), 1);
    }
}
