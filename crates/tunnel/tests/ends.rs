//! How a tunnel ends, and which states are not thawed.
#![allow(clippy::unwrap_used)]

mod support;

use connect_h2::frame::write;
use http::HeaderMap;
use support::{DATA, Receiver, SUITE, sent_by, thawed, tunnel};
use tls_record::{Alert, Outgoing, Sealer};
use tunnel::{
    Config, ErrorCode, Event, OpenError, Received, RecordError, Role, SendError, StreamId,
    ThawError, Tunnel, TunnelError, TunnelState, Violation,
};

fn flush(tunnel: &mut Tunnel) -> Vec<u8> {
    let output = tunnel.output().to_vec();
    tunnel.sent(output.len());
    output
}

/// Receives bytes, and returns the events and how it ended.
fn receive(receiver: &mut Receiver, bytes: &[u8]) -> (Vec<Event>, Result<Received, TunnelError>) {
    let mut events = Vec::new();
    let ended = receiver.receive(bytes, 0, |_, event, _| events.push(event));
    (events, ended)
}

/// Two ends that have exchanged settings, with a stream.
fn connected() -> (Receiver, Receiver, StreamId) {
    let [mut client, mut server] = [Role::Client, Role::Server]
        .map(|role| Receiver::new(tunnel(role, Config::default()), false));
    let id = client.tunnel().open("a:1", &HeaderMap::new()).unwrap();
    for _ in 0..3 {
        receive(&mut server, &flush(client.tunnel())).1.unwrap();
        receive(&mut client, &flush(server.tunnel())).1.unwrap();
    }
    (client, server, id)
}

/// Nothing more is sent or opened on a tunnel.
fn assert_ended(tunnel: &mut Tunnel, id: StreamId) {
    assert_eq!(
        tunnel.open("a:1", &HeaderMap::new()),
        Err(OpenError::Closing)
    );
    assert_eq!(tunnel.send(id, b"a", false), Err(SendError::Closed));
    assert_eq!(tunnel.send(id, b"", true), Err(SendError::Closed));
    assert_eq!((tunnel.capacity(id), tunnel.max_streams()), (0, 0));
    assert!(flush(tunnel).is_empty());
}

#[test]
fn a_closed_tunnel_ends_behind_what_was_sent() {
    let (mut client, mut server, id) = connected();
    client.tunnel().send(id, b"last", false).unwrap();
    client.tunnel().close();
    let wire = flush(client.tunnel());
    assert_ended(client.tunnel(), id);
    let (events, ended) = receive(&mut server, &wire);
    assert!(matches!(events[..], [Event::Data { .. }]), "{events:?}");
    assert_eq!(ended, Ok(Received::Closed));
    assert_eq!(server.tunnel().end_of_input(), Ok(()));
    // The other direction is still open.
    server.tunnel().drain();
    let (events, ended) = receive(&mut client, &flush(server.tunnel()));
    assert!(matches!(events[..], [Event::GoAway { .. }]), "{events:?}");
    assert_eq!(ended, Ok(Received::NeedMore));
    assert_eq!(client.tunnel().failure(), None);
    assert!(flush(client.tunnel()).is_empty());
}

#[test]
fn a_connection_that_is_cut_is_an_error() {
    let (mut client, _, id) = connected();
    let error = TunnelError::Tls(RecordError::Truncated);
    assert_eq!(client.tunnel().end_of_input(), Err(error));
    assert!(client.tunnel().is_finished());
    assert_eq!(receive(&mut client, b"").1, Err(error));
    assert_eq!(client.tunnel().tick(1 << 40), Err(error));
    assert_eq!(client.tunnel().deadline_ms(), None);
    assert_ended(client.tunnel(), id);
}

