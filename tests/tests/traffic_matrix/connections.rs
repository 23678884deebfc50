//! Connections of a pod in the mesh, of its peers and of its proxy, and what is not captured.

use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use netns::sockopt::set_transparent;
use socket2::{Domain, Socket, Type};
use underpass_tests::arrivals::{ArrivalPoint, ProxyListeners, carries_both_ways, nothing_arrives};
use underpass_tests::capture_setup::{
    CaptureSetup, assert_arrives, assert_inbound, assert_outbound, at, is_refused,
};
use underpass_tests::listener::{accept, connect, connect_briefly, connect_marked, plain};
use underpass_tests::sandbox::PATIENCE;
use underpass_tests::sniffer::Sniffer;

pub(crate) fn outbound(s: &CaptureSetup) {
    let proxy = s.enrol(|_| {});
    let arrived = assert_outbound(s, &proxy, 80, ArrivalPoint::Outbound);
    assert_eq!(arrived.client.ip(), s.pod());
}

pub(crate) fn inbound(s: &CaptureSetup) {
    let proxy = s.enrol(|_| {});
    let arrived = assert_inbound(s, &proxy, 8080, ArrivalPoint::Inbound);
    assert_eq!(arrived.client.ip(), s.peer());
}

pub(crate) fn tunnel(s: &CaptureSetup) {
    let proxy = s.enrol(|_| {});
    let app = s.app(8080);
    assert_arrives(
        s,
        &s.wire.peer,
        at(s.pod(), 15008),
        &proxy,
        &app,
        ArrivalPoint::Hbone,
    );
}

pub(crate) fn probe(s: &CaptureSetup) {
    let proxy = s.enrol(|_| {});
    let app = s.app(8080);
    let source = s.address("169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff");
    s.ip(&s.wire.peer, &format!("address add {source} dev lo"));
    s.ip(
        &s.wire.pod,
        &format!("{} route add {source} via {}", s.family_flag(), s.peer()),
    );
    let to = at(s.pod(), 8080);
    let from_source = || -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        set_transparent(&socket, s.v6)?; // the address may be tentative for a moment
        socket.bind(&at(source, 0).into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(socket.into())
    };
    let mut prober = s.wire.peer.run(from_source).unwrap().unwrap();
    let mut arrived = proxy.next(&[&app]).unwrap();
    assert_eq!(
        (arrived.point, arrived.client.ip()),
        (ArrivalPoint::Direct, source)
    );
    carries_both_ways(&mut prober, &mut arrived.stream).unwrap();
}

pub(crate) fn loopback(s: &CaptureSetup) {
    let proxy = s.enrol(|p| p.dns = true);
    for address in if s.v6 {
        vec!["::1"]
    } else {
        vec!["127.0.0.1", "127.0.0.53"]
    } {
        let to = at(address.parse().unwrap(), 8080);
        let app = plain(&s.wire.pod, to);
        assert_arrives(s, &s.wire.pod, to, &proxy, &app, ArrivalPoint::Direct);
    }
}

pub(crate) fn own_address(s: &CaptureSetup) {
    let proxy = s.enrol(|_| {});
    assert_arrives(
        s,
        &s.wire.pod,
        at(s.pod(), 8080),
        &proxy,
        &s.app(8080),
        ArrivalPoint::Direct,
    );
}

pub(crate) fn second_address(s: &CaptureSetup) {
    let second = s.address("10.78.9.1", "fd78:9::1");
    let (length, flags) = if s.v6 { (128, " nodad") } else { (32, "") };
    s.ip(
        &s.wire.pod,
        &format!("address add {second}/{length} dev eth0{flags}"),
    );
    let proxy = s.enrol(|p| p.addresses.push(second));
    let app = plain(&s.wire.pod, at(second, 8080));
    assert_arrives(
        s,
        &s.wire.pod,
        at(second, 8080),
        &proxy,
        &app,
        ArrivalPoint::Direct,
    );
}

pub(crate) fn own_vip(s: &CaptureSetup) {
    let proxy = s.enrol(|_| {});
    s.ip(
        &s.wire.pod,
        &format!("{} route add default via {}", s.family_flag(), s.peer()),
    );
    let vip = s.address("10.96.0.10", "fd96::10");
    assert_arrives(
        s,
        &s.wire.pod,
        at(vip, 80),
        &proxy,
        &s.app(8080),
        ArrivalPoint::Outbound,
    );
}

