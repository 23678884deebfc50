//! GOAWAY, drain, keepalive, and violations that close the connection.
#![allow(clippy::unwrap_used)]

mod support;

use connect_h2::frame::write;
use connect_h2::{Change, Connection, ErrorCode, Event, OpenError, Role, StreamId, Violation};
use http::{HeaderMap, StatusCode};
use support::{End, Seen, config, exchange, frame, headers, pair, served};

#[test]
fn a_drain_serves_what_is_on_the_way_and_ends_with_the_last_stream() {
    let (mut client, mut server) = pair(config());
    let first = client.open();
    exchange(&mut client, &mut server);
    server.connection.drain();
    // The client does not know yet.
    let second = client.open();
    exchange(&mut client, &mut server);
    assert_eq!(server.events().len(), 2);
    let no_error = ErrorCode::NO_ERROR;
    let announced = [
        Seen::GoAway(StreamId::MAX.0, no_error),
        Seen::GoAway(second.0, no_error),
    ];
    assert_eq!(client.events(), announced);
    let opened = client.connection.open("a:1", &HeaderMap::new());
    assert_eq!(
        (opened, client.connection.max_streams()),
        (Err(OpenError::Closing), 0)
    );
    for id in [first, second] {
        assert!(!server.connection.is_finished() && !client.connection.is_finished());
        server
            .connection
            .respond(id, StatusCode::OK, &HeaderMap::new(), true)
            .unwrap();
        exchange(&mut client, &mut server);
        let wire = client.data(id, b"late", true);
        server.feed(&wire);
    }
    assert!(server.connection.is_finished() && client.connection.is_finished());
}

#[test]
fn streams_after_the_last_one_are_refused_and_may_be_repeated() {
    let (mut client, mut server) = pair(config());
    let _ids = [client.open(), client.open(), client.open()];
    exchange(&mut client, &mut server);
    let mut wire = Vec::new();
    write::go_away(&mut wire, StreamId(3), ErrorCode::ENHANCE_YOUR_CALM, "busy");
    wire.extend(headers(1, &[(":status", "200")], false));
    client.feed(&wire);
    let expected = [
        Seen::GoAway(3, ErrorCode::ENHANCE_YOUR_CALM),
        Seen::Stream(5, Change::Refused),
        Seen::Response(1, 200),
    ];
    assert_eq!(client.events(), expected);
    let mut later = Vec::new();
    write::go_away(&mut later, StreamId(1), ErrorCode::NO_ERROR, "");
    client.feed(&later);
    assert_eq!(client.events()[1..], [Seen::Stream(3, Change::Refused)]);
    client.feed(&wire[..9 + 8 + 4]);
    assert_eq!(client.error, Some(Violation::GoAwayIncreased));
}

#[test]
fn requests_after_the_drain_are_ignored_without_losing_compression() {
    let mut server = served(config());
    server.connection.drain();
    server.feed(&frame(6, 1, 0, b"draining"));
    server.connection.take_output();
    // An entry of the dynamic table, which the next stream refers to.
    let mut block = vec![0x42, 7];
    block.extend(b"CONNECT");
    block.extend([0x01, 3]);
    block.extend(b"a:1");
    server.feed(&frame(1, 4, 1, &block));
    server.feed(&frame(0, 0, 1, b"data"));
    assert_eq!((server.events(), server.error), (vec![], None));
    assert!(server.connection.is_finished());
    server.feed(&frame(1, 4, 3, &[0xbe, 0x01, 3, b'a', b':', b'1']));
    assert_eq!(server.error, None);
}

#[test]
fn a_client_that_drains_closes_after_its_streams() {
    let (mut client, mut server) = pair(config());
    let id = client.open();
    exchange(&mut client, &mut server);
    client.connection.drain();
    exchange(&mut client, &mut server);
    assert!(!client.connection.is_finished());
    server
        .connection
        .reject(id, StatusCode::SERVICE_UNAVAILABLE);
    exchange(&mut client, &mut server);
    assert!(client.connection.is_finished());
}

#[test]
fn idle_peers_are_pinged_and_anything_they_send_shows_life() {
    let (mut client, mut server) = pair(config());
    let id = client.open();
    exchange(&mut client, &mut server);
    assert_eq!(client.connection.deadline_ms(), Some(10_000));
    client.connection.tick(9_999).unwrap();
    assert_eq!(client.connection.output(), b"");
    client.connection.tick(10_000).unwrap();
    assert_eq!(client.connection.output().len(), 17);
    assert_eq!(client.connection.deadline_ms(), Some(30_000));
    // Data, while the answer waits behind it.
    server
        .connection
        .respond(id, StatusCode::OK, &HeaderMap::new(), false)
        .unwrap();
    client.now_ms = 29_000;
    let wire = server.data(id, b"data", false);
    client.feed(&wire);
    assert_eq!(client.connection.heard_ms(), 29_000);
    client.connection.tick(30_000).unwrap();
    assert_eq!(client.connection.deadline_ms(), Some(49_000));
    client.now_ms = 40_000;
    exchange(&mut client, &mut server);
    assert_eq!(client.connection.deadline_ms(), Some(50_000));
    client.connection.tick(50_000).unwrap();
    assert_eq!(client.connection.tick(70_000), Err(Violation::PingTimeout));
    assert_eq!(client.connection.deadline_ms(), None);
    assert!(client.connection.is_finished());
}

