//! What a pod forwards for its guests.

use redirect::CaptureKind;
use underpass_tests::arrivals::{ArrivalPoint, nothing_arrives};
use underpass_tests::capture_setup::{
    CaptureSetup, add_guest, assert_arrives, assert_inbound, at, is_refused,
};
use underpass_tests::listener::connect_briefly;

pub(crate) fn forwarded(s: &CaptureSetup) {
    let proxy = s.enrol(|_| {});
    let guest = add_guest(s);
    let outside = s.server(80);
    if s.capture == CaptureKind::Routed {
        let result = connect_briefly(&guest, at(s.peer(), 80));
        // Over IPv6 the kernel's reset does not leave the pod; see docs/redirection.md.
        assert!(if s.v6 {
            result.is_err()
        } else {
            is_refused(&result)
        });
        assert!(nothing_arrives(&outside));
    } else {
        assert_arrives(
            s,
            &guest,
            at(s.peer(), 80),
            &proxy,
            &outside,
            ArrivalPoint::Inbound,
        );
    }
}

pub(crate) fn rerouted(s: &CaptureSetup) {
    let proxy = s.enrol(|p| p.reroute_interfaces = ["vm0".parse().unwrap()].into());
    let guest = add_guest(s);
    let outside = s.server(80);
    let arrived = assert_arrives(
        s,
        &guest,
        at(s.peer(), 80),
        &proxy,
        &outside,
        ArrivalPoint::Outbound,
    );
    assert_eq!(arrived.client.ip(), s.address("10.79.0.2", "fd79::2"));
    assert_arrives(
        s,
        &s.wire.pod,
        at(s.peer(), 80),
        &proxy,
        &outside,
        ArrivalPoint::Outbound,
    );
    assert_inbound(s, &proxy, 8080, ArrivalPoint::Inbound);
}
