//! Flow control: limits, credit, changes of settings, growth.
#![allow(clippy::unwrap_used)]

mod support;

use connect_h2::frame::write;
use connect_h2::{Change, Config, Role, SendError, StreamId, Violation};
use http::{HeaderMap, StatusCode};
use support::{End, Seen, config, exchange, frame, pair, served};

fn small_windows() -> Config {
    Config {
        stream_window: 100_000,
        connection_window: 150_000,
        ..config()
    }
}

const ROUND_TRIP_MS: u64 = 10;

/// A pair of which the server has learned how long a round trip takes.
fn distant_pair(round_trip_ms: u64) -> (End, End) {
    let config = small_windows();
    let (mut client, mut server) = (
        End::new(Role::Client, config),
        End::new(Role::Server, config),
    );
    client.feed(&server.connection.take_output());
    server.now_ms = round_trip_ms;
    exchange(&mut client, &mut server);
    client.seen.clear();
    server.seen.clear();
    (client, server)
}

/// Sends as much as is allowed; returns how much.
fn send_all(from: &mut End, to: &mut End, id: StreamId) -> usize {
    let mut sent = 0;
    loop {
        let capacity = from.connection.capacity(id) as usize;
        if capacity == 0 {
            return sent;
        }
        let wire = from.data(id, &vec![0; capacity], false);
        to.feed(&wire);
        sent += capacity;
    }
}

#[test]
fn streams_stop_at_their_windows_and_continue_with_credit() {
    let (mut client, mut server) = pair(small_windows());
    let ids = [client.open(), client.open()];
    exchange(&mut client, &mut server);
    assert_eq!(send_all(&mut client, &mut server, ids[0]), 100_000);
    assert_eq!(send_all(&mut client, &mut server, ids[1]), 50_000);
    let early = client.connection.data_head(ids[0], 1, false);
    assert_eq!(early, Err(SendError::NoCapacity));
    server.events();
    server.connection.taken(ids[1], 50_000, 0);
    exchange(&mut client, &mut server);
    // The connection's window opened, and only the second stream can use it.
    assert_eq!(client.events(), [Seen::Stream(3, Change::Credit)]);
    assert_eq!(send_all(&mut client, &mut server, ids[1]), 50_000);
    // What is never taken returns to the connection with the end of its stream.
    server.connection.release(ids[0]);
    server.connection.taken(ids[1], 50_000, 0);
    exchange(&mut client, &mut server);
    assert_eq!(send_all(&mut client, &mut server, ids[1]), 100_000);
    assert_eq!((client.error, server.error), (None, None));
}

#[test]
fn lower_initial_windows_make_windows_negative() {
    let (mut client, mut server) = pair(small_windows());
    let id = client.open();
    exchange(&mut client, &mut server);
    assert_eq!(send_all(&mut client, &mut server, id), 100_000);
    // From 100,000 to 10: the stream owes 99,990 bytes.
    let mut wire = Vec::new();
    write::settings(&mut wire, &[0, 4, 0, 0, 0, 10]);
    write::window_update(&mut wire, id, 99_990);
    write::window_update(&mut wire, StreamId::CONNECTION, 100_000);
    client.feed(&wire);
    assert_eq!(client.events(), []);
    assert_eq!(client.connection.capacity(id), 0);
    write::window_update(&mut wire, id, 1);
    client.feed(&wire[wire.len() - 13..]);
    assert_eq!(client.events(), [Seen::Stream(1, Change::Credit)]);
    assert_eq!(client.connection.capacity(id), 1);
}

