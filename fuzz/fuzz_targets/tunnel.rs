//! Two ends of a tunnel, which the input drives, with state frozen in between or not; and what an
//! attacker changes in the bytes between them. The same steps have the same result either way, no
//! end fails unless bytes were changed, and no byte of a stream is lost or out of order.
#![no_main]

use std::collections::BTreeMap;

use http::{HeaderMap, StatusCode};
use libfuzzer_sys::fuzz_target;
use tls_record::{Direction, RecordState, Suite, TrafficSecret};
use tunnel::{
    Config, ErrorCode, Event, Http2Config, MIN_BUFFER, Received, Role, StreamId, Tunnel,
    TunnelError,
};

const SUITE: Suite = Suite::Aes128GcmSha256;
const STREAMS: u32 = 4;

struct End {
    tunnel: Tunnel,
    wire: Vec<u8>,
    arrived: usize,
    sent: BTreeMap<StreamId, u64>,
    received: BTreeMap<StreamId, u64>,
    unread: BTreeMap<StreamId, usize>,
    failure: Option<TunnelError>,
}

fn byte(id: StreamId, role: Role, at: u64) -> u8 {
    (at % 251) as u8 ^ id.0 as u8 ^ if role == Role::Client { 0 } else { 0x55 }
}

fn direction(role: Role) -> Direction {
    let secret = if role == Role::Client { 1 } else { 2 };
    Direction::new(TrafficSecret::new(&[secret; 32]), 0)
}

fn peer_of(role: Role) -> Role {
    match role {
        Role::Client => Role::Server,
        Role::Server => Role::Client,
    }
}

impl End {
    fn new(role: Role, window: u32) -> Self {
        let in_tls = match role {
            Role::Client => tls_record::Role::Client,
            Role::Server => tls_record::Role::Server,
        };
        let (tx, rx) = (direction(role), direction(peer_of(role)));
        let records = RecordState::new(SUITE, in_tls, tx, rx).thaw();
        let config = Config {
            http2: Http2Config {
                max_streams: STREAMS,
                stream_window: window,
                connection_window: window * STREAMS,
                ..Http2Config::default()
            },
            max_unsent: 20_000,
        };
        let records = records.expect("it is the state after a handshake");
        let mut tunnel = Tunnel::new(records, role, config, 0);
        tunnel.set_growth_budget(50_000);
        Self {
            tunnel,
            wire: Vec::new(),
            arrived: 0,
            sent: BTreeMap::new(),
            received: BTreeMap::new(),
            unread: BTreeMap::new(),
            failure: None,
        }
    }

    fn send(&mut self, role: Role, id: StreamId, length: usize, beyond: bool) {
        let from = *self.sent.entry(id).or_default();
        let data: Vec<u8> = (from..from + length as u64)
            .map(|at| byte(id, role, at))
            .collect();
        let sent = if beyond {
            self.tunnel.send_beyond(id, &data)
        } else {
            self.tunnel.send(id, &data, length == 0)
        };
        *self.sent.entry(id).or_default() += sent.unwrap_or(0) as u64;
    }

    fn flush(&mut self, most: usize) {
        let output = self.tunnel.output();
        let length = output.len().min(most);
        self.wire.extend_from_slice(&output[..length]);
        self.tunnel.sent(length);
    }

    /// Handles up to `most` bytes from the peer.
    fn receive(&mut self, role: Role, peer: &mut Self, most: usize, now_ms: u64) {
        if self.failure.is_some() {
            return;
        }
        let mut buffer = vec![0; MIN_BUFFER];
        let mut input = self.tunnel.input(&mut buffer);
        let available = &peer.wire[peer.arrived..];
        let length = available.len().min(most).min(input.space().len());
        input.space()[..length].copy_from_slice(&available[..length]);
        input.fill(length);
        peer.arrived += length;
        loop {
            match self.tunnel.receive(&mut input, now_ms) {
                Ok(Received::Event(Event::Request { id, .. })) => {
                    let headers = HeaderMap::new();
                    let _ = self.tunnel.respond(id, StatusCode::OK, &headers, false);
                }
                Ok(Received::Event(Event::Data { id, range })) => {
                    let at = self.received.entry(id).or_default();
                    *self.unread.entry(id).or_default() += range.len();
                    for received in input.data(range) {
                        assert_eq!(*received, byte(id, peer_of(role), *at));
                        *at += 1;
                    }
                }
                Ok(Received::Event(_)) => {}
                Ok(Received::NeedMore | Received::Closed) => break,
                Err(error) => {
                    self.failure = Some(error);
                    break;
                }
            }
        }
        self.tunnel.hold(input);
    }

