//! Frames that cost work and achieve nothing are limited, and useful ones are not.
#![allow(clippy::unwrap_used)]

mod support;

use connect_h2::frame::{flag, write};
use connect_h2::{ErrorCode, StreamId, Violation};
use http::{HeaderMap, StatusCode};
use support::{End, config, connect, exchange, frame, pair, served};

/// Frames of a flood, by their number.
type Flood<'a> = &'a dyn Fn(u32) -> Vec<u8>;

/// How many times `next` is accepted; at most 20,000 times. Also the largest output meanwhile.
fn accepted(server: &mut End, mut next: impl FnMut(u32) -> Vec<u8>) -> u32 {
    for count in 0..20_000 {
        server.feed(&next(count));
        server.seen.clear();
        if server.error.is_some() {
            assert_eq!(server.error, Some(Violation::Flood));
            assert!(server.connection.output().len() < 200_000);
            return count;
        }
    }
    20_000
}

#[test]
fn floods_close_the_connection() {
    let id = |count: u32| StreamId(2 * count + 3);
    let floods: [(&str, Flood<'_>); 9] = [
        ("PING", &|_| frame(6, 0, 0, &[0; 8])),
        ("PING answers", &|_| frame(6, 1, 0, &[0; 8])),
        ("SETTINGS", &|_| frame(4, 0, 0, &[])),
        ("PRIORITY", &|_| frame(2, 0, 1, &[0; 5])),
        ("extensions", &|_| frame(0xfa, 0, 1, &[0; 3])),
        ("empty DATA", &|_| frame(0, 0, 1, &[])),
        ("WINDOW_UPDATE", &|_| frame(8, 0, 1, &[0, 0, 0, 1])),
        ("trailers of old streams", &|_| {
            support::headers(3, &[("x", "y")], true)
        }),
        ("malformed requests", &|count| {
            support::headers(id(count + 1).0, &[(":method", "CONNECT")], false)
        }),
    ];
    for (name, flood) in floods {
        let mut server = served(config());
        server.feed(&connect(1));
        server.feed(&connect(3));
        server.connection.reject(StreamId(3), StatusCode::NOT_FOUND);
        let accepted = accepted(&mut server, flood);
        assert!((900..1100).contains(&accepted), "{name}: {accepted}");
    }
}

#[test]
fn streams_that_are_reset_at_once_are_a_flood() {
    let mut server = served(config());
    let mut released = 0;
    let accepted = accepted(&mut server, |count| {
        let id = StreamId(2 * count + 1);
        let mut wire = connect(id.0);
        write::reset(&mut wire, id, ErrorCode::CANCEL);
        released = id.0;
        wire
    });
    // Each is refused beyond those that the caller has not released, or reset.
    assert!((400..1100).contains(&accepted), "{accepted}");
    let mut server = served(config());
    let accepted = self::accepted(&mut server, |count| connect(2 * count + 1));
    assert!((900..1100).contains(&accepted), "refused: {accepted}");
}

#[test]
fn streams_that_are_reset_at_once_and_released_are_a_flood() {
    let mut server = served(config());
    let mut count = 0;
    while server.error.is_none() && count < 20_000 {
        let id = StreamId(2 * count + 1);
        let mut wire = connect(id.0);
        write::reset(&mut wire, id, ErrorCode::CANCEL);
        server.feed(&wire);
        server.connection.release(id);
        count += 1;
    }
    assert_eq!(server.error, Some(Violation::Flood));
    assert!((900..1100).contains(&count), "{count}");
}

#[test]
fn header_blocks_in_endless_parts_close_the_connection() {
    let mut server = served(config());
    let mut wire = frame(1, 0, 1, &[]);
    for _ in 0..40 {
        wire.extend(frame(9, 0, 1, &[]));
    }
    server.feed(&wire);
    assert_eq!(server.error, Some(Violation::HeaderBlockTooLong));
    let mut server = served(config());
    let mut wire = frame(1, 0, 1, &[0; 60_000]);
    wire.extend(frame(9, 0, 1, &[0; 60_000]));
    wire.extend(frame(9, flag::END_HEADERS, 1, &[0; 60_000]));
    server.feed(&wire);
    assert_eq!(server.error, Some(Violation::HeaderBlockTooLong));
}

#[test]
fn steady_pings_and_settings_are_no_flood() {
    let mut server = served(config());
    for round in 0..10_000 {
        server.now_ms = round * 40;
        server.feed(&frame(6, 0, 0, &[0; 8]));
        server.feed(&frame(4, 0, 0, &[]));
        server.connection.take_output();
    }
    assert_eq!(server.error, None);
}

#[test]
fn busy_streams_are_no_flood() {
    let (mut client, mut server) = pair(config());
    for _ in 0..5_000 {
        let id = client.open();
        exchange(&mut client, &mut server);
        let answered = server
            .connection
            .respond(id, StatusCode::OK, &HeaderMap::new(), false);
        answered.unwrap();
        let wire = server.data(id, b"x", true);
        client.feed(&wire);
        // As Envoy does.
        server.feed(&{
            let mut wire = client.data(id, b"", true);
            write::reset(&mut wire, id, ErrorCode::NO_ERROR);
            write::window_update(&mut wire, StreamId::CONNECTION, 1);
            wire
        });
        client.connection.release(id);
        server.connection.release(id);
        client.seen.clear();
        server.seen.clear();
    }
    assert_eq!((client.error, server.error), (None, None));
}

#[test]
fn requests_after_the_drain_are_a_flood() {
    let mut server = served(config());
    server.connection.drain();
    server.feed(&frame(6, 1, 0, b"draining"));
    let accepted = accepted(&mut server, |count| connect(2 * count + 1));
    assert!((900..1100).contains(&accepted), "{accepted}");
}
