//! What the walks act on: a pod and a peer, a proxy's listeners, and where a connection goes.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use netns::NetNs;
use redirect::{CaptureKind, Plan};

use crate::iptables::run;
use crate::listener::{connect, plain};
use crate::places::{Arrived, Place, Proxy, carries};
use crate::sandbox::until;
use crate::wire::{PEER4, PEER6, POD4, POD6, Wire, join};

/// A pod and a peer, a capture, and a family.
#[derive(Debug)]
pub struct Scene {
    /// Pod and peer.
    pub wire: Wire,
    /// What captures.
    pub capture: CaptureKind,
    /// Over IPv6, or IPv4.
    pub v6: bool,
}

impl Scene {
    /// A fresh one.
    pub fn new(capture: CaptureKind, v6: bool) -> Self {
        Self { wire: Wire::new(), capture, v6 }
    }

    /// The pod's address.
    pub fn pod(&self) -> IpAddr {
        if self.v6 { POD6 } else { POD4 }
    }

    /// The peer's address.
    pub fn peer(&self) -> IpAddr {
        if self.v6 { PEER6 } else { PEER4 }
    }

    /// The one of these two addresses that is of this family.
    pub fn address(&self, v4: &str, v6: &str) -> IpAddr {
        if self.v6 { v6.parse().unwrap() } else { v4.parse().unwrap() }
    }

    /// The plan without anything special.
    pub fn plan(&self) -> Plan {
        Plan { capture: self.capture, ..Plan::for_pod([POD4, POD6]) }
    }

    /// Applies a plan, and demands that it is read back as it is.
    pub fn apply(&self, plan: &Plan) -> redirect::Applied {
        let applied = self.wire.pod.run(|| redirect::apply(plan)).unwrap().unwrap();
        let observed = self.wire.pod.run(redirect::read_back).unwrap().unwrap();
        assert_eq!(redirect::diff(plan, &observed), [], "read back");
        applied
    }

    /// Enrols the pod by a plan with changes, and a proxy listens.
    pub fn enrol(&self, change: impl FnOnce(&mut Plan)) -> Proxy {
        let mut plan = self.plan();
        change(&mut plan);
        let proxy = Proxy::new(&self.wire.pod);
        self.apply(&plan);
        proxy
    }

    /// The application listens in the pod.
    pub fn app(&self, port: u16) -> TcpListener {
        plain(&self.wire.pod, SocketAddr::new(self.pod(), port))
    }

    /// A server listens at the peer.
    pub fn server(&self, port: u16) -> TcpListener {
        plain(&self.wire.peer, SocketAddr::new(self.peer(), port))
    }

    /// Runs `ip`.
    pub fn ip(&self, netns: &NetNs, args: &str) {
        run(netns, "ip", args, "");
    }

    /// `-4` or `-6`.
    pub fn family_flag(&self) -> &'static str {
        if self.v6 { "-6" } else { "-4" }
    }
}

/// An address with a port.
pub fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// Connects and demands that it arrives at a place, as what the client wanted, and that both directions carry.
#[track_caller]
pub fn goes(scene: &Scene, from: &NetNs, to: SocketAddr, proxy: &Proxy, direct: &TcpListener, place: Place) -> Arrived {
    let mut client = connect(from, to).unwrap_or_else(|e| panic!("connecting to {to}: {e}"));
    let mut arrived = proxy.next(&[direct]).unwrap_or_else(|| panic!("{to} arrived nowhere"));
    assert_eq!((arrived.place, arrived.destination), (place, to));
    assert_eq!(arrived.client.is_ipv6(), scene.v6);
    carries(&mut client, &mut arrived.stream).unwrap();
    arrived
}

/// Refused, at once.
pub fn refused(result: &std::io::Result<TcpStream>) -> bool {
    result.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// A guest behind the pod, such as a virtual machine, by interface vm0; the peer knows the way back to it.
pub fn guest(s: &Scene) -> NetNs {
    let guest = NetNs::create().unwrap();
    join(&s.wire.pod, "vm0", &guest, "eth0");
    let (family, length) = (s.family_flag(), if s.v6 { 64 } else { 24 });
    let (gateway, own) = (s.address("10.79.0.1", "fd79::1"), s.address("10.79.0.2", "fd79::2"));
    for (netns, link, address) in [(&s.wire.pod, "vm0", gateway), (&guest, "eth0", own)] {
        netns.run(|| std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/accept_dad"), "0")).unwrap().unwrap();
        s.ip(netns, &format!("link set {link} up"));
        s.ip(netns, &format!("address add {address}/{length} dev {link}"));
    }
    s.ip(&guest, &format!("{family} route add default via {gateway}"));
    s.ip(&s.wire.peer, &format!("{family} route add {own} via {}", s.pod()));
    let forwarding = if s.v6 { "ipv6/conf/all/forwarding" } else { "ipv4/ip_forward" };
    s.wire.pod.run(|| std::fs::write(format!("/proc/sys/net/{forwarding}"), "1")).unwrap().unwrap();
    until("the guest's address can be used", || guest.run(|| UdpSocket::bind(at(own, 0)).ok()).unwrap());
    until("the pod's, too", || s.wire.pod.run(|| UdpSocket::bind(at(gateway, 0)).ok()).unwrap());
    guest
}
