//! Ends of tunnels whose keys are chosen, so that two runs are equal byte for byte.
#![allow(dead_code, reason = "each test uses a part")]

use tls_record::{Direction, RecordLayer, RecordState, Suite, TrafficSecret};
use tunnel::{Config, Event, Input, MIN_BUFFER, Received, Role, Tunnel, TunnelError, TunnelState};

pub const SUITE: Suite = Suite::Aes128GcmSha256;
/// The content type of application data.
pub const DATA: u8 = 23;

/// The direction in which one role sends, under its first keys.
pub fn sent_by(role: Role) -> Direction {
    let byte = match role {
        Role::Client => 0xc1,
        Role::Server => 0x5e,
    };
    Direction::new(TrafficSecret::new(&vec![byte; SUITE.secret_len()]), 0)
}

pub fn peer_of(role: Role) -> Role {
    match role {
        Role::Client => Role::Server,
        Role::Server => Role::Client,
    }
}

/// The records of one end after its handshake.
pub fn records(role: Role) -> RecordLayer {
    let role_in_tls = match role {
        Role::Client => tls_record::Role::Client,
        Role::Server => tls_record::Role::Server,
    };
    let (tx, rx) = (sent_by(role), sent_by(peer_of(role)));
    let state = RecordState::new(SUITE, role_in_tls, tx, rx);
    state.thaw().expect("it is the state after a handshake")
}

pub fn tunnel(role: Role, config: Config) -> Tunnel {
    Tunnel::new(records(role), role, config, 0)
}

/// Freezes a tunnel, serialises it, and continues with the result.
pub fn thawed(tunnel: Tunnel) -> Tunnel {
    let text = serde_json::to_vec(&tunnel.freeze()).expect("the state can be serialised");
    let state: TunnelState = serde_json::from_slice(&text).expect("it is the same format");
    state.thaw().expect("it was a state of a tunnel")
}

/// An end that handles one event at a time.
pub struct Receiver {
    pub tunnel: Option<Tunnel>,
    buffer: Vec<u8>,
    /// Whether the tunnel is frozen and thawed at every event.
    is_freezing: bool,
}

impl Receiver {
    pub fn new(tunnel: Tunnel, is_freezing: bool) -> Self {
        Self {
            tunnel: Some(tunnel),
            buffer: vec![0; MIN_BUFFER],
            is_freezing,
        }
    }

    pub fn tunnel(&mut self) -> &mut Tunnel {
        self.tunnel.as_mut().expect("it is only taken to be frozen")
    }

    /// Receives bytes and passes each event with its data to `handle`. Returns how it ended.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        now_ms: u64,
        mut handle: impl FnMut(&mut Tunnel, Event, &[u8]),
    ) -> Result<Received, TunnelError> {
        loop {
            let mut tunnel = self.tunnel.take().expect("it is only taken to be frozen");
            let mut input = tunnel.input(&mut self.buffer);
            fill(&mut input, &mut bytes);
            let received = tunnel.receive(&mut input, now_ms);
            let mut data = Vec::new();
            if let Ok(Received::Event(Event::Data { range, .. })) = &received {
                data = input.data(range.clone()).to_vec();
            }
            tunnel.hold(input);
            if self.is_freezing {
                tunnel = thawed(tunnel);
            }
            match received {
                Ok(Received::Event(event)) => {
                    handle(&mut tunnel, event, &data);
                    self.tunnel = Some(tunnel);
                }
                ended => {
                    self.tunnel = Some(tunnel);
                    if ended != Ok(Received::NeedMore) || bytes.is_empty() {
                        return ended;
                    }
                }
            }
        }
    }
}

/// Moves as many bytes into an input as fit.
fn fill(input: &mut Input<'_>, bytes: &mut &[u8]) {
    let space = input.space();
    let length = space.len().min(bytes.len());
    let (now, later) = bytes.split_at(length);
    space[..length].copy_from_slice(now);
    input.fill(length);
    *bytes = later;
}

/// Lengths of the records in a stream of bytes, without their headers.
pub fn record_lengths(mut bytes: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        lengths.push(length);
        bytes = &rest[length..];
    }
    lengths
}
