//! Connections that a plan excludes.

use underpass_tests::arrivals::ArrivalPoint;
use underpass_tests::capture_setup::{
    CaptureSetup, assert_arrives, assert_inbound, assert_outbound, at,
};

use super::connections::assert_spoofed;

pub(crate) fn inbound(s: &CaptureSetup) {
    let proxy = s.enrol(|p| p.bypass_inbound = true);
    let app = s.app(8080);
    assert_arrives(
        s,
        &s.wire.peer,
        at(s.pod(), 8080),
        &proxy,
        &app,
        ArrivalPoint::Direct,
    );
    assert_arrives(
        s,
        &s.wire.peer,
        at(s.pod(), 15008),
        &proxy,
        &app,
        ArrivalPoint::Hbone,
    );
    assert_outbound(s, &proxy, 80, ArrivalPoint::Outbound);
}

pub(crate) fn inbound_port(s: &CaptureSetup) {
    let proxy = s.enrol(|p| p.exclude.inbound_ports = [8080].into());
    assert_inbound(s, &proxy, 8080, ArrivalPoint::Direct);
    assert_inbound(s, &proxy, 8081, ArrivalPoint::Inbound);
    assert_outbound(s, &proxy, 8080, ArrivalPoint::Outbound);
}

pub(crate) fn inbound_cidr(s: &CaptureSetup) {
    let net = format!("{}/{}", s.peer(), if s.v6 { 120 } else { 28 })
        .parse::<ipnet::IpNet>()
        .unwrap();
    let proxy = s.enrol(|p| p.exclude.inbound_cidrs = [net.trunc()].into());
    assert_inbound(s, &proxy, 8080, ArrivalPoint::Direct);
    // The proxy still connects with such a client's address.
    assert_spoofed(s, &proxy, 8081);
}

pub(crate) fn outbound_port(s: &CaptureSetup) {
    let proxy = s.enrol(|p| p.exclude.outbound_ports = [8080].into());
    let arrived = assert_outbound(s, &proxy, 8080, ArrivalPoint::Direct);
    assert_eq!(arrived.client.ip(), s.pod());
    assert_outbound(s, &proxy, 80, ArrivalPoint::Outbound);
    assert_inbound(s, &proxy, 8080, ArrivalPoint::Inbound);
}

pub(crate) fn outbound_cidr(s: &CaptureSetup) {
    let net = format!("{}/{}", s.peer(), if s.v6 { 120 } else { 28 })
        .parse::<ipnet::IpNet>()
        .unwrap();
    let proxy = s.enrol(|p| p.exclude.outbound_cidrs = [net.trunc()].into());
    assert_outbound(s, &proxy, 80, ArrivalPoint::Direct);
    s.ip(
        &s.wire.pod,
        &format!("{} route add default via {}", s.family_flag(), s.peer()),
    );
    let elsewhere = s.address("10.96.0.10", "fd96::10");
    assert_arrives(
        s,
        &s.wire.pod,
        at(elsewhere, 80),
        &proxy,
        &s.server(81),
        ArrivalPoint::Outbound,
    );
}
