//! HTTP/2 frames of a client, in one piece and byte by byte.
#![no_main]

use connect_h2::Violation;
use connect_h2::frame::{Frame, FrameReader, Part};
use connect_h2::settings::Settings;
use libfuzzer_sys::fuzz_target;

/// The frames of `pieces`, and how many bytes of data.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<(Vec<String>, usize), Violation> {
    let mut reader = FrameReader::new(false, 16_384, 1024);
    let (mut frames, mut data) = (Vec::new(), 0);
    for piece in pieces {
        let mut at = 0;
        while let Some(part) = reader.read(piece, &mut at)? {
            match part {
                Part::Data(_, range) => data += piece[range].len(),
                Part::Frame(head, payload) => {
                    let frame = Frame::parse(head, &payload);
                    if let Ok(Frame::Settings(settings)) = frame {
                        let _ = Settings::default().apply(settings);
                    }
                    frames.push(format!("{frame:?}"));
                }
                part => frames.push(format!("{part:?}")),
            }
        }
        assert_eq!(at, piece.len(), "everything is read");
    }
    Ok((frames, data))
}

fuzz_target!(|bytes: &[u8]| {
    assert_eq!(read([bytes].into_iter()), read(bytes.chunks(1)));
});
