//! Data in several parts is sealed as if it were in one.

use proptest::prelude::*;

use super::{SUITES, client, receive, records, server, take};
use crate::{MAX_FRAGMENT, SealError};

fn any_parts() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let length = prop_oneof![
        Just(0),
        1..20_usize,
        MAX_FRAGMENT - 20..MAX_FRAGMENT + 20,
        0..50_000_usize
    ];
    let part = (any::<u8>(), length).prop_map(|(byte, length)| vec![byte; length]);
    prop::collection::vec(part, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn parts_are_sealed_as_if_they_were_one(
        parts in any_parts(),
        suite in prop::sample::select(&SUITES[..]),
    ) {
        let (mut gathering, mut plain) = (client(suite), client(suite));
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        gathering.seal_gathered(&slices).unwrap();
        plain.seal(&parts.concat()).unwrap();
        let wire = take(gathering.outgoing());
        prop_assert_eq!(&wire, &take(plain.outgoing()));
        prop_assert_eq!(records(&wire).len(), parts.concat().len().div_ceil(MAX_FRAGMENT));
        prop_assert_eq!(receive(&mut server(suite), &wire).unwrap().0, parts.concat());
    }
}

#[test]
fn a_requested_key_update_precedes_gathered_data() {
    let suite = SUITES[0];
    let (mut client, mut server) = (client(suite), server(suite));
    client.refresh_traffic_keys().unwrap();
    receive(&mut server, &take(client.outgoing())).unwrap();
    server.seal_gathered(&[b"", b""]).unwrap();
    assert!(server.outgoing().unsent().is_empty());
    server.seal_gathered(&[b"one", b"", b"two"]).unwrap();
    let wire = take(server.outgoing());
    assert_eq!(records(&wire), [5 + 17, 6 + 17]);
    assert_eq!(receive(&mut client, &wire).unwrap().0, b"onetwo");
}

#[test]
fn nothing_is_gathered_on_a_closed_connection() {
    let mut client = client(SUITES[0]);
    client.close().unwrap();
    assert_eq!(client.seal_gathered(&[b"a", b"b"]), Err(SealError::Closed));
}