#[test]
fn a_violation_of_http2_is_reported_by_goaway_and_close_notify() {
    let mut client = Receiver::new(tunnel(Role::Client, Config::default()), false);
    let id = client.tunnel().open("a:1", &HeaderMap::new()).unwrap();
    let (mut peer, mut wire) = (
        Sealer::new(SUITE, sent_by(Role::Server)),
        Outgoing::default(),
    );
    let mut frames = Vec::new();
    write::settings(&mut frames, &[]);
    frames.extend([0, 0, 4, 5, 4, 0, 0, 0, 1, 0, 0, 0, 2]); // PUSH_PROMISE
    peer.record(DATA, &frames, &mut wire).unwrap();
    let (_, ended) = receive(&mut client, wire.unsent());
    let error = TunnelError::Http2(Violation::PushPromise);
    assert_eq!(ended, Err(error));
    client = Receiver::new(thawed(client.tunnel.take().unwrap()), false);
    assert_eq!(client.tunnel().failure(), Some(error));
    let report = flush(client.tunnel());
    assert_ended(client.tunnel(), id);

    let mut server = Receiver::new(tunnel(Role::Server, Config::default()), false);
    let (events, ended) = receive(&mut server, &report);
    let (last, code) = (StreamId::CONNECTION, ErrorCode::PROTOCOL_ERROR);
    assert_eq!(events.last(), Some(&Event::GoAway { last, code }));
    assert_eq!(ended, Ok(Received::Closed));
}

#[test]
fn a_record_that_was_changed_is_reported_by_an_alert() {
    let (mut client, mut server, id) = connected();
    client.tunnel().send(id, b"data", false).unwrap();
    let mut wire = flush(client.tunnel());
    *wire.last_mut().unwrap() ^= 1;
    server.tunnel().drain(); // too late
    let (events, ended) = receive(&mut server, &wire);
    let error = TunnelError::Tls(RecordError::BadRecordMac);
    assert_eq!((events, ended), (vec![], Err(error)));
    let report = flush(server.tunnel());
    assert_ended(server.tunnel(), id);
    let (events, ended) = receive(&mut client, &report);
    let alert = RecordError::PeerAlert(Alert::BAD_RECORD_MAC);
    assert_eq!((events, ended), (vec![], Err(TunnelError::Tls(alert))));
    assert!(flush(client.tunnel()).is_empty());
}

#[test]
fn a_peer_that_answers_no_ping_ends_the_tunnel() {
    let (mut client, _, _) = connected();
    let idle = client.tunnel().deadline_ms().unwrap();
    assert_eq!(client.tunnel().tick(idle), Ok(()));
    assert!(!flush(client.tunnel()).is_empty());
    let unanswered = client.tunnel().deadline_ms().unwrap();
    let error = TunnelError::Http2(Violation::PingTimeout);
    assert_eq!(client.tunnel().tick(unanswered), Err(error));
}

#[test]
fn a_drained_tunnel_is_finished_with_its_last_stream() {
    let (mut client, mut server, id) = connected();
    server.tunnel().drain();
    for _ in 0..3 {
        receive(&mut client, &flush(server.tunnel())).1.unwrap();
        receive(&mut server, &flush(client.tunnel())).1.unwrap();
    }
    assert_eq!(client.tunnel().max_streams(), 0);
    assert!(!client.tunnel().is_finished() && !server.tunnel().is_finished());
    client.tunnel().release(id);
    receive(&mut server, &flush(client.tunnel())).1.unwrap();
    assert!(client.tunnel().is_finished() && server.tunnel().is_finished());
}

/// Changes a field of a state's serialised form.
fn changed(field: &str, value: serde_json::Value) -> Result<Tunnel, ThawError> {
    let state = tunnel(Role::Client, Config::default()).freeze();
    let mut json = serde_json::to_value(&state).unwrap();
    json[field] = value;
    let state: TunnelState = serde_json::from_value(json).unwrap();
    state.thaw()
}

#[test]
fn impossible_states_are_not_thawed() {
    let version = changed("version", 7.into()).err();
    assert_eq!(version, Some(ThawError::Version(7)));
    for field in ["opened", "gathered"] {
        let error = changed(field, vec![0; (1 << 14) + 1].into()).err();
        assert_eq!(error, Some(ThawError::PlainText((1 << 14) + 1)));
    }
    let text = ThawError::Version(7).to_string();
    assert_eq!(text, "the state of a tunnel has version 7; expected 2");
}

#[test]
fn debug_output_contains_neither_secrets_nor_data() {
    let (mut client, _, id) = connected();
    client.tunnel().send(id, &[0xc1; 40], false).unwrap();
    let state = client.tunnel.take().unwrap().freeze();
    let text = format!("{state:?}");
    assert!(text.contains("TrafficSecret(..)"), "{text}");
    for secret in ["193", "94", "c1", "5e"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[test]
#[should_panic(expected = "the read buffer is too small")]
fn a_small_read_buffer_is_rejected() {
    let mut tunnel = tunnel(Role::Client, Config::default());
    let _ = tunnel.input(&mut [0; 100]);
}
