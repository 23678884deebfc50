//! What a peer sends on an HTTP/2 connection, to a client and to a server: in one piece, or split
//! and with the connection frozen in between. The first byte is the size of the pieces.
#![no_main]

use connect_h2::frame::{PREFACE, write};
use connect_h2::{Change, Config, Connection, Event, Role};
use http::{HeaderMap, StatusCode};
use libfuzzer_sys::fuzz_target;

fn new(role: Role) -> Connection {
    let config = Config {
        max_streams: 4,
        max_header_list: 2000,
        ..Config::default()
    };
    Connection::new(role, config, 0)
}

fn thawed(connection: Connection) -> Connection {
    let state = serde_json::to_vec(&connection.freeze()).expect("a state can be serialised");
    let state = serde_json::from_slice(&state).expect("a serialised state is valid");
    Connection::thaw(state).expect("its version is this one")
}

/// What happens when the pieces arrive.
fn run<'a>(role: Role, pieces: impl Iterator<Item = &'a [u8]>, is_split: bool) -> Vec<String> {
    let mut connection = new(role);
    let mut log = Vec::new();
    let headers = HeaderMap::new();
    if role == Role::Client {
        for _ in 0..3 {
            connection.open("a:1", &headers).expect("there is room");
        }
    }
    for piece in pieces {
        let mut at = 0;
        loop {
            let event = match connection.receive(piece, &mut at, 0) {
                Ok(None) => break,
                Ok(Some(event)) => event,
                Err(violation) => {
                    log.push(format!("{violation} {:?}", connection.output()));
                    return log;
                }
            };
            match event {
                Event::Data { .. } => continue,
                Event::Request { id, .. } => {
                    let _ = connection.respond(id, StatusCode::OK, &headers, false);
                }
                Event::Stream { id, change } if change != Change::Credit => connection.release(id),
                _ => {}
            }
            log.push(format!("{event:?} {:?}", connection.take_output()));
        }
        if is_split {
            connection = thawed(connection);
        }
    }
    log.push(format!("{:?}", connection.take_output()));
    log
}

fuzz_target!(|bytes: &[u8]| {
    let Some((size, bytes)) = bytes.split_first() else {
        return;
    };
    // SETTINGS come first, and the acknowledgement of ours.
    let mut settings = Vec::new();
    write::settings(&mut settings, &[]);
    write::settings_ack(&mut settings);
    let of_server = [&settings, bytes].concat();
    let of_client = [PREFACE, &of_server[..]].concat();
    for (role, bytes) in [(Role::Client, &of_server[..]), (Role::Server, &of_client)] {
        let pieces = bytes.chunks(usize::from(*size) + 1);
        let whole = run(role, [bytes].into_iter(), false);
        assert_eq!(run(role, pieces, true), whole);
    }
});
