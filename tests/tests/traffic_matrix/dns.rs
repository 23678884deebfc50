//! Where a pod's DNS queries arrive.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use netns::NetNs;
use redirect::{CaptureKind, Plan};
use underpass_tests::arrivals::{ArrivalPoint, nothing_arrives};
use underpass_tests::capture_setup::{
    CaptureSetup, add_guest, assert_arrives, assert_outbound, at, is_refused,
};
use underpass_tests::iptables::run;
use underpass_tests::listener::{connect, plain};
use underpass_tests::sandbox::PATIENCE;

/// A query from a connected socket, which accepts responses only from the queried address.
pub(crate) fn query(from: &NetNs, local: SocketAddr, to: SocketAddr) -> UdpSocket {
    let socket = from.run(|| UdpSocket::bind(local)).unwrap().unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send(b"query").unwrap();
    socket
}

/// A name server at the peer.
pub(crate) fn resolver(s: &CaptureSetup) -> UdpSocket {
    let bound = s.wire.peer.run(|| UdpSocket::bind(at(s.peer(), 53)));
    let socket = bound.unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn answer_to(socket: &UdpSocket) -> std::io::Result<Vec<u8>> {
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(buffer[..length].to_vec())
}

pub(crate) fn udp(s: &CaptureSetup) {
    let proxy = s.enrol(|p| p.dns = true);
    let outside = resolver(s);
    for _ in 0..2 {
        let client = query(&s.wire.pod, at(s.pod(), 0), at(s.peer(), 53));
        let (received, destination) = proxy
            .answer_dns(b"answer")
            .expect("the query arrived nowhere");
        assert_eq!(received, b"query");
        if s.capture == CaptureKind::Routed {
            assert_eq!(destination, at(s.peer(), 53));
        }
        assert_eq!(answer_to(&client).unwrap(), b"answer");
    }
    outside.set_nonblocking(true).unwrap();
    assert!(
        outside.recv_from(&mut [0; 16]).is_err(),
        "a packet left the pod"
    );
}

pub(crate) fn tcp(s: &CaptureSetup) {
    let proxy = s.enrol(|p| p.dns = true);
    assert_outbound(s, &proxy, 53, ArrivalPoint::Dns);
}

pub(crate) fn loopback(s: &CaptureSetup) {
    let proxy = s.enrol(|p| p.dns = true);
    let own = if s.v6 {
        vec!["::1".parse().unwrap(), s.pod()]
    } else {
        vec![Ipv4Addr::new(127, 0, 0, 53).into(), s.pod()]
    };
    for address in own {
        let resolver = s
            .wire
            .pod
            .run(|| UdpSocket::bind(at(address, 53)))
            .unwrap()
            .unwrap();
        let client = query(&s.wire.pod, at(address, 0), at(address, 53));
        resolver.set_read_timeout(Some(PATIENCE)).unwrap();
        let (_, from) = resolver.recv_from(&mut [0; 16]).unwrap();
        resolver.send_to(b"answer", from).unwrap();
        assert_eq!(answer_to(&client).unwrap(), b"answer");
        let tcp = plain(&s.wire.pod, at(address, 53));
        assert_arrives(
            s,
            &s.wire.pod,
            at(address, 53),
            &proxy,
            &tcp,
            ArrivalPoint::Direct,
        );
    }
}

pub(crate) fn of_the_proxy(s: &CaptureSetup) {
    let proxy = s.enrol(|p| p.dns = true);
    let resolver = resolver(s);
    // The application queries from a port, and so does the proxy: two flows with one five-tuple.
    let client = query(&s.wire.pod, at(s.pod(), 40_053), at(s.peer(), 53));
    proxy.answer_dns(b"not yet").unwrap();
    assert_eq!(answer_to(&client).unwrap(), b"not yet");
    drop(client);
    let upstream = proxy.marked_udp(at(s.pod(), 40_053)).unwrap();
    upstream.connect(at(s.peer(), 53)).unwrap();
    upstream.send(b"of the proxy").unwrap();
    let mut buffer = [0; 64];
    let (length, from) = resolver.recv_from(&mut buffer).unwrap();
    assert_eq!(
        (&buffer[..length], from.ip()),
        (&b"of the proxy"[..], s.pod())
    );
    resolver.send_to(b"upstream", from).unwrap();
    upstream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(answer_to(&upstream).unwrap(), b"upstream");
}

pub(crate) fn not_captured(s: &CaptureSetup) {
    let proxy = s.enrol(|_| {});
    let resolver = resolver(s);
    let client = query(&s.wire.pod, at(s.pod(), 0), at(s.peer(), 53));
    let (_, from) = resolver.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(from.ip(), s.pod());
    resolver.send_to(b"answer", from).unwrap();
    assert_eq!(answer_to(&client).unwrap(), b"answer");
    assert_outbound(s, &proxy, 53, ArrivalPoint::Outbound);
}

pub(crate) fn without_proxy(s: &CaptureSetup) {
    s.apply(&Plan {
        dns: true,
        ..s.plan()
    });
    let outside = s.server(53);
    let resolver = resolver(s);
    let client = query(&s.wire.pod, at(s.pod(), 0), at(s.peer(), 53));
    if s.capture == CaptureKind::Routed && !s.v6 {
        // The kernel sends no ICMP error from an address that it does not have.
        client
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        assert!(answer_to(&client).is_err());
    } else {
        assert_eq!(
            answer_to(&client).unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
    }
    assert!(is_refused(&connect(&s.wire.pod, at(s.peer(), 53))));
    assert!(nothing_arrives(&outside));
    resolver.set_nonblocking(true).unwrap();
    assert!(
        resolver.recv_from(&mut [0; 16]).is_err(),
        "a packet left the pod"
    );
}

pub(crate) fn forwarded(s: &CaptureSetup) {
    let _proxy = s.enrol(|p| p.dns = true);
    let guest = add_guest(s);
    let masquerade = "table inet vm { chain out { type nat hook postrouting priority 100; oifname \
                      eth0 masquerade; }; }";
    run(&s.wire.pod, "nft", "-f -", masquerade);
    let resolver = resolver(s);
    let client = query(
        &guest,
        at(s.address("10.79.0.2", "fd79::2"), 0),
        at(s.peer(), 53),
    );
    let (_, from) = resolver.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(from.ip(), s.pod(), "masqueraded");
    resolver.send_to(b"answer", from).unwrap();
    assert_eq!(answer_to(&client).unwrap(), b"answer");
}
