//! A pod and a peer under one capture and one address family, and assertions on where connections
//! arrive. Shared by the tests of redirection.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use netns::NetNs;
use redirect::{CaptureKind, Plan};

use crate::arrivals::{Arrival, ArrivalPoint, ProxyListeners, carries_both_ways};
use crate::iptables::run;
use crate::listener::{connect, plain};
use crate::sandbox::until;
use crate::wire::{PEER4, PEER6, POD4, POD6, Wire, join};

/// A pod and a peer, with the capture and the address family under test.
#[derive(Debug)]
pub struct CaptureSetup {
    /// The pod and its peer.
    pub wire: Wire,
    /// How the pod's traffic is captured.
    pub capture: CaptureKind,
    /// Whether the test uses IPv6 instead of IPv4.
    pub v6: bool,
}

impl CaptureSetup {
    /// Creates the pod and the peer; nothing is captured yet.
    pub fn new(capture: CaptureKind, v6: bool) -> Self {
        Self {
            wire: Wire::new(),
            capture,
            v6,
        }
    }

    /// The pod's address.
    pub fn pod(&self) -> IpAddr {
        if self.v6 { POD6 } else { POD4 }
    }

    /// The peer's address.
    pub fn peer(&self) -> IpAddr {
        if self.v6 { PEER6 } else { PEER4 }
    }

    /// The address of the family under test.
    pub fn address(&self, v4: &str, v6: &str) -> IpAddr {
        if self.v6 {
            v6.parse().unwrap()
        } else {
            v4.parse().unwrap()
        }
    }

    /// The default plan for the pod.
    pub fn plan(&self) -> Plan {
        Plan {
            capture: self.capture,
            ..Plan::for_pod([POD4, POD6])
        }
    }

    /// Applies a plan, and asserts that the kernel holds exactly its rules.
    pub fn apply(&self, plan: &Plan) -> redirect::ApplyOutcome {
        let applied = self
            .wire
            .pod
            .run(|| redirect::apply(plan))
            .unwrap()
            .unwrap();
        let observed = self.wire.pod.run(redirect::read_back).unwrap().unwrap();
        assert_eq!(redirect::diff(plan, &observed), [], "read back");
        applied
    }

    /// Applies the default plan with changes, with the proxy's listeners open.
    pub fn enrol(&self, change: impl FnOnce(&mut Plan)) -> ProxyListeners {
        let mut plan = self.plan();
        change(&mut plan);
        let proxy = ProxyListeners::new(&self.wire.pod);
        self.apply(&plan);
        proxy
    }

    /// An application listener in the pod.
    pub fn app(&self, port: u16) -> TcpListener {
        plain(&self.wire.pod, SocketAddr::new(self.pod(), port))
    }

    /// A server listener at the peer.
    pub fn server(&self, port: u16) -> TcpListener {
        plain(&self.wire.peer, SocketAddr::new(self.peer(), port))
    }

    /// Runs `ip` in a namespace.
    pub fn ip(&self, netns: &NetNs, args: &str) {
        run(netns, "ip", args, "");
    }

    /// `-4` or `-6`.
    pub fn family_flag(&self) -> &'static str {
        if self.v6 { "-6" } else { "-4" }
    }
}

/// A socket address.
pub fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// Connects, and asserts where the connection arrives, that its original destination is known
/// there, and that both directions carry data.
#[track_caller]
pub fn assert_arrives(
    scene: &CaptureSetup,
    from: &NetNs,
    to: SocketAddr,
    proxy: &ProxyListeners,
    direct: &TcpListener,
    point: ArrivalPoint,
) -> Arrival {
    let mut client = connect(from, to).unwrap_or_else(|e| panic!("connecting to {to}: {e}"));
    let mut arrived = proxy
        .next(&[direct])
        .unwrap_or_else(|| panic!("{to} arrived nowhere"));
    assert_eq!((arrived.point, arrived.destination), (point, to));
    assert_eq!(arrived.client.is_ipv6(), scene.v6);
    carries_both_ways(&mut client, &mut arrived.stream).unwrap();
    arrived
}

/// As `assert_arrives`, for a connection of the pod to this port of the peer.
#[track_caller]
pub fn assert_outbound(
    s: &CaptureSetup,
    proxy: &ProxyListeners,
    port: u16,
    point: ArrivalPoint,
) -> Arrival {
    let to = at(s.peer(), port);
    assert_arrives(s, &s.wire.pod, to, proxy, &s.server(port), point)
}

/// As `assert_arrives`, for a connection of the peer to this port of the pod.
#[track_caller]
pub fn assert_inbound(
    s: &CaptureSetup,
    proxy: &ProxyListeners,
    port: u16,
    point: ArrivalPoint,
) -> Arrival {
    let to = at(s.pod(), port);
    assert_arrives(s, &s.wire.peer, to, proxy, &s.app(port), point)
}

/// Whether the connection was refused.
pub fn is_refused(result: &std::io::Result<TcpStream>) -> bool {
    result
        .as_ref()
        .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Adds a guest behind the pod, such as a virtual machine, on interface vm0; the peer has a route
/// to it.
pub fn add_guest(s: &CaptureSetup) -> NetNs {
    let guest = NetNs::create().unwrap();
    join(&s.wire.pod, "vm0", &guest, "eth0");
    let (family, length) = (s.family_flag(), if s.v6 { 64 } else { 24 });
    let (gateway, own) = (
        s.address("10.79.0.1", "fd79::1"),
        s.address("10.79.0.2", "fd79::2"),
    );
    for (netns, link, address) in [(&s.wire.pod, "vm0", gateway), (&guest, "eth0", own)] {
        netns
            .run(|| std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/accept_dad"), "0"))
            .unwrap()
            .unwrap();
        s.ip(netns, &format!("link set {link} up"));
        s.ip(netns, &format!("address add {address}/{length} dev {link}"));
    }
    s.ip(&guest, &format!("{family} route add default via {gateway}"));
    s.ip(
        &s.wire.peer,
        &format!("{family} route add {own} via {}", s.pod()),
    );
    let forwarding = if s.v6 {
        "ipv6/conf/all/forwarding"
    } else {
        "ipv4/ip_forward"
    };
    s.wire
        .pod
        .run(|| std::fs::write(format!("/proc/sys/net/{forwarding}"), "1"))
        .unwrap()
        .unwrap();
    until("the guest's address is usable", || {
        guest.run(|| UdpSocket::bind(at(own, 0)).ok()).unwrap()
    });
    until("the pod's address is usable", || {
        s.wire
            .pod
            .run(|| UdpSocket::bind(at(gateway, 0)).ok())
            .unwrap()
    });
    guest
}
