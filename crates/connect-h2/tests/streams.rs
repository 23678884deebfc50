//! Streams between two ends: heads, data, half-closes, resets and refusals.
#![allow(clippy::unwrap_used)]

mod support;

use connect_h2::frame::write;
use connect_h2::{Change, Config, ErrorCode, OpenError, Role, SendError, StreamId};
use http::{HeaderMap, HeaderValue, StatusCode};
use support::{End, Seen, config, exchange, frame, headers, pair};

/// A client and a server with an answered stream.
fn established() -> (End, End, StreamId) {
    let (mut client, mut server) = pair(config());
    let id = client.open();
    exchange(&mut client, &mut server);
    let answered = server
        .connection
        .respond(id, StatusCode::OK, &HeaderMap::new(), false);
    answered.unwrap();
    exchange(&mut client, &mut server);
    client.events();
    server.events();
    (client, server, id)
}

#[test]
fn a_stream_carries_data_both_ways_and_half_closes() {
    let (mut client, mut server) = pair(config());
    let id = client.open();
    exchange(&mut client, &mut server);
    assert_eq!(
        server.events(),
        [Seen::Request(1, "10.0.0.1:80".to_owned())]
    );
    // Data before the response.
    let wire = client.data(id, b"ping", true);
    server.feed(&wire);
    let ended = Seen::Stream(1, Change::Ended);
    assert_eq!(
        server.events(),
        [Seen::Data(1, b"ping".to_vec()), ended.clone()]
    );
    let unanswered = server.connection.data_head(id, 1, false);
    assert_eq!(unanswered, Err(SendError::Closed));
    let answered = server
        .connection
        .respond(id, StatusCode::OK, &HeaderMap::new(), false);
    answered.unwrap();
    let wire = server.data(id, b"pong", true);
    client.feed(&wire);
    let expected = [
        Seen::Response(1, 200),
        Seen::Data(1, b"pong".to_vec()),
        ended,
    ];
    assert_eq!(client.events(), expected);
    for end in [&mut client, &mut server] {
        assert_eq!(end.connection.open_streams(), 0);
        end.connection.release(id);
        assert_eq!(
            end.connection.output(),
            b"",
            "a finished stream is not reset"
        );
    }
}

#[test]
fn heads_keep_their_fields_and_sensitivity() {
    let (mut client, mut server) = pair(config());
    let mut fields = HeaderMap::new();
    fields.insert("baggage", HeaderValue::from_static("k8s.namespace.name=a"));
    let mut secret = HeaderValue::from_static("token");
    secret.set_sensitive(true);
    fields.insert("authorization", secret);
    fields.append("x", HeaderValue::from_bytes(&[0xff, 0x80]).unwrap());
    fields.append("x", HeaderValue::from_static(""));
    let id = client.connection.open("[::1]:80", &fields).unwrap();
    let wire = client.connection.take_output();
    let mut at = 0;
    let Ok(Some(connect_h2::Event::Request { head, .. })) =
        server.connection.receive(&wire, &mut at, 0)
    else {
        panic!("no request");
    };
    assert_eq!(
        (head.authority.as_str(), head.method.as_str()),
        ("[::1]:80", "CONNECT")
    );
    assert_eq!(head.headers, fields);
    assert!(head.headers["authorization"].is_sensitive());
    assert!(!head.headers["baggage"].is_sensitive());
    let answered = server
        .connection
        .respond(id, StatusCode::OK, &fields, false);
    answered.unwrap();
    let wire = server.connection.take_output();
    let Ok(Some(connect_h2::Event::Response { head, .. })) =
        client.connection.receive(&wire, &mut 0, 0)
    else {
        panic!("no response");
    };
    assert_eq!(head.headers, fields);
}

