//! A client and a server under random schedules: every byte arrives in order, whatever windows
//! are, and stalled streams block no others.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use connect_h2::{Change, Config, Connection, Event, Role, SendError, StreamId};
use http::{HeaderMap, StatusCode};
use proptest::collection::vec;
use proptest::prelude::*;
use support::config;

/// The byte of a stream at a position.
fn byte(id: StreamId, role: Role, at: usize) -> u8 {
    (at + at / 251) as u8 ^ id.0 as u8 ^ if role == Role::Client { 0 } else { 0x55 }
}

/// One direction of a stream at one end.
#[derive(Default)]
struct Half {
    sent: usize,
    to_send: usize,
    has_finished: bool,
    received: usize,
    unread: usize,
    has_ended: bool,
    is_stalled: bool,
}

struct End {
    role: Role,
    connection: Connection,
    streams: BTreeMap<StreamId, Half>,
    /// Bytes on the way to the peer.
    wire: Vec<u8>,
    now_ms: u64,
}

impl End {
    fn new(role: Role, config: Config, budget: u64) -> Self {
        let mut connection = Connection::new(role, config, 0);
        connection.set_growth_budget(budget);
        Self {
            role,
            connection,
            streams: BTreeMap::new(),
            wire: Vec::new(),
            now_ms: 0,
        }
    }

