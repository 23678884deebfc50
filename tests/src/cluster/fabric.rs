//! The network of a cluster: hosts on a bridge, and pods behind the hosts that are nodes.
//!
//! | what | addresses |
//! |---|---|
//! | control plane | 10.200.0.10, fd00:200::10 |
//! | node N | 10.200.0.(10+N), fd00:200::(10+N) |
//! | pod P of node N | 10.201.N.P, fd00:201:0:N::P |
//! | services | 10.96.0.0/16, fd00:96::/112 |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

use netns::NetNs;

use crate::iptables::run;
use crate::wire::join;

/// The host number of the control plane.
pub const CONTROL_PLANE: u8 = 0;
/// The highest node number; every host has routes to the pods of nodes 1 to `NODES`.
pub const NODES: u8 = 30;

/// The families of a cluster's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// Both, IPv4 first.
    Dual,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl Families {
    /// From an IPv4 and an IPv6 item, those of the cluster's families.
    pub fn of<T>(self, [v4, v6]: [T; 2]) -> Vec<T> {
        match self {
            Self::Dual => vec![v4, v6],
            Self::V4 => vec![v4],
            Self::V6 => vec![v6],
        }
    }

    /// From an IPv4 and an IPv6 item, that of the cluster's first family.
    pub fn first<T>(self, both: [T; 2]) -> T {
        self.of(both).remove(0)
    }

    /// The Kubernetes name of the first family.
    pub fn first_name(self) -> &'static str {
        self.first(["IPv4", "IPv6"])
    }
}

/// The bridge, in its own network namespace.
#[derive(Debug)]
pub struct Fabric {
    /// The address families of its hosts.
    pub families: Families,
    netns: NetNs,
}

impl Fabric {
    /// A bridge without hosts.
    pub fn new(families: Families) -> Self {
        let netns = NetNs::create().unwrap();
        ip(&netns, "link add fabric type bridge\nlink set fabric up");
        Self { families, netns }
    }

    /// Whether no host has this number.
    pub fn is_free(&self, number: u8) -> bool {
        self.netns
            .run(|| nix::net::if_::if_nametoindex(format!("host{number}").as_str()).is_err())
            .unwrap()
    }

    /// Creates the network namespace of a host: the control plane or a node.
    pub fn host(&self, number: u8) -> NetNs {
        // A link has a temporary name while it is created, which must not be used twice.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let host = NetNs::create().unwrap();
        join(&self.netns, &format!("host{number}"), &host, "eth0");
        ip(
            &self.netns,
            &format!("link set host{number} master fabric\nlink set host{number} up"),
        );
        let [v4, v6] = host_ips(number);
        let addresses = [
            format!("address add {v4}/24 dev eth0\n"),
            format!("address add {v6}/64 dev eth0 nodad\n"),
        ];
        ip(
            &host,
            &format!(
                "link set lo up\n{}link set eth0 up",
                self.families.of(addresses).concat()
            ),
        );
        // It leads nowhere: some programs look for a default route to learn their own address.
        ip(
            &host,
            &self
                .families
                .of(["10.200.0.1", "fd00:200::1"].map(|r| format!("route add default via {r}\n")))
                .concat(),
        );
        let others = (1..=NODES).filter(|n| *n != number).flat_map(|other| {
            let [v4, v6] = host_ips(other);
            self.families.of([
                format!("route add 10.201.{other}.0/24 via {v4}\n"),
                format!("route add fd00:201:0:{other}::/64 via {v6}\n"),
            ])
        });
        ip(&host, &others.collect::<String>());
        for forwarding in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            host.run(|| std::fs::write(format!("/proc/sys/net/{forwarding}"), "1"))
                .unwrap()
                .unwrap();
        }
        host
    }
}

/// The addresses of a host.
pub fn host_ips(number: u8) -> [IpAddr; 2] {
    let last = 10 + number;
    let v6 = format!("fd00:200::{last}").parse::<Ipv6Addr>().unwrap();
    [Ipv4Addr::new(10, 200, 0, last).into(), v6.into()]
}

/// Creates the network namespace of a pod, connected to its node as a CNI plugin would; returns it
/// with its addresses.
pub fn pod(node: &NetNs, number: u8) -> (NetNs, [IpAddr; 2]) {
    static PODS: AtomicU16 = AtomicU16::new(2); // .1 is each pod's router
    let last = PODS.fetch_add(1, Ordering::Relaxed);
    assert!(last < 255, "too many pods");
    let v6: Ipv6Addr = format!("fd00:201:0:{number}::{last}").parse().unwrap();
    let ips: [IpAddr; 2] = [Ipv4Addr::new(10, 201, number, last as u8).into(), v6.into()];
    let pod = NetNs::create().unwrap();
    let link = format!("pod{last}");
    join(node, &link, &pod, "eth0");
    ip(
        node,
        &format!(
            "address add 10.201.{number}.1/32 dev {link}\naddress add fe80::1/64 dev {link} \
             nodad\nlink set {link} up\nroute add {}/32 dev {link}\nroute add {}/128 dev {link}",
            ips[0], ips[1]
        ),
    );
    ip(
        &pod,
        &format!(
            "link set lo up\naddress add {}/32 dev eth0\naddress add {}/128 dev eth0 nodad\nlink \
             set eth0 up\nroute add 10.201.{number}.1/32 dev eth0\nroute add default via \
             10.201.{number}.1\nroute add default via fe80::1 dev eth0",
            ips[0], ips[1]
        ),
    );
    (pod, ips)
}

fn ip(netns: &NetNs, commands: &str) {
    run(netns, "ip", "-batch -", commands);
}