#[test]
fn a_rejected_request_ends_its_stream() {
    let (mut client, mut server) = pair(config());
    let id = client.open();
    exchange(&mut client, &mut server);
    server.connection.reject(id, StatusCode::UNAUTHORIZED);
    assert_eq!(server.connection.open_streams(), 0);
    // Optimistic data is on its way.
    let wire = client.data(id, &[0; 10_000], false);
    server.feed(&wire);
    exchange(&mut client, &mut server);
    let expected = [
        Seen::Response(1, 401),
        Seen::Stream(1, Change::Ended),
        Seen::Stream(1, finished(ErrorCode::NO_ERROR)),
    ];
    assert_eq!(client.events(), expected);
    assert_eq!((client.error, server.error), (None, None));
    assert_eq!(client.connection.open_streams(), 0);
}

fn finished(code: ErrorCode) -> Change {
    Change::Finished { code }
}

#[test]
fn resets_without_an_error_or_after_the_end_are_normal_ends() {
    let reset = |code, has_data| Change::Reset { code, has_data };
    let connect_error = ErrorCode::CONNECT_ERROR;
    for (code, has_data, has_ended, expected) in [
        // As Envoy ends the streams of servers that have finished.
        (
            ErrorCode::NO_ERROR,
            true,
            true,
            finished(ErrorCode::NO_ERROR),
        ),
        (
            ErrorCode::NO_ERROR,
            true,
            false,
            finished(ErrorCode::NO_ERROR),
        ),
        (ErrorCode::CANCEL, true, true, finished(ErrorCode::CANCEL)),
        (
            ErrorCode::CANCEL,
            true,
            false,
            reset(ErrorCode::CANCEL, true),
        ),
        (connect_error, true, false, reset(connect_error, true)),
        (connect_error, false, false, reset(connect_error, false)),
        (ErrorCode(77), false, true, reset(ErrorCode(77), false)),
    ] {
        let (mut client, mut server, id) = established();
        let mut expected_events = Vec::new();
        let mut wire = Vec::new();
        if has_data {
            wire.extend(server.data(id, b"last words", false));
            expected_events.push(Seen::Data(1, b"last words".to_vec()));
        }
        if has_ended {
            wire.extend(server.data(id, b"", true));
            expected_events.push(Seen::Stream(1, Change::Ended));
        }
        server.connection.reset(id, code);
        wire.extend(server.connection.take_output());
        client.feed(&wire);
        expected_events.push(Seen::Stream(1, expected));
        assert_eq!(client.events(), expected_events);
        assert_eq!(client.connection.capacity(id), 0);
        assert_eq!(
            client.connection.data_head(id, 0, true),
            Err(SendError::Closed)
        );
    }
}

#[test]
fn a_reset_after_both_ends_is_ignored() {
    let (mut client, mut server, id) = established();
    let wire = client.data(id, b"", true);
    server.feed(&wire);
    let mut wire = server.data(id, b"", true);
    write::reset(&mut wire, id, ErrorCode::NO_ERROR);
    client.feed(&wire);
    assert_eq!(client.events(), [Seen::Stream(1, Change::Ended)]);
}

#[test]
fn a_released_stream_is_reset_by_what_has_finished() {
    for (has_ended, expected) in [
        (true, finished(ErrorCode::NO_ERROR)),
        (
            false,
            Change::Reset {
                code: ErrorCode::CANCEL,
                has_data: false,
            },
        ),
    ] {
        let (mut client, mut server, id) = established();
        if has_ended {
            let wire = client.data(id, b"", true);
            server.feed(&wire);
            server.events();
        }
        client.connection.release(id);
        exchange(&mut client, &mut server);
        assert_eq!(server.events(), [Seen::Stream(1, expected)]);
    }
}

#[test]
fn streams_beyond_the_limit_wait_or_are_refused() {
    let few = Config {
        max_streams: 2,
        ..config()
    };
    let mut client = End::new(Role::Client, config());
    let mut server = End::new(Role::Server, few);
    let ids = [client.open(), client.open(), client.open()];
    exchange(&mut client, &mut server);
    assert_eq!(client.connection.max_streams(), 2);
    assert_eq!(client.events(), [Seen::Stream(5, Change::Refused)]);
    assert_eq!(server.events().len(), 2);
    let open = |client: &mut End| client.connection.open("a:1", &HeaderMap::new());
    assert_eq!(open(&mut client), Err(OpenError::NoRoom));
    client.connection.release(ids[0]);
    assert!(open(&mut client).is_ok());
    exchange(&mut client, &mut server);
    assert_eq!((server.error, server.connection.open_streams()), (None, 2));
}

