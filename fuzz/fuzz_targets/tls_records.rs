//! Records from a peer that has the keys: each is a content type and a length byte, followed by
//! content. Type 255 stands for bytes that are not sealed, and type 254 for the next keys. The
//! first byte defines how the stream is split, and whether the state is frozen in between.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tls_record::{
    Direction, Event, Outgoing, RecordLayer, RecordState, Role, Sealer, Suite, TrafficSecret,
};

const SUITE: Suite = Suite::Aes128GcmSha256;

fn direction(byte: u8) -> Direction {
    Direction::new(TrafficSecret::new(&[byte; 32]), 0)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((split, mut rest)) = bytes.split_first() else {
        return;
    };
    let role = if split & 1 == 0 {
        Role::Client
    } else {
        Role::Server
    };
    let mut sealer = Sealer::new(SUITE, direction(1));
    let mut wire = Vec::new();
    while let [kind, length, tail @ ..] = rest {
        let (content, tail) = tail
            .split_at_checked(usize::from(*length))
            .unwrap_or((tail, &[]));
        rest = tail;
        match *kind {
            255 => wire.extend_from_slice(content),
            254 => sealer.next_keys(),
            _ => {
                let mut sealed = Outgoing::default();
                sealer.record(*kind, content, &mut sealed).unwrap();
                wire.extend_from_slice(sealed.unsent());
            }
        }
    }
    let state = || RecordState::new(SUITE, role, direction(2), direction(1));
    let whole = run(state().thaw().unwrap(), &wire, wire.len().max(1), false);
    let parts = run(
        state().thaw().unwrap(),
        &wire,
        1 + usize::from(split / 4),
        split & 2 != 0,
    );
    assert_eq!(whole, parts);
});

/// Returns the received data, and the state as text.
fn run(mut layer: RecordLayer, wire: &[u8], size: usize, freezing: bool) -> (Vec<u8>, String) {
    let mut data = Vec::new();
    let mut result = String::new();
    for part in wire.chunks(size) {
        let mut buffer = vec![0; wire.len()];
        let end = layer.restore(&mut buffer) + part.len();
        buffer[end - part.len()..end].copy_from_slice(part);
        let mut begin = 0;
        loop {
            let received = match layer.receive(&mut buffer[begin..end]) {
                Ok(received) => received,
                Err(error) => {
                    assert_eq!(layer.receive(&mut []), Err(error));
                    assert!(layer.seal(b"data").is_err());
                    return (data, format!("{error:?} {}", frozen(layer)));
                }
            };
            if let Event::Data(range) = &received.event {
                assert!(!range.is_empty());
                data.extend_from_slice(&buffer[begin..end][range.clone()]);
            }
            begin += received.consumed;
            if !matches!(received.event, Event::Data(_)) {
                result = format!("{:?}", received.event);
                break;
            }
        }
        layer.hold(&buffer[begin..end]);
        if freezing {
            layer = layer.freeze().thaw().unwrap();
        }
    }
    layer.seal(b"data").unwrap();
    (data, format!("{result} {}", frozen(layer)))
}

fn frozen(layer: RecordLayer) -> String {
    serde_json::to_string(&layer.freeze()).unwrap()
}
