//! Connections that rustls begins and this crate continues, with rustls at the other end.

use std::io::{Read, Write};
use std::mem;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384,
    TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::{
    AlertDescription, ClientConnection, Connection, Error, ServerConnection, SupportedCipherSuite,
};

use super::handshake::{
    Handshake, Transport, Unbuffered, client_config, server_config, server_name,
};
use super::{receive, records, take};
use crate::{Alert, Event, HandoverError, RecordError, RecordLayer, Suite};

const SUITES: [SupportedCipherSuite; 2] = [TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384];
const KEY_UPDATE: usize = 5 + 17;

/// rustls at the other end, with what it has received.
struct Peer {
    connection: Connection,
    data: Vec<u8>,
    wire: Vec<u8>,
    is_closed: bool,
}

impl Peer {
    fn server(suite: SupportedCipherSuite) -> Self {
        Self::new(ServerConnection::new(Arc::new(server_config(suite))).unwrap())
    }

    fn client(suite: SupportedCipherSuite) -> Self {
        let config = Arc::new(client_config(suite));
        Self::new(ClientConnection::new(config, server_name()).unwrap())
    }

    fn new(connection: impl Into<Connection>) -> Self {
        Self {
            connection: connection.into(),
            data: Vec::new(),
            wire: Vec::new(),
            is_closed: false,
        }
    }

    fn process(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            self.connection.read_tls(&mut bytes).unwrap();
            let state = self.connection.process_new_packets()?;
            let mut data = vec![0; state.plaintext_bytes_to_read()];
            self.connection.reader().read_exact(&mut data).unwrap();
            self.data.extend(data);
            self.is_closed = state.peer_has_closed();
        }
        Ok(())
    }

    fn write(&mut self, data: &[u8]) {
        for part in data.chunks(1 << 14) {
            self.connection.writer().write_all(part).unwrap();
            self.flush();
        }
    }

    fn flush(&mut self) {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.wire).unwrap();
        }
    }

    fn data(&mut self) -> Vec<u8> {
        mem::take(&mut self.data)
    }
}

impl Transport for Peer {
    fn send(&mut self, bytes: &[u8]) {
        self.process(bytes).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        self.flush();
        mem::take(&mut self.wire)
    }
}

/// Data and key updates in both directions, then both ends close.
fn converse(mut layer: RecordLayer, peer: &mut Peer) {
    for round in 0..3_u8 {
        let data = vec![round; 100_000];
        layer.seal(&data).unwrap();
        peer.send(&take(layer.outgoing()));
        assert_eq!(peer.data(), data);
        peer.write(&data);
        assert_eq!(receive(&mut layer, &peer.receive()).unwrap().0, data);

        layer.refresh_traffic_keys().unwrap();
        peer.send(&take(layer.outgoing()));
        peer.write(b"updated");
        let wire = peer.receive();
        assert_eq!(records(&wire)[0], KEY_UPDATE);
        assert_eq!(receive(&mut layer, &wire).unwrap().0, b"updated");

        peer.connection.refresh_traffic_keys().unwrap();
        assert_eq!(receive(&mut layer, &peer.receive()).unwrap().0, b"");
        layer.seal(b"updated as well").unwrap();
        let wire = take(layer.outgoing());
        assert_eq!(records(&wire), [KEY_UPDATE, 15 + 17]);
        peer.send(&wire);
        assert_eq!(peer.data(), b"updated as well");

        layer = layer.freeze().thaw().unwrap();
    }
    layer.close().unwrap();
    assert!(!peer.is_closed);
    peer.send(&take(layer.outgoing()));
    assert!(peer.is_closed);
    peer.write(b"last");
    peer.connection.send_close_notify();
    let received = receive(&mut layer, &peer.receive()).unwrap();
    assert_eq!(received, (b"last".to_vec(), Event::Closed));
}

/// Both ends use rustls, then this one continues with bytes that rustls has not seen.
fn continue_in_mid_stream<C: Unbuffered>(mut ours: Handshake<C>, mut peer: Peer) {
    assert_eq!(ours.turn(b"", &mut peer), b"");
    ours.turn(b"with rustls", &mut peer);
    assert_eq!(peer.data(), b"with rustls");
    peer.connection.refresh_traffic_keys().unwrap();
    peer.write(b"to rustls");
    ours.input.extend(peer.receive());
    assert_eq!(ours.turn(b"updated", &mut peer), b"to rustls");
    assert_eq!(peer.data(), b"updated");

    peer.write(&[1; 40_000]);
    let wire = peer.receive();
    ours.input.extend_from_slice(&wire[..20_000]);
    let mut layer = ours.take_over().unwrap();
    let (data, event) = receive(&mut layer, &wire[20_000..]).unwrap();
    assert_eq!((data, event), (vec![1; 40_000], Event::NeedMore));
    converse(layer, &mut peer);
}