#[test]
fn closed_streams_that_are_not_released_are_limited() {
    let few = Config {
        max_streams: 2,
        ..config()
    };
    let mut server = support::served(few);
    for id in [1, 3, 5, 7, 9] {
        let mut wire = support::connect(id);
        write::reset(&mut wire, StreamId(id), ErrorCode::CANCEL);
        server.feed(&wire);
    }
    let requests = |server: &mut End| {
        let requests = server.events();
        requests
            .iter()
            .filter(|seen| matches!(seen, Seen::Request(..)))
            .count()
    };
    assert_eq!(requests(&mut server), 4);
    server.connection.release(StreamId(1));
    server.feed(&support::connect(11));
    assert_eq!(requests(&mut server), 1);
}

#[test]
fn informational_responses_are_ignored() {
    let (mut client, mut server) = pair(config());
    client.open();
    exchange(&mut client, &mut server);
    client.feed(&headers(1, &[(":status", "103"), ("link", "x")], false));
    assert_eq!(client.events(), []);
    client.feed(&headers(1, &[(":status", "200")], false));
    assert_eq!(client.events(), [Seen::Response(1, 200)]);
}

#[test]
fn trailers_end_a_stream() {
    let (mut client, _, _) = established();
    client.feed(&headers(1, &[("grpc-status", "0")], true));
    assert_eq!(client.events(), [Seen::Stream(1, Change::Ended)]);
}

#[test]
fn long_heads_pass_in_several_frames_and_too_long_ones_are_answered() {
    let (mut client, mut server) = pair(config());
    let mut fields = HeaderMap::new();
    fields.insert(
        "baggage",
        HeaderValue::from_str(&"x".repeat(60_000)).unwrap(),
    );
    client.connection.open("a:1", &fields).unwrap();
    exchange(&mut client, &mut server);
    assert_eq!(server.events(), [Seen::Request(1, "a:1".to_owned())]);
    fields.insert(
        "baggage",
        HeaderValue::from_str(&"x".repeat(66_000)).unwrap(),
    );
    let opened = client.connection.open("a:1", &fields);
    assert_eq!(opened, Err(OpenError::HeadTooLarge));
    // A client that does not know the limit.
    let mut unaware = End::new(Role::Client, config());
    let mut server = End::new(Role::Server, config());
    unaware.connection.open("a:1", &fields).unwrap();
    exchange(&mut unaware, &mut server);
    assert_eq!(unaware.events()[0], Seen::Response(1, 431));
    assert_eq!((server.events(), server.error), (vec![], None));
}

#[test]
fn malformed_heads_leave_other_streams_open() {
    let mut server = support::served(config());
    server.feed(&support::connect(1));
    let malformed = [(":method", "CONNECT"), ("Upper", "case")];
    server.feed(&headers(3, &malformed, false));
    let mut expected = Vec::new();
    write::reset(&mut expected, StreamId(3), ErrorCode::PROTOCOL_ERROR);
    assert_eq!(server.connection.take_output(), expected);
    server.feed(&frame(0, 0, 1, b"data"));
    let request = Seen::Request(1, "a:1".to_owned());
    assert_eq!(server.events(), [request, Seen::Data(1, b"data".to_vec())]);
}

#[test]
fn other_frames_precede_data() {
    let (mut client, mut server, id) = established();
    client.feed(&frame(6, 0, 0, b"12345678"));
    let early = client.connection.data_head(id, 1, false);
    assert_eq!(early, Err(SendError::OutputPending));
    let half = client.connection.output().len() / 2;
    let mut wire = client.connection.output()[..half].to_vec();
    client.connection.sent(half);
    wire.extend(client.data(id, b"x", false));
    server.feed(&wire);
    assert_eq!(server.events(), [Seen::Data(1, b"x".to_vec())]);
}
