use super::{SUITES, client, from_client, from_server, receive, records, server, take};
use crate::seal::{MAX_RECORDS, UPDATE_AFTER};
use crate::{Outgoing, RecordState, Role, SealError, Sealer};

/// Length of a record with a key update, without its header.
const KEY_UPDATE: usize = 5 + 17;

#[test]
fn both_ends_change_their_keys_when_one_of_them_requests_it() {
    for suite in SUITES {
        let (mut client, mut server) = (client(suite), server(suite));
        for round in 0..5_u8 {
            client.refresh_traffic_keys().unwrap();
            client.seal(&[round]).unwrap();
            let request = take(client.outgoing());
            assert_eq!(records(&request), [KEY_UPDATE, 18]);
            assert_eq!(receive(&mut server, &request).unwrap().0, [round]);
            server.seal(&[round]).unwrap();
            let answer = take(server.outgoing());
            assert_eq!(records(&answer), [KEY_UPDATE, 18]);
            assert_eq!(receive(&mut client, &answer).unwrap().0, [round]);
        }
    }
}

#[test]
fn several_requests_are_answered_once_before_the_next_data() {
    let (mut client, mut server) = (client(SUITES[0]), server(SUITES[0]));
    for _ in 0..3 {
        client.refresh_traffic_keys().unwrap();
    }
    receive(&mut server, &take(client.outgoing())).unwrap();
    assert!(server.outgoing().unsent().is_empty());
    server.seal(b"one").unwrap();
    server.seal(b"two").unwrap();
    let answer = take(server.outgoing());
    assert_eq!(records(&answer), [KEY_UPDATE, 20, 20]);
    assert_eq!(receive(&mut client, &answer).unwrap().0, b"onetwo");
}

#[test]
fn an_answer_requests_no_other_update() {
    let (mut client, mut server) = (client(SUITES[0]), server(SUITES[0]));
    client.refresh_traffic_keys().unwrap();
    receive(&mut server, &take(client.outgoing())).unwrap();
    server.seal(b"data").unwrap();
    receive(&mut client, &take(server.outgoing())).unwrap();
    client.seal(b"data").unwrap();
    assert_eq!(records(client.outgoing().unsent()), [21]);
}

#[test]
fn the_keys_are_updated_after_2_to_the_23_records() {
    let suite = SUITES[0];
    let begin = UPDATE_AFTER - 2;
    let (tx, rx) = (from_client(suite, begin), from_server(suite, 0));
    let mut client = RecordState::new(suite, Role::Client, tx, rx)
        .thaw()
        .unwrap();
    let (tx, rx) = (from_server(suite, 0), from_client(suite, begin));
    let mut server = RecordState::new(suite, Role::Server, tx, rx)
        .thaw()
        .unwrap();
    let data = vec![1; 4 << 14];
    client.seal(&data).unwrap();
    let wire = take(client.outgoing());
    let full = (1 << 14) + 17;
    assert_eq!(records(&wire), [full, full, KEY_UPDATE, full, full]);
    assert_eq!(receive(&mut server, &wire).unwrap().0, data);
    assert_eq!(client.freeze().tx.sequence, 2);
}

#[test]
fn no_keys_encrypt_more_than_2_to_the_24_records() {
    let suite = SUITES[0];
    let mut sealer = Sealer::new(suite, from_client(suite, MAX_RECORDS - 1));
    let mut output = Outgoing::default();
    sealer.record(23, b"last", &mut output).unwrap();
    let result = sealer.record(23, b"more", &mut output);
    assert_eq!(result, Err(SealError::KeysExhausted));
    assert_eq!(records(output.unsent()), [21]);
}