#[test]
fn a_client_continues_a_connection_that_rustls_began() {
    for suite in SUITES {
        let ours = Handshake::client(&client_config(suite));
        continue_in_mid_stream(ours, Peer::server(suite));
    }
}

#[test]
fn a_server_continues_a_connection_that_rustls_began() {
    for suite in SUITES {
        let ours = Handshake::server(&server_config(suite));
        continue_in_mid_stream(ours, Peer::client(suite));
    }
}

#[test]
fn tickets_that_follow_the_handshake_are_skipped() {
    for suite in SUITES {
        let (mut ours, mut peer) = (
            Handshake::client(&client_config(suite)),
            Peer::server(suite),
        );
        ours.turn(b"", &mut peer);
        let tickets = peer.receive();
        let sent = records(&tickets).len() as u64;
        assert!(sent > 0);
        ours.input.extend(tickets);
        let mut layer = ours.take_over().unwrap();
        assert_eq!(receive(&mut layer, b"").unwrap().1, Event::NeedMore);
        let state = layer.freeze();
        assert_eq!((state.rx.sequence, state.unread.len()), (sent, 0));
        converse(state.thaw().unwrap(), &mut peer);
    }
}

#[test]
fn a_server_counts_the_tickets_that_rustls_has_sent() {
    let suite = SUITES[0];
    let (mut ours, mut peer) = (
        Handshake::server(&server_config(suite)),
        Peer::client(suite),
    );
    ours.turn(b"", &mut peer);
    let layer = ours.take_over().unwrap();
    let state = layer.freeze();
    assert!(state.tx.sequence > 0);
    converse(state.thaw().unwrap(), &mut peer);
}

#[test]
fn alerts_are_understood_by_both_ends() {
    let suite = SUITES[0];
    let connect = || {
        let (mut ours, mut peer) = (
            Handshake::server(&server_config(suite)),
            Peer::client(suite),
        );
        ours.turn(b"", &mut peer);
        (ours.take_over().unwrap(), peer)
    };
    let damaged = [
        23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    ];
    let damaged = [&damaged[..], &[0; 4]].concat();

    let (mut layer, mut peer) = connect();
    let result = receive(&mut layer, &damaged);
    assert_eq!(result, Err(RecordError::BadRecordMac));
    let result = peer.process(&take(layer.outgoing()));
    let alert = AlertDescription::BadRecordMac;
    assert_eq!(result, Err(Error::AlertReceived(alert)));

    let (mut layer, mut peer) = connect();
    peer.process(&damaged).unwrap_err();
    let result = receive(&mut layer, &peer.receive());
    let error = RecordError::PeerAlert(Alert::BAD_RECORD_MAC);
    assert_eq!(result, Err(error));
}

#[test]
fn other_suites_and_versions_are_not_taken_over() {
    assert_eq!(Suite::of(SUITES[0]), Some(Suite::Aes128GcmSha256));
    assert_eq!(Suite::of(SUITES[1]), Some(Suite::Aes256GcmSha384));
    for (suite, error) in [
        (
            TLS13_CHACHA20_POLY1305_SHA256,
            HandoverError::UnsupportedSuite,
        ),
        (
            TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            HandoverError::NoSecrets,
        ),
    ] {
        assert_eq!(Suite::of(suite), None);
        let (mut ours, mut peer) = (
            Handshake::client(&client_config(suite)),
            Peer::server(suite),
        );
        ours.turn(b"", &mut peer);
        assert_eq!(ours.take_over().err(), Some(error));
    }
}

#[test]
fn secrets_of_another_connection_are_rejected() {
    let connect = || {
        let suite = SUITES[0];
        let (mut ours, mut peer) = (
            Handshake::client(&client_config(suite)),
            Peer::server(suite),
        );
        ours.turn(b"", &mut peer);
        ours
    };
    let result = connect().take_over_with(connect());
    assert_eq!(result.err(), Some(HandoverError::ForeignKeys));
}

#[test]
fn a_connection_with_an_unsent_key_update_is_not_taken_over() {
    let suite = SUITES[0];
    let (mut ours, mut peer) = (
        Handshake::client(&client_config(suite)),
        Peer::server(suite),
    );
    ours.turn(b"", &mut peer);
    peer.connection.refresh_traffic_keys().unwrap();
    ours.input.extend(peer.receive());
    ours.turn(b"", &mut peer);
    let error = HandoverError::UnsentKeyUpdate;
    assert_eq!(ours.take_over().err(), Some(error));
}
