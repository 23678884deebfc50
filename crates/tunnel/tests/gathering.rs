//! What several streams send in one turn shares records, and how much may wait is limited.
#![allow(clippy::unwrap_used)]

mod support;

use connect_h2::frame::{PREFACE, write};
use http::{HeaderMap, StatusCode};
use support::{DATA, Receiver, SUITE, record_lengths, sent_by, tunnel};
use tls_record::{MAX_FRAGMENT, Outgoing, Sealer};
use tunnel::{
    Change, Config, Event, Http2Config, Received, Role, SendError, StreamId, Tunnel, TunnelError,
};

/// What TLS adds to a record, in bytes, without its header.
const OVERHEAD: usize = 17;
const FRAME_HEADER: usize = 9;

struct End {
    receiver: Receiver,
    /// Data of all streams, in the order of arrival.
    data: Vec<u8>,
    events: Vec<Event>,
}

impl End {
    fn new(role: Role, config: Config) -> Self {
        Self {
            receiver: Receiver::new(tunnel(role, config), false),
            data: Vec::new(),
            events: Vec::new(),
        }
    }

    fn tunnel(&mut self) -> &mut Tunnel {
        self.receiver.tunnel()
    }

    /// The whole output.
    fn flush(&mut self) -> Vec<u8> {
        let output = self.tunnel().output().to_vec();
        self.tunnel().sent(output.len());
        output
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<Received, TunnelError> {
        let Self {
            receiver,
            data,
            events,
        } = self;
        receiver.receive(bytes, 0, |tunnel, event, bytes| {
            data.extend_from_slice(bytes);
            match event {
                Event::Request { id, .. } => {
                    let answered = tunnel.respond(id, StatusCode::OK, &HeaderMap::new(), false);
                    answered.unwrap();
                }
                Event::Data { .. } => {}
                event => events.push(event),
            }
        })
    }

    fn has_credit(&mut self, id: StreamId) -> bool {
        let change = Change::Credit;
        std::mem::take(&mut self.events).contains(&Event::Stream { id, change })
    }
}

/// Passes the output of each end to the other one until there is none.
fn exchange(a: &mut End, b: &mut End) {
    loop {
        let (of_a, of_b) = (a.flush(), b.flush());
        if of_a.is_empty() && of_b.is_empty() {
            return;
        }
        b.receive(&of_a).unwrap();
        a.receive(&of_b).unwrap();
    }
}

/// Two ends with open streams.
fn connected(config: Config, streams: usize) -> (End, End, Vec<StreamId>) {
    let (mut client, mut server) = (
        End::new(Role::Client, config),
        End::new(Role::Server, config),
    );
    exchange(&mut client, &mut server);
    let ids = (0..streams)
        .map(|_| client.tunnel().open("a:1", &HeaderMap::new()).unwrap())
        .collect();
    exchange(&mut client, &mut server);
    client.events.clear();
    (client, server, ids)
}

#[test]
fn frames_of_many_streams_share_a_record() {
    let (mut client, mut server, ids) = connected(Config::default(), 50);
    let mut expected = Vec::new();
    for (number, id) in ids.iter().enumerate() {
        let data = [number as u8; 100];
        assert_eq!(client.tunnel().send(*id, &data, false), Ok(100));
        expected.extend(data);
    }
    let wire = client.flush();
    assert_eq!(
        record_lengths(&wire),
        [50 * (FRAME_HEADER + 100) + OVERHEAD]
    );
    server.receive(&wire).unwrap();
    assert_eq!(server.data, expected);
}

#[test]
fn large_chunks_fill_records_together_with_what_is_before_and_behind() {
    let (mut client, mut server, ids) = connected(Config::default(), 3);
    let chunks = [vec![1; 5], vec![2; 50_000], vec![3; 7]];
    for (id, chunk) in ids.iter().zip(&chunks) {
        assert_eq!(client.tunnel().send(*id, chunk, true), Ok(chunk.len()));
    }
    let wire = client.flush();
    let total = 50_012 + 3 * FRAME_HEADER;
    let full = MAX_FRAGMENT + OVERHEAD;
    let last = total - 3 * MAX_FRAGMENT + OVERHEAD;
    assert_eq!(record_lengths(&wire), [full, full, full, last]);
    server.receive(&wire).unwrap();
    assert_eq!(server.data, chunks.concat());
}

#[test]
fn answers_to_the_peer_share_the_record_of_data() {
    let (mut client, mut server, ids) = connected(Config::default(), 1);
    server.tunnel().ping(0);
    client.receive(&server.flush()).unwrap();
    client.tunnel().send(ids[0], b"data", false).unwrap();
    let wire = client.flush();
    assert_eq!(record_lengths(&wire).len(), 1);
    server.receive(&wire).unwrap();
    assert_eq!(server.data, b"data");
}

#[test]
fn a_frame_is_no_larger_than_the_peer_accepts() {
    let (mut client, mut server, ids) = connected(
        Config {
            http2: Http2Config {
                max_frame: 1 << 14,
                ..Http2Config::default()
            },
            ..Config::default()
        },
        1,
    );
    let data = vec![7; 100_000];
    assert_eq!(client.tunnel().send(ids[0], &data, true), Ok(data.len()));
    server.receive(&client.flush()).unwrap();
    assert_eq!(server.data, data);
}

#[test]
fn a_closed_window_accepts_nothing_until_credit() {
    let config = Config {
        http2: Http2Config {
            stream_window: 1000,
            ..Http2Config::default()
        },
        ..Config::default()
    };
    let (mut client, mut server, ids) = connected(config, 1);
    let id = ids[0];
    assert_eq!(client.tunnel().send(id, &[1; 1500], true), Ok(1000));
    assert_eq!(client.tunnel().send(id, &[1; 500], true), Ok(0));
    exchange(&mut client, &mut server);
    assert!(!client.has_credit(id), "the application has taken nothing");
    server.tunnel().taken(id, 1000, 0);
    exchange(&mut client, &mut server);
    assert!(client.has_credit(id));
    assert_eq!(client.tunnel().send(id, &[1; 500], true), Ok(500));
    let closed = client.tunnel().send(id, &[1], false);
    assert_eq!(closed, Err(SendError::Closed));
}

#[test]
fn data_that_waits_to_be_sent_is_limited_but_control_frames_are_not() {
    let config = Config {
        max_unsent: 10_000,
        ..Config::default()
    };
    let (mut client, mut server, ids) = connected(config, 2);
    let data = vec![9; 200_000];
    let accepted = client.tunnel().send(ids[0], &data, false).unwrap();
    assert!((10_000..10_000 + (64 << 10)).contains(&accepted));
    assert_eq!(client.tunnel().capacity(ids[1]), 0);
    assert_eq!(client.tunnel().send(ids[1], &[1], false), Ok(0));
    // The end of a stream and a new one wait for nothing.
    assert_eq!(client.tunnel().send(ids[1], &[], true), Ok(0));
    client.tunnel().open("a:1", &HeaderMap::new()).unwrap();
    exchange(&mut client, &mut server);
    assert_eq!(server.data.len(), accepted);
    assert_eq!(server.tunnel().open_streams(), 3);
    assert!(client.tunnel().capacity(ids[0]) > 0);
}

#[test]
fn data_beyond_the_limit_is_no_reason_to_end_the_tunnel() {
    let config = Config {
        max_unsent: 10_000,
        ..Config::default()
    };
    let (mut client, mut server, ids) = connected(config, 20);
    let data = vec![9; 400_000];
    for id in &ids {
        assert_eq!(client.tunnel().send_beyond(*id, &data), Ok(data.len()));
        assert_eq!(client.tunnel().send(*id, &[1], false), Ok(0));
    }
    server.tunnel().ping(0);
    client.receive(&server.flush()).unwrap();
    exchange(&mut client, &mut server);
    assert_eq!(server.data.len(), ids.len() * data.len());
    assert!(client.tunnel().capacity(ids[0]) > 0);
}

#[test]
fn a_peer_that_pings_but_never_reads_ends_the_tunnel() {
    let mut server = Receiver::new(tunnel(Role::Server, Config::default()), false);
    let (mut client, mut wire) = (
        Sealer::new(SUITE, sent_by(Role::Client)),
        Outgoing::default(),
    );
    let mut opening = PREFACE.to_vec();
    write::settings(&mut opening, &[]);
    write::settings_ack(&mut opening);
    client.record(DATA, &opening, &mut wire).unwrap();
    let mut pings = Vec::new();
    (0..900).for_each(|_| write::ping(&mut pings, [0; 8], false));
    let (mut now_ms, mut ended) = (0, Ok(Received::NeedMore));
    while ended.is_ok() {
        now_ms += 10_000; // as many are accepted again
        assert!(now_ms < 10_000_000, "the answers have no limit");
        client.record(DATA, &pings, &mut wire).unwrap();
        ended = server.receive(wire.unsent(), now_ms, |_, _, _| {});
        wire.sent(wire.unsent().len());
    }
    assert_eq!(ended, Err(TunnelError::Unread));
    assert_eq!(server.tunnel().failure(), Some(TunnelError::Unread));
}

#[test]
fn an_idle_tunnel_keeps_little_memory() {
    let (mut client, mut server, ids) = connected(Config::default(), 1);
    let data = vec![1; 200_000];
    client.tunnel().send(ids[0], &data, false).unwrap();
    exchange(&mut client, &mut server);
    for end in [&mut client, &mut server] {
        end.tunnel().release_memory();
        assert_eq!(end.tunnel().unsent(), 0);
    }
    let frozen = client.receiver.tunnel.take().unwrap().freeze();
    let text = serde_json::to_string(&frozen).unwrap();
    assert!(text.len() < 4096, "{} bytes: {text}", text.len());
}