#[test]
fn overflowing_windows_are_errors_of_the_connection_or_of_the_stream() {
    let mut update = Vec::new();
    write::window_update(&mut update, StreamId::CONNECTION, 0x7fff_ffff);
    let mut server = served(config());
    server.feed(&update);
    assert_eq!(server.error, Some(Violation::WindowOverflow));

    let mut server = served(config());
    let mut wire = support::connect(1);
    write::window_update(&mut wire, StreamId(1), 0x7fff_ffff);
    server.feed(&wire);
    assert_eq!(server.error, None);
    let failed = Seen::Stream(1, Change::Failed(Violation::WindowOverflow));
    assert_eq!(server.events()[1..], [failed]);

    let mut server = served(config());
    let mut wire = support::connect(1);
    write::window_update(&mut wire, StreamId(1), 0x7fff_0000);
    write::settings(&mut wire, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    server.feed(&wire);
    assert_eq!(server.error, Some(Violation::SettingOverflowsWindow));
}

#[test]
fn more_data_than_a_window_allows_is_an_error_of_its_owner() {
    let tight = Config {
        stream_window: 20_000,
        connection_window: 65_535,
        ..config()
    };
    let mut server = served(tight);
    server.feed(&support::connect(1));
    server.feed(&frame(0, 0, 1, &[0; 10_000]));
    server.feed(&frame(0, 0, 1, &[0; 10_001]));
    let failed = Seen::Stream(1, Change::Failed(Violation::WindowExceeded));
    assert_eq!(server.events().last(), Some(&failed));
    assert_eq!(server.error, None);
    server.connection.release(StreamId(1));
    server.feed(&support::connect(3));
    server.feed(&frame(0, 0, 3, &[0; 20_000]));
    server.feed(&support::connect(5));
    server.feed(&frame(0, 0, 5, &[0; 20_000]));
    server.feed(&support::connect(7));
    server.feed(&frame(0, 0, 7, &[0; 20_000]));
    assert_eq!(server.error, None);
    server.feed(&support::connect(9));
    server.feed(&frame(0, 0, 9, &[0; 20_000]));
    assert_eq!(server.error, Some(Violation::WindowExceeded));
}

#[test]
fn the_default_window_holds_until_settings_are_acknowledged() {
    let tight = Config {
        stream_window: 100,
        ..config()
    };
    let mut server = End::new(Role::Server, tight);
    let mut wire = connect_h2::frame::PREFACE.to_vec();
    write::settings(&mut wire, &[]);
    wire.extend(support::connect(1));
    wire.extend(frame(0, 0, 1, &[0; 10_000]));
    server.feed(&wire);
    assert_eq!(server.error, None);
    assert_eq!(server.seen.last(), Some(&Seen::Data(1, vec![0; 10_000])));
    let mut wire = Vec::new();
    write::settings_ack(&mut wire);
    wire.extend(support::connect(3));
    wire.extend(frame(0, 0, 3, &[0; 101]));
    server.feed(&wire);
    let failed = Seen::Stream(3, Change::Failed(Violation::WindowExceeded));
    assert_eq!(server.seen.last(), Some(&failed));
}

#[test]
fn padding_counts_and_returns_at_once() {
    let tight = Config {
        stream_window: 1000,
        connection_window: 65_535,
        ..config()
    };
    let mut server = served(tight);
    server.feed(&support::connect(1));
    server
        .connection
        .respond(StreamId(1), StatusCode::OK, &HeaderMap::new(), false)
        .unwrap();
    server.connection.take_output();
    let mut padded = vec![250];
    padded.extend([b'x'; 49]);
    padded.extend([0; 250]);
    for _ in 0..3 {
        server.feed(&frame(0, 8, 1, &padded));
        server.connection.taken(StreamId(1), 49, 0);
    }
    assert_eq!(server.error, None);
    let mut update = Vec::new();
    write::window_update(&mut update, StreamId(1), 551);
    assert_eq!(
        server.connection.take_output(),
        update,
        "after the second frame"
    );
}

/// What a client can send within 20 round trips to a server that takes everything at once.
fn bulk(budget: u64, round_trip_ms: u64) -> usize {
    let (mut client, mut server) = distant_pair(round_trip_ms);
    server.connection.set_growth_budget(budget);
    let id = client.open();
    exchange(&mut client, &mut server);
    let mut total = 0;
    for _ in 1..=20 {
        loop {
            let capacity = client.connection.capacity(id) as usize;
            if capacity == 0 {
                break;
            }
            let wire = client.data(id, &vec![0; capacity], false);
            server.feed(&wire);
            server.connection.taken(id, capacity, server.now_ms);
            total += capacity;
        }
        server.events();
        server.now_ms += round_trip_ms;
        exchange(&mut client, &mut server);
        client.events();
    }
    total
}

#[test]
fn a_window_that_limits_grows_within_the_budget_while_the_application_keeps_up() {
    let fixed = bulk(0, ROUND_TRIP_MS);
    let grown = bulk(1_000_000, ROUND_TRIP_MS);
    let little = bulk(50_000, ROUND_TRIP_MS);
    assert!(grown > 4 * fixed, "{grown} against {fixed}");
    assert!(
        little > fixed && little < 2 * fixed,
        "{little} against {fixed}"
    );
    assert_eq!(bulk(1_000_000, 1), fixed, "nearer than times can tell");
}

#[test]
fn the_window_of_a_slow_application_does_not_grow() {
    let (mut client, mut server) = distant_pair(ROUND_TRIP_MS);
    server.connection.set_growth_budget(1_000_000);
    let id = client.open();
    exchange(&mut client, &mut server);
    let mut unread = 0;
    for _ in 1..20 {
        unread += send_all(&mut client, &mut server, id);
        assert!(unread <= 100_000);
        server.connection.taken(id, unread / 2, server.now_ms);
        unread -= unread / 2;
        server.now_ms += ROUND_TRIP_MS;
        exchange(&mut client, &mut server);
    }
    assert!(unread > 40_000);
}

#[test]
fn growth_ends_with_its_stream() {
    let (mut client, mut server) = distant_pair(ROUND_TRIP_MS);
    server.connection.set_growth_budget(100_000);
    for _ in 0..5 {
        let id = client.open();
        exchange(&mut client, &mut server);
        let mut most = 0;
        for round in 0..10 {
            let sent = send_all(&mut client, &mut server, id);
            most = most.max(sent);
            server.connection.taken(id, sent, server.now_ms);
            server.now_ms += u64::from(round > 0);
            exchange(&mut client, &mut server);
        }
        assert_eq!(most, 200_000, "each stream can use the whole budget");
        client.connection.release(id);
        exchange(&mut client, &mut server);
        server.connection.release(id);
        exchange(&mut client, &mut server);
    }
    assert_eq!((client.error, server.error), (None, None));
}