pub(crate) fn proxy_leaves(s: &CaptureSetup) {
    let proxy = s.enrol(|p| p.dns = true);
    for port in [80, 53, 15008] {
        let outside = s.server(port);
        let mut of_proxy = connect_marked(&s.wire.pod, None, at(s.peer(), port)).unwrap();
        let mut arrived = proxy.next(&[&outside]).unwrap();
        assert_eq!(
            (arrived.point, arrived.client.ip()),
            (ArrivalPoint::Direct, s.pod())
        );
        carries_both_ways(&mut of_proxy, &mut arrived.stream).unwrap();
    }
}

/// Asserts that the proxy reaches this port of the pod with the peer's address.
pub(crate) fn assert_spoofed(s: &CaptureSetup, proxy: &ProxyListeners, port: u16) {
    let app = s.app(port);
    let mut of_proxy = connect_marked(&s.wire.pod, Some(s.peer()), at(s.pod(), port)).unwrap();
    let mut arrived = proxy.next(&[&app]).unwrap();
    assert_eq!(
        (arrived.point, arrived.client.ip()),
        (ArrivalPoint::Direct, s.peer())
    );
    carries_both_ways(&mut of_proxy, &mut arrived.stream).unwrap();
}

pub(crate) fn spoofed(s: &CaptureSetup) {
    let proxy = s.enrol(|_| {});
    assert_spoofed(s, &proxy, 8080);
}

pub(crate) fn spoofed_returns(s: &CaptureSetup) {
    let _proxy = s.enrol(|_| {});
    let app = s.app(8080);
    let client = s.address("192.0.2.77", "2001:db8::77");
    s.ip(
        &s.wire.pod,
        &format!("{} route add default via {}", s.family_flag(), s.peer()),
    );
    let outside = Sniffer::new(&s.wire.peer);
    let mut of_proxy = connect_marked(&s.wire.pod, Some(client), at(s.pod(), 8080)).unwrap();
    let (mut served, from) = accept(&app).unwrap();
    assert_eq!(from.ip(), client);
    std::io::Write::write_all(&mut served, b"what the application answers").unwrap();
    let mut answer = [0; 28];
    of_proxy.set_read_timeout(Some(PATIENCE)).unwrap();
    std::io::Read::read_exact(&mut of_proxy, &mut answer[..27]).unwrap();
    assert!(
        !outside.sees("application answers", Duration::from_millis(100)),
        "a packet left the pod"
    );
}

pub(crate) fn spoofed_other_interface(s: &CaptureSetup) {
    let _proxy = s.enrol(|_| {});
    let app = s.app(8080);
    s.ip(&s.wire.pod, "link add more0 type veth peer name more1");
    s.ip(&s.wire.pod, "link set more0 up");
    s.ip(&s.wire.pod, "link set more1 up");
    let client = s.address("10.80.0.9", "fd80::9");
    s.ip(
        &s.wire.pod,
        &format!("{} route add {client} dev more0", s.family_flag()),
    );
    let mut of_proxy = connect_marked(&s.wire.pod, Some(client), at(s.pod(), 8080)).unwrap();
    let (mut served, _) = accept(&app).unwrap();
    carries_both_ways(&mut of_proxy, &mut served).unwrap();
}

pub(crate) fn udp_and_icmp(s: &CaptureSetup) {
    let _proxy = s.enrol(|p| p.dns = true);
    for (from, from_ip, to, to_ip) in [
        (&s.wire.pod, s.pod(), &s.wire.peer, s.peer()),
        (&s.wire.peer, s.peer(), &s.wire.pod, s.pod()),
    ] {
        let server = to
            .run(|| UdpSocket::bind(at(to_ip, 5000)).unwrap())
            .unwrap();
        let client = from
            .run(|| UdpSocket::bind(at(from_ip, 0)).unwrap())
            .unwrap();
        client.send_to(b"hello", at(to_ip, 5000)).unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let (_, seen) = server.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(seen.ip(), from_ip);
        server.send_to(b"hello", seen).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(client.recv_from(&mut [0; 16]).unwrap().1, at(to_ip, 5000));
        // This port is closed: the response is an ICMP error.
        let socket = from
            .run(|| UdpSocket::bind(at(from_ip, 0)).unwrap())
            .unwrap();
        socket.connect(at(to_ip, 5001)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send(b"hello").unwrap();
        assert_eq!(
            socket.recv(&mut [0; 16]).unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
    }
}

pub(crate) fn no_proxy_outbound(s: &CaptureSetup) {
    s.apply(&s.plan());
    let outside = s.server(80);
    assert!(is_refused(&connect(&s.wire.pod, at(s.peer(), 80))));
    assert!(nothing_arrives(&outside));
}

pub(crate) fn no_proxy_inbound(s: &CaptureSetup) {
    s.apply(&s.plan());
    let app = s.app(8080);
    assert!(connect_briefly(&s.wire.peer, at(s.pod(), 8080)).is_err());
    assert!(nothing_arrives(&app));
}
