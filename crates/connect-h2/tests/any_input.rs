//! Whatever arrives, its split and freezing in between make no difference.
#![allow(clippy::unwrap_used)]

mod support;

use connect_h2::{Change, Config, Connection, Event, Role, StreamId, Violation};
use http::{HeaderMap, StatusCode};
use proptest::collection::vec;
use proptest::prelude::*;
use support::{connect, frame, headers};

/// A server whose application answers each request, and takes data when it hears something else.
struct Server {
    connection: Connection,
    log: Vec<String>,
    unread: Vec<(StreamId, Vec<u8>)>,
    is_frozen_often: bool,
    now_ms: u64,
}

impl Server {
    fn new(is_frozen_often: bool) -> Self {
        let config = Config {
            max_streams: 3,
            stream_window: 300,
            connection_window: 70_000,
            max_header_list: 600,
            max_fields: 8,
            ..Config::default()
        };
        let mut connection = Connection::new(Role::Server, config, 0);
        connection.set_growth_budget(1000);
        Self {
            connection,
            log: Vec::new(),
            unread: Vec::new(),
            is_frozen_often,
            now_ms: 0,
        }
    }

    fn feed(&mut self, piece: &[u8]) -> Result<(), Violation> {
        let mut at = 0;
        while let Some(event) = self.connection.receive(piece, &mut at, self.now_ms)? {
            self.handle(event, piece);
            if self.is_frozen_often {
                self.freeze_and_thaw();
            }
        }
        assert_eq!(at, piece.len());
        if self.is_frozen_often {
            self.freeze_and_thaw();
        }
        Ok(())
    }

    fn handle(&mut self, event: Event, piece: &[u8]) {
        if let Event::Data { id, range } = event {
            let data = &piece[range];
            match self.unread.last_mut() {
                Some((last, before)) if *last == id => before.extend_from_slice(data),
                _ => self.unread.push((id, data.to_vec())),
            }
            return;
        }
        self.take();
        self.log.push(format!("{event:?}"));
        match event {
            Event::Request { id, .. } if id.0 % 4 == 1 => {
                let headers = HeaderMap::new();
                let _ = self.connection.respond(id, StatusCode::OK, &headers, false);
            }
            Event::Request { id, .. } => self.connection.reject(id, StatusCode::FORBIDDEN),
            Event::Stream { id, change } if change != Change::Credit => {
                self.connection.release(id);
            }
            _ => {}
        }
        self.flush();
    }

    /// Takes all data.
    fn take(&mut self) {
        for (id, data) in std::mem::take(&mut self.unread) {
            self.now_ms += 1;
            self.connection.taken(id, data.len(), self.now_ms);
            self.log.push(format!("{id} {data:?}"));
        }
        self.flush();
    }

    fn flush(&mut self) {
        self.log
            .push(format!("{:?}", self.connection.take_output()));
    }

    fn freeze_and_thaw(&mut self) {
        let unused = Connection::new(Role::Client, Config::default(), 0);
        let state = std::mem::replace(&mut self.connection, unused).freeze();
        let text = serde_json::to_vec(&state).unwrap();
        self.connection = Connection::thaw(serde_json::from_slice(&text).unwrap()).unwrap();
    }
}

/// What happens when the pieces arrive.
fn run(pieces: &[&[u8]], is_frozen_often: bool) -> Vec<String> {
    let mut server = Server::new(is_frozen_often);
    for piece in pieces {
        if let Err(violation) = server.feed(piece) {
            server.take();
            server.log.push(violation.to_string());
            return server.log;
        }
    }
    server.take();
    server.log
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let id = || prop_oneof![Just(1_u32), Just(3), Just(5), Just(7), 0..12_u32];
    prop_oneof![
        4 => id().prop_map(|id| connect(id | 1)),
        4 => (id(), vec(any::<u8>(), 0..200), any::<bool>())
            .prop_map(|(id, data, end)| frame(0, end.into(), id, &data)),
        1 => (id(), vec(any::<u8>(), 0..100)).prop_map(|(id, data)| frame(0, 9, id, &data)),
        1 => (id(), "[a-zA-Z:]{0,5}", "[ -~]{0,300}").prop_map(|(id, name, value)| {
            headers(id, &[(":method", "CONNECT"), (":authority", "a"), (&name, &value)], false)
        }),
        1 => id().prop_map(|id| headers(id, &[("x", "y")], true)),
        1 => (id(), vec(any::<u8>(), 0..20)).prop_map(|(id, part)| {
            [frame(1, 0, id, &[0x02, 7]), frame(9, 0, id, b"CONNECT"), frame(9, 4, id, &part)]
                .concat()
        }),
        1 => (id(), 0..12_u8).prop_map(|(id, code)| frame(3, 0, id, &[0, 0, 0, code])),
        1 => (id(), any::<[u8; 4]>()).prop_map(|(id, bytes)| frame(8, 0, id, &bytes)),
        1 => (0..8_u8, any::<[u8; 4]>())
            .prop_map(|(setting, value)| frame(4, 0, 0, &[&[0, setting], &value[..]].concat())),
        1 => any::<bool>().prop_map(|ack| frame(6, ack.into(), 0, b"draining")),
        1 => (any::<u8>(), any::<u8>(), id(), vec(any::<u8>(), 0..30))
            .prop_map(|(kind, flags, id, payload)| frame(kind, flags, id, &payload)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn splits_and_freezing_make_no_difference(
        frames in vec(any_frame(), 0..30),
        cuts in vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let mut bytes = connect_h2::frame::PREFACE.to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend(frame(4, 1, 0, &[]));
        bytes.extend(frames.concat());
        let whole = run(&[&bytes], false);
        prop_assert_eq!(&run(&[&bytes], true), &whole);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.sort_unstable();
        cuts.push(bytes.len());
        let mut from = 0;
        let pieces: Vec<&[u8]> = cuts
            .iter()
            .map(|to| &bytes[std::mem::replace(&mut from, *to)..*to])
            .collect();
        prop_assert_eq!(&run(&pieces, true), &whole);
    }
}

#[test]
fn another_version_is_not_thawed() {
    let connection = Connection::new(Role::Client, Config::default(), 0);
    let mut state = serde_json::to_value(connection.freeze()).unwrap();
    state["version"] = 9.into();
    let thawed = Connection::thaw(serde_json::from_value(state).unwrap());
    assert_eq!(
        thawed.unwrap_err().to_string(),
        "the state of a connection has version 9; expected 1"
    );
}
