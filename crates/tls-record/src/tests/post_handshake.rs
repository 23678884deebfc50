use super::{Played, SUITES, client, receive, server, take};
use crate::{Alert, Event, RecordError, SealError};

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

fn ticket(length: u32) -> Vec<u8> {
    let mut message = length.to_be_bytes().to_vec();
    message[0] = 4;
    message.resize(4 + length as usize, 0xee);
    message
}

#[test]
fn tickets_are_skipped_wherever_their_records_end() {
    let tickets = [ticket(3), ticket(0), ticket(17)].concat();
    for size in 1..=tickets.len() {
        let mut played = Played::new();
        for part in tickets.chunks(size) {
            assert_eq!(played.record(HANDSHAKE, part).unwrap(), b"");
            played.freeze();
        }
        assert_eq!(played.record(DATA, b"data").unwrap(), b"data");
    }
}

#[test]
fn a_ticket_longer_than_64_kib_is_rejected_by_its_header() {
    let mut played = Played::new();
    played.record(HANDSHAKE, &ticket(65_535)[..4]).unwrap();
    let result = Played::new().record(HANDSHAKE, &ticket(65_536)[..4]);
    assert_eq!(result, Err(RecordError::TicketLength(65_536)));
}

#[test]
fn a_client_sends_no_tickets() {
    let mut sealer = crate::Sealer::new(SUITES[0], super::from_client(SUITES[0], 0));
    let mut wire = crate::Outgoing::default();
    sealer.record(HANDSHAKE, &ticket(3), &mut wire).unwrap();
    let result = receive(&mut server(SUITES[0]), wire.unsent());
    assert_eq!(result, Err(RecordError::UnexpectedMessage(4)));
}

#[test]
fn other_handshake_messages_are_unexpected() {
    for kind in (0..=255).filter(|kind| ![4, 24].contains(kind)) {
        let mut played = Played::new();
        let error = RecordError::UnexpectedMessage(kind);
        assert_eq!(played.record(HANDSHAKE, &[kind, 0, 0, 0]), Err(error));
        let alert = RecordError::PeerAlert(Alert::UNEXPECTED_MESSAGE);
        assert_eq!(played.answer(), alert);
    }
}

#[test]
fn a_key_update_may_be_spread_over_records_and_follow_a_ticket() {
    let mut played = Played::new();
    for part in [&b"\x04\0\0"[..], b"\x02", b"ab\x18", b"\0\0\x01", b"\0"] {
        played.record(HANDSHAKE, part).unwrap();
        played.freeze();
    }
    // The client expects the next keys now.
    let result = played.record(DATA, b"data");
    assert_eq!(result, Err(RecordError::BadRecordMac));
}

#[test]
fn a_key_update_ends_its_record() {
    for rest in [&b"\x04"[..], &ticket(2), b"\x18\0\0\x01\0"] {
        let content = [&b"\x18\0\0\x01\0"[..], rest].concat();
        let result = Played::new().record(HANDSHAKE, &content);
        assert_eq!(result, Err(RecordError::KeyUpdateNotLast));
    }
}

#[test]
fn a_key_update_has_one_byte_of_zero_or_one() {
    let result = Played::new().record(HANDSHAKE, b"\x18\0\0\x01\x02");
    assert_eq!(result, Err(RecordError::KeyUpdateValue(2)));
    for length in [0, 2, 0x100, 0x1_0001] {
        let mut message = u32::to_be_bytes(length);
        message[0] = 24;
        let result = Played::new().record(HANDSHAKE, &message);
        assert_eq!(result, Err(RecordError::KeyUpdateLength));
    }
}

#[test]
fn no_other_record_interrupts_a_handshake_message() {
    for (content_type, content) in [(DATA, &b"data"[..]), (DATA, &[]), (ALERT, &[1, 0])] {
        let mut played = Played::new();
        played.record(HANDSHAKE, &ticket(9)[..7]).unwrap();
        let result = played.record(content_type, content);
        assert_eq!(result, Err(RecordError::InterleavedHandshake));
    }
}

#[test]
fn empty_handshake_and_alert_records_are_unexpected() {
    for content_type in [HANDSHAKE, ALERT] {
        let result = Played::new().record(content_type, b"");
        assert_eq!(result, Err(RecordError::EmptyRecord));
    }
}

#[test]
fn a_peer_that_only_updates_its_keys_is_cut_off() {
    let (mut client, mut server) = (client(SUITES[0]), server(SUITES[0]));
    for _ in 0..32 {
        server.refresh_traffic_keys().unwrap();
    }
    receive(&mut client, &take(server.outgoing())).unwrap();
    server.refresh_traffic_keys().unwrap();
    let result = receive(&mut client, &take(server.outgoing()));
    assert_eq!(result, Err(RecordError::TooManyWithoutData));
}

#[test]
fn close_notify_ends_one_direction() {
    let (mut client, mut server) = (client(SUITES[0]), server(SUITES[0]));
    client.seal(b"last").unwrap();
    client.close().unwrap();
    assert_eq!(client.seal(b"more"), Err(SealError::Closed));
    assert_eq!(client.close(), Err(SealError::Closed));
    let mut wire = take(client.outgoing());
    wire.extend(b"what follows is ignored");
    assert_eq!(server.end_of_input(), Err(RecordError::Truncated));
    let received = receive(&mut server, &wire).unwrap();
    assert_eq!(received, (b"last".to_vec(), Event::Closed));
    assert_eq!(server.end_of_input(), Ok(()));
    server.seal(b"answer").unwrap();
    let received = receive(&mut client, &take(server.outgoing())).unwrap();
    assert_eq!(received.0, b"answer");
    assert_eq!(client.end_of_input(), Err(RecordError::Truncated));
}

#[test]
fn user_canceled_is_ignored() {
    let mut played = Played::new();
    played.record(ALERT, b"\x01\x5a").unwrap();
    assert_eq!(played.record(DATA, b"data").unwrap(), b"data");
}

#[test]
fn every_other_alert_ends_the_connection_whatever_its_level() {
    for level in [1, 2, 7] {
        let mut played = Played::new();
        let error = RecordError::PeerAlert(Alert(42));
        assert_eq!(error.to_string(), "the peer sent the alert BadCertificate");
        assert_eq!(played.record(ALERT, &[level, 42]), Err(error));
        assert_eq!(played.record(DATA, b"data"), Err(error));
        assert_eq!(played.client.end_of_input(), Err(error));
        assert_eq!(played.client.seal(b"data"), Err(SealError::Closed));
        // An alert is not answered.
        assert!(played.client.outgoing().unsent().is_empty());
    }
}

#[test]
fn an_alert_is_two_bytes_long() {
    for length in [1, 3, 4] {
        let result = Played::new().record(ALERT, &[1; 4][..length]);
        assert_eq!(result, Err(RecordError::AlertLength(length)));
    }
}

#[test]
fn the_peer_learns_why_the_connection_is_aborted() {
    let (mut client, mut server) = (client(SUITES[0]), server(SUITES[0]));
    client.abort(Alert::INTERNAL_ERROR).unwrap();
    assert_eq!(client.seal(b"more"), Err(SealError::Closed));
    let result = receive(&mut server, &take(client.outgoing()));
    let error = RecordError::PeerAlert(Alert::INTERNAL_ERROR);
    assert_eq!(result, Err(error));
}

#[test]
fn no_alert_follows_close_notify() {
    let mut played = Played::new();
    played.client.close().unwrap();
    take(played.client.outgoing());
    played.record(HANDSHAKE, b"").unwrap_err();
    assert!(played.client.outgoing().unsent().is_empty());
}
