use aws_lc_rs::aead::Aad;
use proptest::prelude::*;

use super::{Played, SUITES, client, from_client, from_server, receive, records, server, take};
use crate::keys::Keys;
use crate::{
    Alert, Event, MAX_FRAGMENT, MAX_RECORD, Outgoing, RecordError, RecordState, Role, SealError,
    Sealer,
};

/// Seals what no peer may send: any content of a record, including type and padding.
fn seal_inner(keys: &mut Keys, inner: &[u8]) -> Vec<u8> {
    let length = (inner.len() + 16) as u16;
    let header = [&[23, 3, 3][..], &length.to_be_bytes()].concat();
    let mut bytes = inner.to_vec();
    keys.aead
        .seal_in_place_append_tag(keys.nonce(), Aad::from(&header), &mut bytes)
        .unwrap();
    keys.sequence += 1;
    [header, bytes].concat()
}

#[test]
fn data_of_any_length_arrives_in_records_without_padding() {
    for suite in SUITES {
        let (mut client, mut server) = (client(suite), server(suite));
        for length in [1_usize, 2, 16_383, 16_384, 16_385, 65_063, 200_000] {
            let data: Vec<u8> = (0..length).map(|i| i as u8).collect();
            client.seal(&data).unwrap();
            let wire = take(client.outgoing());
            let lengths = records(&wire);
            assert_eq!(lengths.len(), length.div_ceil(MAX_FRAGMENT));
            assert_eq!(lengths.iter().map(|l| l - 17).sum::<usize>(), length);
            assert_eq!(receive(&mut server, &wire).unwrap().0, data);
        }
    }
}

#[test]
fn no_data_needs_no_record() {
    let mut client = client(SUITES[0]);
    client.seal(b"").unwrap();
    assert!(client.outgoing().unsent().is_empty());
}

#[test]
fn a_record_does_not_contain_more_than_2_to_the_14_bytes() {
    let mut sealer = Sealer::new(SUITES[0], from_server(SUITES[0], 0));
    let mut output = Outgoing::default();
    let result = sealer.record(23, &[0; MAX_FRAGMENT + 1], &mut output);
    assert_eq!(result, Err(SealError::TooLong(MAX_FRAGMENT + 1)));
    assert!(output.unsent().is_empty());
    sealer.record(23, &[0; MAX_FRAGMENT], &mut output).unwrap();
    assert!(output.unsent().len() < MAX_RECORD);
}

#[test]
fn a_record_that_is_too_long_is_rejected_by_its_header() {
    let mut client = client(SUITES[0]);
    let longest = (MAX_RECORD - 5) as u16;
    let header = |length: u16| [&[23, 3, 3][..], &length.to_be_bytes()].concat();
    let (_, event) = receive(&mut client, &header(longest)).unwrap();
    assert_eq!(event, Event::NeedMore);
    let mut client = self::client(SUITES[0]);
    let result = receive(&mut client, &header(longest + 1));
    assert_eq!(result, Err(RecordError::RecordOverflow));
}

#[test]
fn padding_is_removed_and_counts_towards_the_limit() {
    let suite = SUITES[1];
    let mut keys = Keys::new(suite, from_server(suite, 0));
    let mut client = client(suite);
    let mut inner = b"data\x17".to_vec();
    inner.resize(MAX_FRAGMENT + 1, 0);
    let (data, _) = receive(&mut client, &seal_inner(&mut keys, &inner)).unwrap();
    assert_eq!(data, b"data");
    inner.push(0);
    let result = receive(&mut client, &seal_inner(&mut keys, &inner));
    assert_eq!(result, Err(RecordError::RecordOverflow));
}

#[test]
fn a_record_of_padding_only_is_unexpected() {
    for content in [&b""[..], &[0], &[0; 1000]] {
        let mut played = Played::new();
        assert_eq!(played.record(0, content), Err(RecordError::NoContentType));
        let alert = RecordError::PeerAlert(Alert::UNEXPECTED_MESSAGE);
        assert_eq!(played.answer(), alert);
    }
}

