//! A client and a server under random schedules: what they do depends neither on how the bytes are
//! split nor on whether their state is frozen, and every byte arrives.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use http::{HeaderMap, StatusCode};
use proptest::collection::vec;
use proptest::prelude::*;
use support::{Receiver, peer_of, tunnel};
use tunnel::{Change, Config, ErrorCode, Event, Http2Config, Role, StreamId, Tunnel};

const STREAMS: usize = 6;
const IDS: [StreamId; STREAMS] = [
    StreamId(1),
    StreamId(3),
    StreamId(5),
    StreamId(7),
    StreamId(9),
    StreamId(11),
];

/// The bytes that a role sends on a stream, from a position on.
fn payload(id: StreamId, role: Role, from: usize, length: usize) -> Vec<u8> {
    let salt = id.0 as u8 ^ if role == Role::Client { 0 } else { 0x55 };
    (from..from + length)
        .map(|at| (at + at / 251) as u8 ^ salt)
        .collect()
}

/// One direction of a stream, at each end.
#[derive(Default)]
struct Half {
    sent: usize,
    to_send: usize,
    has_finished: bool,
    received: usize,
    unread: usize,
    has_ended: bool,
}

struct End {
    role: Role,
    receiver: Receiver,
    streams: BTreeMap<StreamId, Half>,
    /// Everything that was sent, of which this many bytes have arrived.
    wire: Vec<u8>,
    arrived: usize,
    /// What happened, in words.
    log: Vec<String>,
    now_ms: u64,
}

impl End {
    fn new(role: Role, config: Config, is_freezing: bool) -> Self {
        let mut tunnel = tunnel(role, config);
        tunnel.set_growth_budget(5000);
        Self {
            role,
            receiver: Receiver::new(tunnel, is_freezing),
            streams: BTreeMap::new(),
            wire: Vec::new(),
            arrived: 0,
            log: Vec::new(),
            now_ms: 0,
        }
    }

    fn tunnel(&mut self) -> &mut Tunnel {
        self.receiver.tunnel()
    }

    fn note(&mut self, what: impl std::fmt::Debug) {
        self.log.push(format!("{what:?}"));
    }

    fn open(&mut self, id: StreamId, to_send: usize) {
        self.streams.entry(id).or_default().to_send = to_send;
    }

    /// Up to `length` bytes of what the peer has sent arrive.
    fn receive(&mut self, peer: &mut Self, length: usize) {
        let end = peer.wire.len().min(peer.arrived + length);
        let bytes = &peer.wire[peer.arrived..end];
        peer.arrived = end;
        let (streams, log, role) = (&mut self.streams, &mut self.log, self.role);
        let ended = self
            .receiver
            .receive(bytes, self.now_ms, |tunnel, event, data| {
                match &event {
                    Event::Data { id, .. } => log.push(format!("{id}: {} bytes", data.len())),
                    other => log.push(format!("{other:?}")),
                }
                match event {
                    Event::Request { id, .. } => {
                        streams.entry(id).or_default();
                        let answered = tunnel.respond(id, StatusCode::OK, &HeaderMap::new(), false);
                        answered.unwrap();
                    }
                    Event::Data { id, .. } => {
                        let half = streams.get_mut(&id).unwrap();
                        let expected = payload(id, peer_of(role), half.received, data.len());
                        assert_eq!(data, expected);
                        half.received += data.len();
                        half.unread += data.len();
                    }
                    Event::Stream {
                        id,
                        change: Change::Ended,
                    } => {
                        streams.get_mut(&id).unwrap().has_ended = true;
                    }
                    _ => {}
                }
            });
        self.note(ended);
    }

    /// Sends up to `length` bytes on a stream, and its end behind the last.
    fn send(&mut self, id: StreamId, length: usize) {
        let role = self.role;
        let Some(half) = self.streams.get_mut(&id) else {
            return;
        };
        if half.has_finished {
            return;
        }
        let data = payload(id, role, half.sent, length.min(half.to_send - half.sent));
        let is_last = half.sent + data.len() == half.to_send;
        let sent = self.receiver.tunnel().send(id, &data, is_last);
        if let Ok(accepted) = sent {
            half.sent += accepted;
            half.has_finished = is_last && accepted == data.len();
        }
        self.note((id, sent));
    }

    fn take(&mut self, id: StreamId, length: usize) {
        let now_ms = self.now_ms;
        if let Some(half) = self.streams.get_mut(&id) {
            let length = length.min(half.unread);
            half.unread -= length;
            self.receiver.tunnel().taken(id, length, now_ms);
        }
    }

    /// Sends up to `length` bytes of the output.
    fn flush(&mut self, length: usize) {
        let output = self.receiver.tunnel().output();
        let length = length.min(output.len());
        self.wire.extend_from_slice(&output[..length]);
        self.tunnel().sent(length);
    }

