use super::{SUITES, client, from_client, from_server, receive, server, take};
use crate::{
    Direction, InvalidState, Outgoing, RecordError, RecordState, Role, Suite, TrafficSecret,
};

#[test]
fn a_serialised_state_continues_the_connection() {
    for suite in SUITES {
        let (mut client, mut server) = (client(suite), server(suite));
        server.refresh_traffic_keys().unwrap();
        server.seal(&[9; 1000]).unwrap();
        let wire = take(server.outgoing());
        receive(&mut client, &wire[..900]).unwrap();
        client.seal(b"unsent").unwrap();
        let unsent = client.outgoing().unsent().to_vec();

        let json = serde_json::to_string(&client.freeze()).unwrap();
        let state: RecordState = serde_json::from_str(&json).unwrap();
        let mut thawed = state.thaw().unwrap();

        assert_eq!(thawed.outgoing().unsent(), unsent);
        let (data, _) = receive(&mut thawed, &wire[900..]).unwrap();
        assert_eq!(data, [9; 1000]);
        thawed.seal(b"more").unwrap();
        let (data, _) = receive(&mut server, &take(thawed.outgoing())).unwrap();
        assert_eq!(data, b"unsentmore");
    }
}

#[test]
fn an_error_survives_freezing() {
    let mut client = client(SUITES[0]);
    receive(&mut client, &[20, 3, 3, 0, 1, 1]).unwrap_err();
    let alert = client.outgoing().unsent().to_vec();
    let mut thawed = client.freeze().thaw().unwrap();
    assert_eq!(thawed.outgoing().unsent(), alert);
    let error = RecordError::ChangeCipherSpec;
    assert_eq!(thawed.receive(&mut []), Err(error));
}

#[test]
fn debug_output_contains_no_secrets() {
    let mut client = client(SUITES[0]);
    client.hold(&[0xc1; 3]);
    let state = client.freeze();
    let text = format!("{state:?} {state:#?} {:?}", state.tx.secret);
    assert!(text.contains("TrafficSecret(..)") && text.contains("Client"));
    for secret in ["193", "94", "c1", "5e", "C1", "5E"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[test]
fn impossible_states_are_rejected() {
    let suite = Suite::Aes256GcmSha384;
    let state = |tx, rx| RecordState::new(suite, Role::Client, tx, rx);
    let short = || Direction::new(TrafficSecret::new(&[1; 32]), 0);
    for state in [
        state(short(), from_server(suite, 0)),
        state(from_client(suite, 0), short()),
    ] {
        assert_eq!(state.thaw().err(), Some(InvalidState::SecretLength));
    }
    let sequence = (1 << 24) + 1;
    let exhausted = state(from_client(suite, sequence), from_server(suite, 0));
    let error = InvalidState::KeysExhausted(sequence);
    assert_eq!(exhausted.thaw().err(), Some(error));

    let mut json = serde_json::to_value(client(suite).freeze()).unwrap();
    json["messages"]["begun"] = serde_json::json!([4, 0, 0, 1, 1]);
    let state: RecordState = serde_json::from_value(json).unwrap();
    let error = InvalidState::PartialMessage(5);
    assert_eq!(state.thaw().err(), Some(error));
}

#[test]
fn outgoing_bytes_keep_their_order_when_they_are_sent_in_parts() {
    let mut outgoing = Outgoing::default();
    let (mut sent, mut expected) = (Vec::new(), Vec::new());
    for round in 1..100_usize {
        outgoing.extend(round).fill(round as u8);
        expected.extend(vec![round as u8; round]);
        let part = outgoing.unsent().len() * (round % 4) / 3;
        let part = part.min(outgoing.unsent().len());
        sent.extend_from_slice(&outgoing.unsent()[..part]);
        outgoing.sent(part);
        if round % 7 == 0 {
            outgoing.release();
        }
    }
    sent.extend(outgoing.into_unsent());
    assert_eq!(sent, expected);
}

#[test]
#[should_panic(expected = "more sent than was there")]
fn what_is_not_there_cannot_be_sent() {
    let mut outgoing = Outgoing::from(vec![1, 2]);
    outgoing.sent(3);
}

#[test]
fn held_bytes_are_restored_in_order_also_into_a_small_buffer() {
    let mut client = client(SUITES[0]);
    client.hold(b"abcdef");
    let mut buffer = [0; 4];
    assert_eq!(client.restore(&mut buffer), 4);
    assert_eq!(&buffer, b"abcd");
    client.hold(b"cd");
    let mut buffer = [0; 9];
    assert_eq!(client.restore(&mut buffer), 4);
    assert_eq!(&buffer[..4], b"cdef");
    assert_eq!(client.restore(&mut buffer), 0);
}