#[test]
fn only_alerts_handshake_messages_and_data_are_encrypted() {
    for content_type in (1..=255).filter(|t| !(21..=23).contains(t)) {
        let error = RecordError::ContentType(content_type);
        assert_eq!(Played::new().record(content_type, b"\x01"), Err(error));
    }
}

#[test]
fn unencrypted_records_are_unexpected() {
    let change_cipher_spec = [20, 3, 3, 0, 1, 1];
    let result = receive(&mut client(SUITES[0]), &change_cipher_spec);
    assert_eq!(result, Err(RecordError::ChangeCipherSpec));
    for content_type in [0, 21, 22, 24, 255] {
        let record = [content_type, 3, 3, 0, 2, 1, 0];
        let result = receive(&mut client(SUITES[0]), &record);
        assert_eq!(result, Err(RecordError::Unencrypted(content_type)));
    }
}

#[test]
fn a_record_shorter_than_its_tag_does_not_open() {
    for length in 0..16 {
        let content = vec![0; length.into()];
        let record = [&[23, 3, 3, 0, length][..], &content].concat();
        let result = receive(&mut client(SUITES[0]), &record);
        assert_eq!(result, Err(RecordError::BadRecordMac));
    }
}

#[test]
fn a_repeated_or_missing_record_does_not_open() {
    let mut server = server(SUITES[0]);
    server.seal(b"one").unwrap();
    let one = take(server.outgoing());
    server.seal(b"two").unwrap();
    let two = take(server.outgoing());
    let mut repeated = client(SUITES[0]);
    assert_eq!(receive(&mut repeated, &one).unwrap().0, b"one");
    let result = receive(&mut repeated, &one);
    assert_eq!(result, Err(RecordError::BadRecordMac));
    let result = receive(&mut client(SUITES[0]), &two);
    assert_eq!(result, Err(RecordError::BadRecordMac));
}

#[test]
fn a_limited_number_of_records_without_data_is_accepted_in_a_row() {
    let mut played = Played::new();
    for _ in 0..3 {
        for _ in 0..32 {
            assert_eq!(played.record(23, b"").unwrap(), b"");
        }
        assert_eq!(played.record(23, b"data").unwrap(), b"data");
    }
    for _ in 0..32 {
        played.record(23, b"").unwrap();
        played.freeze();
    }
    let result = played.record(23, b"");
    assert_eq!(result, Err(RecordError::TooManyWithoutData));
}

#[test]
fn the_last_sequence_number_is_not_used() {
    let suite = SUITES[0];
    let (tx, rx) = (from_client(suite, 0), from_server(suite, u64::MAX - 1));
    let mut client = RecordState::new(suite, Role::Client, tx, rx)
        .thaw()
        .unwrap();
    let mut keys = Keys::new(suite, from_server(suite, u64::MAX - 1));
    let (data, _) = receive(&mut client, &seal_inner(&mut keys, b"last\x17")).unwrap();
    assert_eq!(data, b"last");
    let result = receive(&mut client, &[23, 3, 3, 0, 1, 0]);
    assert_eq!(result, Err(RecordError::SequenceOverflow));
}

proptest! {
    #[test]
    fn a_changed_bit_is_found_wherever_it_is(bit in 0_usize..8 * (5 + 100 + 17)) {
        let mut server = server(SUITES[0]);
        server.seal(&[7; 100]).unwrap();
        let mut wire = take(server.outgoing());
        wire[bit / 8] ^= 1 << (bit % 8);
        match receive(&mut client(SUITES[0]), &wire) {
            // A longer length.
            Ok((data, event)) => prop_assert!(data.is_empty() && event == Event::NeedMore),
            Err(error) => prop_assert!(error.alert().is_some()),
        }
    }

    #[test]
    fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = receive(&mut client(SUITES[0]), &bytes);
        let bytes = [&[23, 3, 3, 0, 20][..], &bytes].concat();
        let _ = receive(&mut client(SUITES[0]), &bytes);
    }
}
