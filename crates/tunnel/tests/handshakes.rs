//! Handshakes between both roles, from any split of the bytes, and those that fail.
#![allow(clippy::unwrap_used)]

#[path = "support/credentials.rs"]
mod credentials;

use std::sync::Arc;

use credentials::{client_config, client_config_for, credentials};
use http::HeaderMap;
use identity::Credentials;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, Error};
use tunnel::{Config, Event, Handshake, HandshakeError, MIN_BUFFER, Received, Tunnel};

/// Runs a test with a certificate.
fn with_credentials(test: impl FnOnce(Arc<Credentials>)) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().build().unwrap();
    test(runtime.block_on(tokio::task::LocalSet::new().run_until(credentials())));
}

fn client(credentials: &Credentials) -> Handshake {
    let name = ServerName::try_from("10.0.0.1").unwrap();
    Handshake::client(&client_config(credentials), name).unwrap()
}

fn server(credentials: &Credentials) -> Handshake {
    Handshake::server(&credentials.server).unwrap()
}

/// Takes the output.
fn flush(handshake: &mut Handshake) -> Vec<u8> {
    let output = handshake.output().to_vec();
    handshake.sent(output.len());
    output
}

/// Passes the output of one end to the other one, in pieces.
fn pass(from: &mut Handshake, to: &mut Handshake, piece: usize) -> Result<(), HandshakeError> {
    let output = flush(from);
    output.chunks(piece).try_for_each(|bytes| to.receive(bytes))
}

/// The events of a tunnel that receives bytes.
fn receive(tunnel: &mut Tunnel, bytes: &[u8]) -> Vec<Event> {
    let mut buffer = vec![0; MIN_BUFFER];
    let mut input = tunnel.input(&mut buffer);
    input.space()[..bytes.len()].copy_from_slice(bytes);
    input.fill(bytes.len());
    let mut events = Vec::new();
    while let Received::Event(event) = tunnel.receive(&mut input, 0).unwrap() {
        events.push(event);
    }
    tunnel.hold(input);
    events
}

#[test]
fn both_ends_complete_whatever_the_split_and_keep_what_follows() {
    with_credentials(|credentials| {
        for piece in [1, 2, 5, 100, 1000, usize::MAX] {
            let (mut client, mut server) = (client(&credentials), server(&credentials));
            assert!(!client.is_complete() && !server.is_complete());
            pass(&mut client, &mut server, piece).unwrap();
            pass(&mut server, &mut client, piece).unwrap();
            assert!(client.is_complete() && !server.is_complete());
            // The client's last flight and its first frames arrive together.
            let mut bytes = flush(&mut client);
            let chain = client.peer_chain();
            let mut client = client.into_tunnel(Config::default(), 0).unwrap();
            client.open("a:1", &HeaderMap::new()).unwrap();
            bytes.extend_from_slice(client.output());
            let pieces = bytes.chunks(piece);
            pieces.for_each(|bytes| server.receive(bytes).unwrap());
            assert!(server.is_complete());
            assert_eq!((server.peer_chain(), chain.len()), (chain, 1));
            let mut server = server.into_tunnel(Config::default(), 0).unwrap();
            let events = receive(&mut server, &[]);
            let [Event::Settings, Event::Request { head, .. }] = &events[..] else {
                panic!("{piece}: {events:?}");
            };
            assert_eq!(head.authority, "a:1");
        }
    });
}

#[test]
fn a_peer_without_tls_is_rejected_at_once() {
    with_credentials(|credentials| {
        for mut handshake in [client(&credentials), server(&credentials)] {
            flush(&mut handshake);
            let result = handshake.receive(b"GET / HTTP/1.1\r\n");
            assert!(
                matches!(result, Err(HandshakeError::Tls(Error::InvalidMessage(_)))),
                "{result:?}"
            );
            assert!(!handshake.is_complete());
        }
    });
}

#[test]
fn a_peer_with_another_identity_is_rejected_by_an_alert() {
    with_credentials(|credentials| {
        let other = "spiffe://cluster.local/ns/default/sa/other";
        let config = client_config_for(&credentials, other);
        let name = ServerName::try_from("10.0.0.1").unwrap();
        let mut client = Handshake::client(&config, name).unwrap();
        let mut server = server(&credentials);
        pass(&mut client, &mut server, usize::MAX).unwrap();
        let result = pass(&mut server, &mut client, usize::MAX);
        assert!(
            matches!(
                result,
                Err(HandshakeError::Tls(Error::InvalidCertificate(_)))
            ),
            "{result:?}"
        );
        let result = pass(&mut client, &mut server, usize::MAX);
        assert!(
            matches!(result, Err(HandshakeError::Tls(Error::AlertReceived(_)))),
            "{result:?}"
        );
    });
}

#[test]
fn a_flight_that_was_changed_is_rejected() {
    with_credentials(|credentials| {
        let (mut client, mut server) = (client(&credentials), server(&credentials));
        pass(&mut client, &mut server, usize::MAX).unwrap();
        let mut flight = flush(&mut server);
        *flight.last_mut().unwrap() ^= 1;
        let result = client.receive(&flight);
        assert!(
            matches!(result, Err(HandshakeError::Tls(Error::DecryptError))),
            "{result:?}"
        );
        let result = server.receive(&flush(&mut client));
        let alert = AlertDescription::BadRecordMac;
        assert!(
            matches!(&result, Err(HandshakeError::Tls(Error::AlertReceived(a))) if *a == alert),
            "{result:?}"
        );
    });
}

#[test]
fn the_alert_of_a_peer_ends_the_handshake() {
    with_credentials(|credentials| {
        let mut client = client(&credentials);
        let result = client.receive(&[21, 3, 3, 0, 2, 2, 40]);
        let alert = AlertDescription::HandshakeFailure;
        assert!(
            matches!(&result, Err(HandshakeError::Tls(Error::AlertReceived(a))) if *a == alert),
            "{result:?}"
        );
        let result = client.receive(b"more");
        assert!(
            matches!(result, Err(HandshakeError::FailedBefore)),
            "{result:?}"
        );
    });
}