    fn state(&mut self) -> String {
        serde_json::to_string(&self.receiver.tunnel.take().unwrap().freeze()).unwrap()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Open(usize, usize),
    Send(Role, usize, usize),
    Take(Role, usize, usize),
    Flush(Role, usize),
    Deliver(Role, usize),
    Refresh(Role),
    Reset(Role, usize),
    Drain(Role),
    Close(Role),
    Wait(u64),
}

fn any_role() -> impl Strategy<Value = Role> {
    any::<bool>().prop_map(|is_client| {
        if is_client {
            Role::Client
        } else {
            Role::Server
        }
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    let amount = || prop_oneof![9 => 0..800_usize, 1 => 0..60_000_usize];
    let part = move || (any_role(), 0..STREAMS, amount());
    prop_oneof![
        4 => (amount(), amount()).prop_map(|(up, down)| Step::Open(up, down)),
        10 => part().prop_map(|(role, stream, length)| Step::Send(role, stream, length)),
        8 => part().prop_map(|(role, stream, length)| Step::Take(role, stream, length)),
        10 => (any_role(), amount()).prop_map(|(role, length)| Step::Flush(role, length)),
        10 => (any_role(), amount()).prop_map(|(role, length)| Step::Deliver(role, length)),
        3 => any_role().prop_map(Step::Refresh),
        1 => (any_role(), 0..STREAMS).prop_map(|(role, stream)| Step::Reset(role, stream)),
        1 => any_role().prop_map(Step::Drain),
        1 => any_role().prop_map(Step::Close),
        2 => (0..5_u64).prop_map(Step::Wait),
    ]
}

fn config(window: u32, max_unsent: usize) -> Config {
    Config {
        http2: Http2Config {
            max_streams: STREAMS as u32,
            stream_window: window,
            // Enough for all, as in the proxy.
            connection_window: window * STREAMS as u32,
            ..Http2Config::default()
        },
        max_unsent,
    }
}

/// Both ends: the client, then the server.
struct Pair([End; 2]);

impl Pair {
    fn new(windows: (u32, u32), max_unsent: usize, is_freezing: bool) -> Self {
        let [client, server] = [(Role::Client, windows.0), (Role::Server, windows.1)]
            .map(|(role, window)| End::new(role, config(window, max_unsent), is_freezing));
        Self([client, server])
    }

    /// One end, and its peer.
    fn of(&mut self, role: Role) -> (&mut End, &mut End) {
        let [client, server] = &mut self.0;
        match role {
            Role::Client => (client, server),
            Role::Server => (server, client),
        }
    }

    fn open(&mut self, up: usize, down: usize) {
        let (client, server) = self.of(Role::Client);
        if client.tunnel().open_streams() < client.tunnel().max_streams()
            && client.streams.len() < STREAMS
        {
            let id = client.tunnel().open("a:1", &HeaderMap::new()).unwrap();
            client.open(id, up);
            server.open(id, down);
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Open(up, down) => self.open(up, down),
            Step::Send(role, stream, length) => self.of(role).0.send(IDS[stream], length),
            Step::Take(role, stream, length) => self.of(role).0.take(IDS[stream], length),
            Step::Flush(role, length) => self.of(role).0.flush(length),
            Step::Deliver(role, length) => {
                let (end, peer) = self.of(role);
                end.receive(peer, length);
            }
            Step::Refresh(role) => {
                let end = self.of(role).0;
                let refreshed = end.tunnel().refresh_traffic_keys();
                end.note(refreshed);
            }
            Step::Reset(role, stream) => {
                let end = self.of(role).0;
                end.tunnel().reset(IDS[stream], ErrorCode::CONNECT_ERROR);
            }
            Step::Drain(role) => self.of(role).0.tunnel().drain(),
            Step::Close(role) => self.of(role).0.tunnel().close(),
            Step::Wait(ms) => self.0.iter_mut().for_each(|end| end.now_ms += ms),
        }
    }

    /// Everything moves, over a connection that holds few bytes, until nothing does.
    fn complete(&mut self, capacity: usize) {
        let mut before = Vec::new();
        loop {
            for role in [Role::Client, Role::Server] {
                let (end, peer) = self.of(role);
                for id in IDS {
                    end.send(id, 5000);
                    end.take(id, 5000);
                }
                let in_transit = end.wire.len() - end.arrived;
                end.flush(capacity.saturating_sub(in_transit));
                end.receive(peer, capacity);
            }
            let progress: Vec<_> = self
                .0
                .iter()
                .map(|end| (end.wire.len(), end.arrived))
                .collect();
            if progress == before {
                return;
            }
            before = progress;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn freezing_at_every_event_equals_not_freezing(
        steps in vec(any_step(), 0..150),
        windows in (1..100_000_u32, 1..100_000_u32),
        max_unsent in 1..100_000_usize,
    ) {
        let [mut plain, mut frozen] = [false, true].map(|is_freezing| {
            let mut pair = Pair::new(windows, max_unsent, is_freezing);
            steps.iter().for_each(|step| pair.run(step));
            pair
        });
        for (plain, frozen) in plain.0.iter_mut().zip(&mut frozen.0) {
            prop_assert_eq!(&plain.log, &frozen.log);
            prop_assert_eq!(&plain.wire, &frozen.wire);
            prop_assert_eq!(plain.state(), frozen.state());
        }
    }

    #[test]
    fn every_byte_arrives_whatever_windows_and_buffers_are(
        steps in vec(any_step(), 0..100),
        windows in (1..100_000_u32, 1..100_000_u32),
        max_unsent in 1..100_000_usize,
        capacity in 1..40_000_usize,
    ) {
        let mut pair = Pair::new(windows, max_unsent, false);
        for step in &steps {
            if !matches!(step, Step::Reset(..) | Step::Drain(_) | Step::Close(_)) {
                pair.run(step);
            }
        }
        pair.complete(capacity);
        for end in &pair.0 {
            for (id, half) in &end.streams {
                prop_assert!(half.has_finished && half.has_ended, "{:?} {id}", end.role);
                prop_assert_eq!(half.sent, half.to_send);
            }
        }
        let [client, server] = &pair.0;
        for (id, half) in &client.streams {
            prop_assert_eq!(half.received, server.streams[id].sent);
            prop_assert_eq!(server.streams[id].received, half.sent);
        }
    }
}
