//! Two network namespaces joined by a veth pair: a pod and a remote peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use netns::NetNs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rtnetlink::{LinkUnspec, LinkVeth};

use crate::listener::{accept, connect, plain};
use crate::sandbox::PATIENCE;

/// The pod's IPv4 address.
pub const POD4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 1));
/// The peer's IPv4 address.
pub const PEER4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 2));
/// The pod's IPv6 address.
pub const POD6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 1));
/// The peer's IPv6 address.
pub const PEER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 2));

/// Both ends of an open connection.
pub type Connection = (TcpStream, TcpStream);

/// A pod and a peer, each in a namespace with an `eth0`, joined by a veth pair.
#[derive(Debug)]
pub struct Wire {
    /// The pod's namespace.
    pub pod: NetNs,
    /// The peer's namespace.
    pub peer: NetNs,
}

impl Wire {
    /// Creates both namespaces. Needs root.
    #[must_use]
    pub fn new() -> Self {
        Self::to_pod(NetNs::create().unwrap())
    }

    /// Joins a new namespace of a pod, in which nothing is configured, with a new peer.
    #[must_use]
    pub fn to_pod(pod: NetNs) -> Self {
        let peer = NetNs::create().unwrap();
        let wire = Self { pod, peer };
        join(&wire.pod, "eth0", &wire.peer, "eth0");
        for (netns, addresses) in [(&wire.pod, [POD4, POD6]), (&wire.peer, [PEER4, PEER6])] {
            netns
                .run(|| std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0").unwrap())
                .unwrap();
            configure(netns, async |handle| {
                for link in ["lo", "eth0"] {
                    let up = LinkUnspec::new_with_index(index(link)).up().build();
                    handle.link().set(up).execute().await.unwrap();
                }
                let eth0 = index("eth0");
                for address in addresses {
                    let length = if address.is_ipv6() { 64 } else { 24 };
                    handle
                        .address()
                        .add(eth0, address, length)
                        .execute()
                        .await
                        .unwrap();
                }
            });
        }
        wire.await_addresses();
        wire
    }

    /// Opens connections, a quarter in each family and direction.
    #[must_use]
    pub fn open_connections(&self, count: usize) -> Vec<Connection> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        let (pod, peer) = (&self.pod, &self.peer);
        let flows = [
            (pod, peer, PEER4),
            (pod, peer, PEER6),
            (peer, pod, POD4),
            (peer, pod, POD6),
        ];
        let mut open = Vec::new();
        for (client, server, address) in flows {
            let at = SocketAddr::new(address, 8001);
            let listener = plain(server, at);
            for _ in 0..count / flows.len() {
                let app = connect(client, at).unwrap();
                open.push((app, accept(&listener).unwrap().0));
            }
        }
        open
    }

    /// Waits until the IPv6 addresses are no longer tentative and can be bound.
    fn await_addresses(&self) {
        let deadline = Instant::now() + PATIENCE;
        for (netns, address) in [(&self.pod, POD6), (&self.peer, PEER6)] {
            while netns
                .run(|| UdpSocket::bind((address, 0)).is_err())
                .unwrap()
            {
                assert!(Instant::now() < deadline, "{address} stays tentative");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Default for Wire {
    fn default() -> Self {
        Self::new()
    }
}

/// Joins two namespaces by a veth pair whose interfaces get these names.
pub fn join(a: &NetNs, name: &str, b: &NetNs, far_name: &str) {
    let far = b.as_fd().as_raw_fd();
    configure(a, async |handle| {
        handle
            .link()
            .add(LinkVeth::new(name, "to-far").build())
            .execute()
            .await
            .unwrap();
        let moved = LinkUnspec::new_with_index(index("to-far"))
            .setns_by_fd(far)
            .build();
        handle.link().set(moved).execute().await.unwrap();
    });
    configure(b, async |handle| {
        let renamed = LinkUnspec::new_with_index(index("to-far"))
            .name(far_name.to_owned())
            .build();
        handle.link().set(renamed).execute().await.unwrap();
    });
}

/// Runs `work` with a netlink handle inside a namespace.
pub fn configure(netns: &NetNs, work: impl AsyncFnOnce(rtnetlink::Handle)) {
    netns
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().unwrap();
                tokio::spawn(connection);
                work(handle).await;
            });
        })
        .unwrap();
}

/// The index of a link in the calling thread's namespace.
fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// Deletes all of Underpass's ip rules, as another process's `ip rule flush` would.
pub fn flush_rules(netns: &NetNs) {
    use rtnetlink::IpVersion;
    use rtnetlink::packet_route::rule::RuleAttribute;
    for version in [IpVersion::V4, IpVersion::V6] {
        let version = &version;
        configure(netns, async move |handle| {
            let rules: Vec<_> = handle
                .rule()
                .get(version.clone())
                .execute()
                .try_collect()
                .await
                .unwrap();
            for rule in rules {
                let is_underpass = |a: &RuleAttribute| {
                    matches!(
                        a,
                        RuleAttribute::Priority(p) if (32_000..32_766).contains(p)
                    )
                };
                if rule.attributes.iter().any(is_underpass) {
                    handle.rule().del(rule).execute().await.unwrap();
                }
            }
        });
    }
}

/// A mesh of pods that differ only in their names, and a wire for each.
pub fn many_pods(count: usize) -> (String, Vec<Wire>) {
    let mut mesh = "namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } \
                    }]\nworkloads:\n"
        .to_owned();
    for index in 0..count {
        // All wires have the same addresses, so each pod is in a network of its own.
        mesh += &format!(
            "  - {{ name: p{index}, namespace: default, network: n{index}, node: node, \
             workloadIps: [10.78.0.1, \"fd78::1\"] }}\n"
        );
    }
    (mesh, (0..count).map(|_| Wire::new()).collect())
}