    fn frozen(self) -> (String, Option<TunnelError>) {
        let state = serde_json::to_string(&self.tunnel.freeze());
        (state.expect("a state can be serialised"), self.failure)
    }
}

/// Freezes a tunnel, serialises it, and continues with the result.
fn thawed(tunnel: Tunnel) -> Tunnel {
    let state = serde_json::to_vec(&tunnel.freeze()).expect("a state can be serialised");
    let state: tunnel::TunnelState =
        serde_json::from_slice(&state).expect("a serialised state is valid");
    state.thaw().expect("it was a state of a tunnel")
}

/// Each step has three bytes: which one, and two operands. Returns the state of both ends, and
/// whether bytes were changed between them.
fn run(steps: &[u8], window: u32, freezing: bool) -> (Vec<(String, Option<TunnelError>)>, bool) {
    let mut ends = [Role::Client, Role::Server].map(|role| End::new(role, window));
    let (mut now_ms, mut is_changed, mut opened) = (0, false, 0);
    for step in steps.as_chunks::<3>().0 {
        let [kind, first, second] = *step;
        let (role, number) = if kind & 1 == 0 {
            (Role::Client, 0)
        } else {
            (Role::Server, 1)
        };
        let id = StreamId(1 + 2 * (u32::from(first) % STREAMS));
        let amount = usize::from(second) << (first >> 5);
        let [client, server] = &mut ends;
        let (end, peer) = if number == 0 {
            (client, server)
        } else {
            (server, client)
        };
        match kind / 2 % 12 {
            0 if number == 0 && opened < STREAMS => {
                opened += u32::from(end.tunnel.open("a:1", &HeaderMap::new()).is_ok());
            }
            0 | 1 => end.send(role, id, amount, false),
            2 => end.send(role, id, amount, true),
            3 | 4 => end.flush(amount * 4),
            5 | 6 => end.receive(role, peer, amount * 4, now_ms),
            7 => {
                let unread = end.unread.entry(id).or_default();
                let taken = amount.min(*unread);
                *unread -= taken;
                end.tunnel.taken(id, taken, now_ms);
            }
            8 => {
                let _ = end.tunnel.refresh_traffic_keys();
            }
            9 => now_ms += u64::from(second) / 16,
            10 if second > 250 => match first % 4 {
                0 => end.tunnel.reset(id, ErrorCode::CONNECT_ERROR),
                1 => end.tunnel.drain(),
                2 => end.tunnel.close(),
                _ => {
                    if let Some(changed) = peer.wire[peer.arrived..].first_mut() {
                        *changed ^= first;
                        is_changed = true;
                    }
                }
            },
            _ => end.tunnel.ping(now_ms),
        }
        if freezing {
            let [client, server] = ends;
            ends = [client, server].map(|end| End {
                tunnel: thawed(end.tunnel),
                ..end
            });
        }
    }
    (ends.into_iter().map(End::frozen).collect(), is_changed)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((window, steps)) = bytes.split_first() else {
        return;
    };
    let window = 1000 << (window % 8);
    let (plain, is_changed) = run(steps, window, false);
    let (frozen, _) = run(steps, window, true);
    assert_eq!(plain, frozen);
    if !is_changed {
        for (_, failure) in plain {
            assert!(
                matches!(
                    failure,
                    None | Some(TunnelError::Unread | TunnelError::Http2(tunnel::Violation::Flood))
                ),
                "{failure:?}"
            );
        }
    }
});