    /// Receives up to `length` bytes.
    fn receive(&mut self, wire: &mut Vec<u8>, length: usize) {
        let piece: Vec<u8> = wire.drain(..length.min(wire.len())).collect();
        let mut at = 0;
        while let Some(event) = self
            .connection
            .receive(&piece, &mut at, self.now_ms)
            .unwrap()
        {
            match event {
                Event::Request { id, .. } => {
                    self.streams.entry(id).or_default();
                    let headers = HeaderMap::new();
                    self.connection
                        .respond(id, StatusCode::OK, &headers, false)
                        .unwrap();
                }
                Event::Data { id, range } => {
                    let peer = match self.role {
                        Role::Client => Role::Server,
                        Role::Server => Role::Client,
                    };
                    let half = self.streams.get_mut(&id).unwrap();
                    for received in &piece[range] {
                        assert_eq!(*received, byte(id, peer, half.received));
                        half.received += 1;
                        half.unread += 1;
                    }
                }
                Event::Stream {
                    id,
                    change: Change::Ended,
                } => {
                    self.streams.get_mut(&id).unwrap().has_ended = true;
                }
                Event::Stream {
                    change: Change::Credit,
                    ..
                }
                | Event::Settings => {}
                Event::Response { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        self.flush();
    }

    fn flush(&mut self) {
        self.wire.extend(self.connection.take_output());
    }

    /// Sends up to `length` bytes on a stream.
    fn send(&mut self, id: StreamId, length: usize) {
        self.flush();
        let Some(half) = self.streams.get_mut(&id) else {
            return;
        };
        let capacity = self.connection.capacity(id) as usize;
        let length = length.min(half.to_send - half.sent).min(capacity);
        let is_last = half.sent + length == half.to_send;
        if half.has_finished || length == 0 && !is_last {
            return;
        }
        let head = match self.connection.data_head(id, length as u32, is_last) {
            Ok(head) => head,
            Err(SendError::Closed) => return, // not answered yet
            Err(other) => panic!("{other}"),
        };
        half.has_finished = is_last;
        self.wire.extend(head);
        let (from, role) = (half.sent, self.role);
        self.wire
            .extend((from..from + length).map(|at| byte(id, role, at)));
        half.sent += length;
    }

    fn take(&mut self, id: StreamId, length: usize) {
        if let Some(half) = self.streams.get_mut(&id)
            && !half.is_stalled
        {
            let length = length.min(half.unread);
            half.unread -= length;
            self.connection.taken(id, length, self.now_ms);
            self.flush();
        }
    }

    fn freeze_and_thaw(&mut self) {
        let unused = Connection::new(Role::Client, config(), 0);
        let state = std::mem::replace(&mut self.connection, unused).freeze();
        let text = serde_json::to_vec(&state).unwrap();
        self.connection = Connection::thaw(serde_json::from_slice(&text).unwrap()).unwrap();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Open(usize, usize),
    Send(bool, usize, usize),
    Take(bool, usize, usize),
    Deliver(bool, usize),
    Freeze(bool),
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let stream = || 0..6_usize;
    prop_oneof![
        1 => (0..5000_usize, 0..5000_usize).prop_map(|(up, down)| Step::Open(up, down)),
        5 => (any::<bool>(), stream(), 0..800_usize)
            .prop_map(|(end, stream, length)| Step::Send(end, stream, length)),
        5 => (any::<bool>(), stream(), 0..800_usize)
            .prop_map(|(end, stream, length)| Step::Take(end, stream, length)),
        8 => (any::<bool>(), 0..2000_usize).prop_map(|(end, length)| Step::Deliver(end, length)),
        1 => any::<bool>().prop_map(Step::Freeze),
        1 => (0..5_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_byte_arrives_and_stalled_streams_block_no_others(
        steps in vec(any_step(), 0..200),
        windows in (1..2000_u32, 1..2000_u32),
        budget in prop_oneof![Just(0), 0..5000_u64],
        stalled in vec(any::<bool>(), 6),
    ) {
        let config = |window: u32| Config {
            max_streams: 6,
            stream_window: window,
            // Enough for all, as in the proxy.
            connection_window: window * 6,
            ..config()
        };
        let mut client = End::new(Role::Client, config(windows.0), budget);
        let mut server = End::new(Role::Server, config(windows.1), budget);
        let ids = [1, 3, 5, 7, 9, 11].map(StreamId);
        let mut lengths = BTreeMap::new();
        client.flush();
        server.flush();
        for step in steps {
            let [a, b] = match &step {
                Step::Send(true, ..) | Step::Take(true, ..) | Step::Deliver(true, _)
                | Step::Freeze(true) => [&mut server, &mut client],
                _ => [&mut client, &mut server],
            };
            match step {
                Step::Open(up, down) => {
                    if a.connection.max_streams() as usize > a.connection.open_streams()
                        && a.streams.len() < ids.len()
                    {
                        let id = a.connection.open("a:1", &HeaderMap::new()).unwrap();
                        let half = a.streams.entry(id).or_default();
                        half.to_send = up;
                        half.is_stalled = stalled[id.0 as usize / 2];
                        b.streams.entry(id).or_default().to_send = down;
                        lengths.insert(id, (up, down));
                        a.flush();
                    }
                }
                Step::Send(_, stream, length) => a.send(ids[stream], length),
                Step::Take(_, stream, length) => a.take(ids[stream], length),
                Step::Deliver(_, length) => a.receive(&mut b.wire, length),
                Step::Freeze(_) => a.freeze_and_thaw(),
                Step::Wait(ms) => {
                    a.now_ms += ms;
                    b.now_ms += ms;
                }
            }
        }
        // From here on everything moves, except what the stalled streams do not take.
        for _ in 0..40_000 {
            for id in ids {
                client.send(id, 500);
                server.send(id, 500);
                client.take(id, 500);
                server.take(id, 500);
            }
            if client.wire.is_empty() && server.wire.is_empty() {
                break;
            }
            client.receive(&mut server.wire, usize::MAX);
            server.receive(&mut client.wire, usize::MAX);
        }
        for (id, (up, down)) in lengths {
            let (at_client, at_server) = (&client.streams[&id], &server.streams[&id]);
            prop_assert_eq!((at_server.received, at_server.has_ended), (up, true));
            if !at_client.is_stalled {
                prop_assert_eq!((at_client.received, at_client.has_ended), (down, true));
            }
        }
    }
}