#[test]
fn settings_are_due_within_their_deadline() {
    let mut client = Connection::new(Role::Client, config(), 100);
    assert_eq!(client.deadline_ms(), Some(5_100));
    let mut wire = Vec::new();
    write::settings(&mut wire, &[]);
    assert!(client.receive(&wire, &mut 0, 100).is_ok());
    assert_eq!(client.tick(5_099), Ok(()));
    assert_eq!(
        client.tick(5_100),
        Err(Violation::SettingsTimeout),
        "not acknowledged"
    );
}

#[test]
fn violations_close_the_connection_with_their_code() {
    use ErrorCode as Code;
    let open = support::connect(1);
    let after = |frames: &[&[u8]]| frames.concat();
    for (wire, violation, code) in [
        (
            frame(5, 4, 1, &[0; 4]),
            Violation::PushPromise,
            Code::PROTOCOL_ERROR,
        ),
        (
            frame(0, 0, 1, b"x"),
            Violation::UnexpectedStream,
            Code::PROTOCOL_ERROR,
        ),
        (
            frame(3, 0, 1, &[0; 4]),
            Violation::UnexpectedStream,
            Code::PROTOCOL_ERROR,
        ),
        (
            frame(8, 0, 1, &[0, 0, 0, 1]),
            Violation::UnexpectedStream,
            Code::PROTOCOL_ERROR,
        ),
        (
            frame(8, 0, 2, &[0, 0, 0, 1]),
            Violation::UnexpectedStream,
            Code::PROTOCOL_ERROR,
        ),
        (
            support::connect(2),
            Violation::UnexpectedStream,
            Code::PROTOCOL_ERROR,
        ),
        (
            frame(1, 4, 1, &[0x80]),
            Violation::InvalidCompression,
            Code::COMPRESSION_ERROR,
        ),
        (
            frame(4, 1, 0, &[]),
            Violation::UnexpectedAcknowledgement,
            Code::PROTOCOL_ERROR,
        ),
        (
            frame(9, 4, 1, &[]),
            Violation::InterruptedHeaders,
            Code::PROTOCOL_ERROR,
        ),
        (
            after(&[&frame(1, 0, 1, &[0x82]), &frame(6, 0, 0, &[0; 8])]),
            Violation::InterruptedHeaders,
            Code::PROTOCOL_ERROR,
        ),
        (
            after(&[&frame(1, 0, 1, &[0x82]), &frame(0, 0, 1, &[])]),
            Violation::InterruptedHeaders,
            Code::PROTOCOL_ERROR,
        ),
        (
            after(&[&frame(1, 0, 1, &[0x82]), &frame(9, 4, 3, &[])]),
            Violation::InterruptedHeaders,
            Code::PROTOCOL_ERROR,
        ),
        (
            frame(0, 0, 0, &[]),
            Violation::UnexpectedStream,
            Code::PROTOCOL_ERROR,
        ),
        (
            frame(4, 0, 0, &[0; 5]),
            Violation::InvalidFrameLength,
            Code::FRAME_SIZE_ERROR,
        ),
        (
            frame(0, 0, 1, &[0; 70_000]),
            Violation::FrameTooLarge,
            Code::FRAME_SIZE_ERROR,
        ),
    ] {
        let mut server = served(config());
        let (wire, last) = match code {
            Code::FRAME_SIZE_ERROR => (after(&[&open, &wire]), 1),
            _ => (wire, 0),
        };
        server.feed(&wire);
        assert_eq!(server.error, Some(violation));
        let mut expected = Vec::new();
        write::go_away(&mut expected, StreamId(last), code, &violation.to_string());
        assert!(
            server.connection.output().ends_with(&expected),
            "{violation}"
        );
        let again = server.connection.receive(&open, &mut 0, 0);
        assert_eq!(again, Err(violation), "it stays failed");
    }
}

#[test]
fn the_first_frame_is_settings() {
    let mut server = End::new(Role::Server, config());
    let mut wire = connect_h2::frame::PREFACE.to_vec();
    wire.extend(frame(6, 0, 0, &[0; 8]));
    server.feed(&wire);
    assert_eq!(server.error, Some(Violation::NoSettings));
    let mut server = End::new(Role::Server, config());
    server.feed(b"GET / HTTP/1.1\r\n");
    assert_eq!(server.error, Some(Violation::NoPreface));
    let mut client = End::new(Role::Client, config());
    client.feed(&frame(4, 0, 0, &[0, 2, 0, 0, 0, 1]));
    assert_eq!(
        client.error,
        Some(Violation::InvalidSetting),
        "a server does not push"
    );
}

#[test]
fn frames_after_the_end_of_a_stream_fail_only_that_stream() {
    for late in [frame(0, 0, 1, b"x"), headers(1, &[("x", "y")], true)] {
        let mut server = served(config());
        server.feed(&support::connect(1));
        server.feed(&frame(0, 1, 1, b"x"));
        server.feed(&late);
        let failed = Seen::Stream(1, Change::Failed(Violation::StreamClosed));
        assert_eq!(
            (server.events().last(), server.error),
            (Some(&failed), None)
        );
    }
}

#[test]
fn no_events_of_a_stream_follow_its_release() {
    let (mut client, mut server) = pair(config());
    let id = client.open();
    exchange(&mut client, &mut server);
    let mut wire = Vec::new();
    write::go_away(&mut wire, StreamId::CONNECTION, ErrorCode::NO_ERROR, "");
    let mut at = 0;
    let first = client.connection.receive(&wire, &mut at, 0);
    assert!(matches!(first, Ok(Some(Event::GoAway { .. }))));
    client.connection.release(id);
    assert_eq!(client.connection.receive(&wire, &mut at, 0), Ok(None));
}
