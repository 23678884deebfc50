//! One end of a connection for tests, which records events, and a transport in memory.
#![allow(dead_code, reason = "each test uses a part")]

use connect_h2::frame::write;
use connect_h2::hpack::{Encoder, Field};
use connect_h2::{Change, Config, Connection, ErrorCode, Event, Role, StreamId, Violation};
use http::HeaderMap;

/// An event with its data.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    Settings,
    Request(u32, String),
    Response(u32, u16),
    Data(u32, Vec<u8>),
    Stream(u32, Change),
    GoAway(u32, ErrorCode),
}

pub struct End {
    pub connection: Connection,
    pub seen: Vec<Seen>,
    pub error: Option<Violation>,
    pub now_ms: u64,
}

pub fn config() -> Config {
    Config {
        max_streams: 10,
        ..Config::default()
    }
}

impl End {
    pub fn new(role: Role, config: Config) -> Self {
        Self {
            connection: Connection::new(role, config, 0),
            seen: Vec::new(),
            error: None,
            now_ms: 0,
        }
    }

    /// Receives bytes and records the events.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut at = 0;
        loop {
            match self.connection.receive(bytes, &mut at, self.now_ms) {
                Ok(Some(event)) => self.record(event, bytes),
                Ok(None) => break,
                Err(violation) => {
                    self.error = Some(violation);
                    return;
                }
            }
        }
        assert_eq!(at, bytes.len(), "everything is read");
    }

    fn record(&mut self, event: Event, bytes: &[u8]) {
        let next = match event {
            Event::Settings => Seen::Settings,
            Event::Request { id, head } => Seen::Request(id.0, head.authority),
            Event::Response { id, head } => Seen::Response(id.0, head.status.as_u16()),
            Event::Data { id, range } => {
                let data = &bytes[range];
                if let Some(Seen::Data(last, before)) = self.seen.last_mut()
                    && *last == id.0
                {
                    before.extend_from_slice(data);
                    return;
                }
                Seen::Data(id.0, data.to_vec())
            }
            Event::Stream { id, change } => Seen::Stream(id.0, change),
            Event::GoAway { last, code } => Seen::GoAway(last.0, code),
        };
        self.seen.push(next);
    }

    /// The output, then a DATA frame.
    pub fn data(&mut self, id: StreamId, data: &[u8], end_stream: bool) -> Vec<u8> {
        let mut wire = self.connection.take_output();
        let length = data.len() as u32;
        let head = self.connection.data_head(id, length, end_stream);
        wire.extend_from_slice(&head.expect("the stream is open and has capacity"));
        wire.extend_from_slice(data);
        wire
    }

    pub fn open(&mut self) -> StreamId {
        let opened = self.connection.open("10.0.0.1:80", &HeaderMap::new());
        opened.expect("there is room")
    }

    /// The events since the last call, without those of settings.
    pub fn events(&mut self) -> Vec<Seen> {
        let seen = std::mem::take(&mut self.seen);
        seen.into_iter()
            .filter(|seen| *seen != Seen::Settings)
            .collect()
    }

    /// Serialises the connection and continues with the result.
    pub fn freeze_and_thaw(&mut self) {
        let unused = Connection::new(Role::Client, config(), 0);
        let state = std::mem::replace(&mut self.connection, unused).freeze();
        let text = serde_json::to_vec(&state).unwrap();
        self.connection = Connection::thaw(serde_json::from_slice(&text).unwrap()).unwrap();
    }
}

/// Passes the output of each end to the other one until there is none.
pub fn exchange(a: &mut End, b: &mut End) {
    loop {
        let (of_a, of_b) = (a.connection.take_output(), b.connection.take_output());
        if of_a.is_empty() && of_b.is_empty() {
            return;
        }
        b.feed(&of_a);
        a.feed(&of_b);
    }
}

/// A client and a server that have exchanged settings.
pub fn pair(config: Config) -> (End, End) {
    let mut client = End::new(Role::Client, config);
    let mut server = End::new(Role::Server, config);
    exchange(&mut client, &mut server);
    client.seen.clear();
    server.seen.clear();
    (client, server)
}

/// A server whose client is played by raw frames; settings have been exchanged.
pub fn served(config: Config) -> End {
    let mut server = End::new(Role::Server, config);
    let mut wire = connect_h2::frame::PREFACE.to_vec();
    write::settings(&mut wire, &[]);
    write::settings_ack(&mut wire);
    server.feed(&wire);
    server.connection.take_output();
    server.seen.clear();
    server
}

/// HEADERS with these fields.
pub fn headers(id: u32, fields: &[(&str, &str)], end_stream: bool) -> Vec<u8> {
    let fields = fields.iter().map(|(name, value)| Field {
        name: name.as_bytes(),
        value: value.as_bytes(),
        is_sensitive: false,
    });
    let (mut block, mut wire) = (Vec::new(), Vec::new());
    Encoder::default().encode(&mut block, fields);
    write::headers(&mut wire, StreamId(id), &block, end_stream, 16_384);
    wire
}

/// A CONNECT request.
pub fn connect(id: u32) -> Vec<u8> {
    headers(id, &[(":method", "CONNECT"), (":authority", "a:1")], false)
}

/// A frame of any type.
pub fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut wire = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    wire.extend([kind, flags]);
    wire.extend(id.to_be_bytes());
    wire.extend(payload);
    wire
}
