mod any_script;
mod gathering;
mod handshake;
mod key_updates;
mod limits;
mod openssl_peer;
mod post_handshake;
mod rfc8448;
mod rustls_peer;
mod state;

use crate::{
    Direction, Event, MAX_RECORD, Outgoing, RecordError, RecordLayer, RecordState, Role, Sealer,
    Suite, TrafficSecret,
};

const SUITES: [Suite; 2] = [Suite::Aes128GcmSha256, Suite::Aes256GcmSha384];

/// The direction in which the client sends, from its record number `sequence` on.
fn from_client(suite: Suite, sequence: u64) -> Direction {
    Direction::new(
        TrafficSecret::new(&vec![0xc1; suite.secret_len()]),
        sequence,
    )
}

/// The direction in which the server sends.
fn from_server(suite: Suite, sequence: u64) -> Direction {
    Direction::new(
        TrafficSecret::new(&vec![0x5e; suite.secret_len()]),
        sequence,
    )
}

fn client(suite: Suite) -> RecordLayer {
    let (tx, rx) = (from_client(suite, 0), from_server(suite, 0));
    RecordState::new(suite, Role::Client, tx, rx)
        .thaw()
        .unwrap()
}

fn server(suite: Suite) -> RecordLayer {
    let (tx, rx) = (from_server(suite, 0), from_client(suite, 0));
    RecordState::new(suite, Role::Server, tx, rx)
        .thaw()
        .unwrap()
}

/// A server whose every record the test chooses, and a client that receives them.
struct Played {
    server: Sealer,
    wire: Outgoing,
    client: RecordLayer,
}

impl Played {
    fn new() -> Self {
        let suite = SUITES[0];
        Self {
            server: Sealer::new(suite, from_server(suite, 0)),
            wire: Outgoing::default(),
            client: client(suite),
        }
    }

    /// The server sends a record, and the client receives it.
    fn record(&mut self, content_type: u8, content: &[u8]) -> Result<Vec<u8>, RecordError> {
        self.server
            .record(content_type, content, &mut self.wire)
            .unwrap();
        let bytes = take(&mut self.wire);
        receive(&mut self.client, &bytes).map(|(data, _)| data)
    }

    /// Freezes and thaws the client.
    fn freeze(&mut self) {
        let client = std::mem::replace(&mut self.client, client(SUITES[0]));
        self.client = client.freeze().thaw().unwrap();
    }

    /// The alert that the client has answered with.
    fn answer(&mut self) -> RecordError {
        let answer = take(self.client.outgoing());
        receive(&mut server(SUITES[0]), &answer).unwrap_err()
    }
}

/// Everything that is to be sent.
fn take(outgoing: &mut Outgoing) -> Vec<u8> {
    let bytes = outgoing.unsent().to_vec();
    outgoing.sent(bytes.len());
    bytes
}

/// Gives bytes to a record layer, in addition to those it holds. Returns the data, and the last
/// event.
fn receive(layer: &mut RecordLayer, bytes: &[u8]) -> Result<(Vec<u8>, Event), RecordError> {
    let mut data = Vec::new();
    let event = receive_into(layer, bytes, &mut data)?;
    Ok((data, event))
}

/// As [`receive`], also with the data that precedes an error.
fn receive_into(
    layer: &mut RecordLayer,
    bytes: &[u8],
    data: &mut Vec<u8>,
) -> Result<Event, RecordError> {
    let mut buffer = vec![0; 2 * MAX_RECORD + bytes.len()];
    let mut end = layer.restore(&mut buffer);
    buffer[end..end + bytes.len()].copy_from_slice(bytes);
    end += bytes.len();
    let mut begin = 0;
    loop {
        let input = &mut buffer[begin..end];
        let received = layer.receive(input)?;
        begin += received.consumed;
        match received.event {
            Event::Data(range) => data.extend_from_slice(&input[range]),
            event => {
                layer.hold(&buffer[begin..end]);
                return Ok(event);
            }
        }
    }
}

/// Lengths of the records in a stream of bytes, without their headers.
fn records(mut bytes: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        lengths.push(length);
        bytes = &rest[length..];
    }
    lengths
}
