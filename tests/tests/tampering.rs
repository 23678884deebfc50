//! Changes within a pod that would let its traffic pass the capture: only what Underpass put there
//! counts, everything else is repaired or reported; and host programs are not needed for that.
#![allow(clippy::unwrap_used)] // a test that cannot continue panics

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use agent_status::{VerificationReason, VerificationState};
use netns::NetNs;
use redirect::{CaptureKind, Exceptions, Plan};
use socket2::{Domain, Protocol, Socket, Type};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::iptables::run;
use underpass_tests::listener::{accept, connect_marked, plain};
use underpass_tests::node::{MESH, TestNode};
use underpass_tests::sandbox::{PATIENCE, until};
use underpass_tests::sniffer::Counter;
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

/// An ip rule like those for connections that were open before the pod joined.
fn exception_to(peer: IpAddr) -> String {
    let family = if peer.is_ipv4() { "-4" } else { "-6" };
    format!(
        "{family} rule add pref 32762 iif lo ipproto tcp sport 40000 dport 8080 to {peer} \
         lookup main"
    )
}

/// Whether the pod has the rules of its plan, no exceptions, and nothing else.
fn is_as_planned(wire: &Wire) -> bool {
    let observed = wire.pod.run(redirect::read_back).unwrap().unwrap();
    let plan = Plan::for_pod([POD4, POD6]);
    redirect::diff_with(&plan, &Exceptions::new(), &observed).is_empty()
}

fn await_repair(wire: &Wire, what: &str) {
    until(&format!("{what} is repaired"), || {
        is_as_planned(wire).then_some(())
    });
}

fn await_state(node: &TestNode, state: VerificationState) {
    until(&format!("the pod is {state}"), || {
        let verification = node.pod("client").verification;
        verification.filter(|v| v.state == state).map(drop)
    });
}

#[test]
fn every_change_to_rules_routes_and_table_is_detected_and_repaired() {
    let (node, wire) = TestNode::with_pod("tampering");
    await_state(&node, VerificationState::Verified);
    let exceptions = [PEER4, PEER6].map(|peer| ("ip", exception_to(peer)));
    let changes = [
        (
            "ip",
            "rule add pref 32762 iif lo ipproto tcp sport 1-65534 lookup main",
        ),
        (
            "ip",
            "-6 rule add pref 32762 iif lo ipproto tcp dport 1-65534 lookup main",
        ),
        ("ip", "rule add pref 32762 to 10.78.0.0/24 lookup main"),
        ("ip", "rule add pref 32763 from 10.78.0.1 lookup main"),
        ("ip", "rule add pref 32763 fwmark 0/1 lookup main"),
        ("ip", "rule add pref 32763 not fwmark 1/0xfff lookup main"),
        ("ip", "rule add pref 32763 tos 0x10 lookup main"),
        (
            "ip",
            "-6 rule add pref 32763 uidrange 0-4294967294 lookup main",
        ),
        ("ip", "rule add pref 32764 iif lo ipproto tcp prohibit"),
        ("ip", "rule add pref 32763 iif lo goto 32766"),
        (
            "ip",
            "rule add pref 32763 iif lo lookup main suppress_prefixlength 0",
        ),
        ("ip", "route add 10.78.0.0/24 dev eth0 table 15001"),
        ("ip", "-6 route add fd78::/64 dev eth0 table 15001"),
        ("ip", "route add throw 10.0.0.0/8 table 15001"),
        ("ip", "route add local default dev lo metric 7 table 15001"),
        (
            "ip",
            "-6 route add local default dev lo metric 7 table 15001",
        ),
        ("nft", "add table inet underpass { flags dormant ; }"),
        ("nft", "add chain inet underpass guard { policy drop ; }"),
        ("nft", "add chain inet underpass another"),
        ("nft", "add set inet underpass another { type ipv4_addr ; }"),
        (
            "nft",
            "add chain inet underpass another { type filter hook input priority 0 ; }",
        ),
    ];
    let changes = changes.map(|(program, change)| (program, change.to_owned()));
    for (program, change) in exceptions.into_iter().chain(changes) {
        let before = node.log("agent").matches("redirection_repaired").count();
        run(&wire.pod, program, &change, "");
        await_repair(&wire, &change);
        until(&format!("the repair of {change:?} is logged"), || {
            let log = node.log("agent");
            (log.matches("redirection_repaired").count() > before).then_some(())
        });
    }
    await_state(&node, VerificationState::Verified);
}

#[test]
fn an_ip_rule_in_the_shape_of_an_exception_never_widens_the_guard() {
    let (node, wire) = TestNode::with_pod("widening");
    await_state(&node, VerificationState::Verified);
    for peer in [PEER4, PEER6] {
        let server = plain(&wire.peer, SocketAddr::new(peer, 8080));
        for _ in 0..5 {
            run(&wire.pod, "ip", &exception_to(peer), "");
            // Before, during and after the repair.
            for _ in 0..3 {
                let _ = connect_from(&wire, 40_000, SocketAddr::new(peer, 8080));
            }
            await_repair(&wire, "the rule");
            let connected = connect_from(&wire, 40_000, SocketAddr::new(peer, 8080));
            // The proxy connects in its own name; it is the only one to arrive.
            let (_, from) = accept(&server).unwrap();
            assert_ne!(from.port(), 40_000, "left the pod uncaptured");
            drop(connected.unwrap());
        }
        server.set_nonblocking(true).unwrap();
        while let Ok((_, from)) = server.accept() {
            assert_ne!(from.port(), 40_000, "left the pod uncaptured");
        }
    }
}

/// Connects from a local port, as often as needed.
fn connect_from(wire: &Wire, port: u16, to: SocketAddr) -> std::io::Result<TcpStream> {
    let connect = || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        netns::sockopt::reset_on_close(&socket)?;
        let any = match to.ip() {
            IpAddr::V4(_) => POD4,
            IpAddr::V6(_) => POD6,
        };
        socket.bind(&SocketAddr::new(any, port).into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(socket.into())
    };
    wire.pod.run(connect).unwrap()
}

#[test]
fn an_exception_added_while_the_agent_is_down_is_removed() {
    let (mut node, wire) = TestNode::with_pod("added-while-down");
    await_state(&node, VerificationState::Verified);
    node.kill_all();
    for peer in [PEER4, PEER6] {
        run(&wire.pod, "ip", &exception_to(peer), "");
    }
    node.start_agent();
    node.start_ready_proxy();
    await_repair(&wire, "the exception");
    await_state(&node, VerificationState::Verified);
}

/// Programs that the agent's image does not have, and programs that fail.
const WITHOUT_IPTABLES: [&str; 2] = [
    "mount -t tmpfs none /usr/sbin",
    "mount --bind /bin/false /usr/sbin/xtables-legacy-multi && \
     mount --bind /bin/false /usr/sbin/xtables-nft-multi",
];

#[test]
fn pods_with_iptables_tables_join_are_repaired_and_leave_without_iptables() {
    for (index, without) in WITHOUT_IPTABLES.into_iter().enumerate() {
        let outside = MESH.replace("istio.io/dataplane-mode: ambient", "");
        let mut node = TestNode::new(&format!("no-iptables-{index}"), &outside);
        node.start_agent_after(without);
        node.start_ready_proxy();
        let wire = Wire::new();
        let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
        let add = Call::new("ADD", &path_of(&wire.pod), &config).run();
        assert!(add.status.success(), "{add:?}");
        // As images for Docker and VPNs do.
        for program in ["iptables-legacy", "ip6tables-legacy"] {
            run(&wire.pod, program, "-t nat -S", "");
        }
        for family in ["ip", "ip6"] {
            run(&wire.pod, "nft", &format!("add table {family} nat"), "");
            let chain = format!("add chain {family} nat UNDERPASS_X");
            run(&wire.pod, "nft", &chain, "");
        }
        let write = |mesh: &str| {
            std::fs::write(node.file("mesh.new"), mesh).unwrap();
            std::fs::rename(node.file("mesh.new"), node.file("mesh.yaml")).unwrap();
        };
        write(MESH);
        await_state(&node, VerificationState::Verified);
        run(&wire.pod, "nft", "delete table inet underpass", "");
        run(&wire.pod, "ip", "rule del pref 32764", "");
        await_repair(&wire, "the table");
        let server = plain(&wire.peer, SocketAddr::new(PEER4, 8080));
        let client = connect_from(&wire, 40_000, SocketAddr::new(PEER4, 8080)).unwrap();
        assert_ne!(accept(&server).unwrap().1.port(), 40_000, "not captured");
        netns::sockopt::reset_on_close(&client).unwrap();
        drop(client);
        await_state(&node, VerificationState::Verified);
        write(&outside);
        until("the pod has left", || {
            let observed = wire.pod.run(redirect::read_back).unwrap().unwrap();
            observed.is_empty().then_some(())
        });
    }
}

fn await_reason(node: &TestNode, reason: VerificationReason, part: &str) {
    until(&format!("the pod is unverified: {part}"), || {
        let found = node.pod("client").verification?;
        let names = found.reason.is_some_and(|why| why.contains(part));
        (found.reason_code == Some(reason) && names).then_some(())
    });
}

/// Each is added, named, and removed again.
#[test]
fn rules_of_other_programs_that_change_where_packets_go_are_named() {
    let (node, wire) = TestNode::with_pod("foreign-rules");
    let chain = |table: &str, chain: &str, rule: &str| {
        let (name, _) = chain.split_once(' ').unwrap();
        vec![
            format!("nft add table {table}"),
            format!(
                "nft add chain {table} {name} {{ type {} ; }}",
                &chain[name.len() + 1..]
            ),
            format!("nft add rule {table} {name} {rule}"),
        ]
    };
    let table = |table: &str| vec![format!("nft delete table {table}")];
    let ip = |change: &str| {
        let rule = |verb: &str| vec![format!("ip {}", change.replacen("add", verb, 1))];
        (rule("add"), rule("del"))
    };
    // Nothing can be ahead of priority 0.
    let (sbr, undo_sbr) = ip("rule add from 10.78.0.1 pref 0 lookup 101");
    let (vpn, undo_vpn) = ip("-6 rule add not fwmark 0xca6c pref 3 lookup 51820");
    let marks = "out filter hook output priority -10";
    let cases = [
        (sbr, undo_sbr, "takes precedence"),
        (vpn, undo_vpn, "IPv6 rule 3"),
        (
            chain("inet other", marks, "tcp dport 8080 meta mark set 0x539"),
            table("inet other"),
            "chain out of nf_tables table inet other",
        ),
        (
            chain("ip other", marks, "meta mark set ct mark"),
            table("ip other"),
            "chain out of nf_tables table ip other",
        ),
        (
            chain(
                "ip6 other",
                "out nat hook output priority -100",
                "tcp dport 8080 redirect to :9",
            ),
            table("ip6 other"),
            "chain out of nf_tables table ip6 other",
        ),
        (
            chain(
                "inet other",
                "in nat hook prerouting priority -100",
                "tcp dport 8443 dnat ip to 172.17.0.2:443",
            ),
            table("inet other"),
            "chain in of nf_tables table inet other may change where captured packets go: it \
             redirects port 8443",
        ),
        (
            vec![
                "iptables-legacy -t nat -N DOCKER".to_owned(),
                "iptables-legacy -t nat -A DOCKER -p tcp --dport 8080 -j DNAT --to 172.17.0.2:80"
                    .to_owned(),
                "iptables-legacy -t nat -A DOCKER -p udp --dport 53 -j DNAT --to 172.17.0.2:53"
                    .to_owned(),
                "iptables-legacy -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER"
                    .to_owned(),
            ],
            vec!["iptables-legacy -t nat -F PREROUTING".to_owned()],
            "chain PREROUTING of iptables-legacy table ip nat may change where captured packets \
             go: it redirects ports 53, 8080",
        ),
        (
            chain(
                "netdev other",
                "in filter hook ingress device eth0 priority 0",
                "meta mark set 0x539",
            ),
            table("netdev other"),
            "chain in of nf_tables table netdev other",
        ),
        (
            vec!["iptables-nft -t mangle -A OUTPUT -j MARK --set-mark 0x539".to_owned()],
            vec!["iptables-nft -t mangle -F OUTPUT".to_owned()],
            "chain OUTPUT of nf_tables table ip mangle",
        ),
        (
            vec!["iptables-legacy -t mangle -A OUTPUT -j MARK --set-mark 0x539".to_owned()],
            vec!["iptables-legacy -t mangle -F OUTPUT".to_owned()],
            "chain OUTPUT of iptables-legacy table ip mangle",
        ),
        (
            vec![
                "ip6tables-legacy -t nat -N ELSEWHERE".to_owned(),
                "ip6tables-legacy -t nat -A ELSEWHERE -p tcp -j REDIRECT --to-ports 9".to_owned(),
                "ip6tables-legacy -t nat -A OUTPUT -m comment --comment x -j ELSEWHERE".to_owned(),
            ],
            vec!["ip6tables-legacy -t nat -F OUTPUT".to_owned()],
            "chain OUTPUT of iptables-legacy table ip6 nat",
        ),
    ];
    for (make, undo, part) in cases {
        await_state(&node, VerificationState::Verified);
        let each = |lines: &[String]| {
            for line in lines {
                let (program, args) = line.split_once(' ').unwrap();
                run(&wire.pod, program, args, "");
            }
        };
        each(&make);
        await_reason(&node, VerificationReason::ForeignRules, part);
        each(&undo);
    }
    await_state(&node, VerificationState::Verified);
}

/// What Docker, network policies and VPNs add without touching captured connections.
#[test]
fn harmless_rules_of_other_programs_leave_a_pod_verified() {
    let (node, wire) = TestNode::with_pod("harmless-rules");
    await_state(&node, VerificationState::Verified);
    for line in [
        "iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE",
        "iptables-nft -t filter -A INPUT -p udp --dport 9 -j DROP",
        "iptables-nft -t mangle -A PREROUTING -j MARK --or-mark 0x4000",
        "iptables-legacy -t mangle -A PREROUTING -j MARK --or-mark 0x4000",
        "iptables-legacy -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE",
        "ip6tables-legacy -t filter -A INPUT -p udp --dport 9 -j DROP",
        "ip rule add pref 100 iif eth1 lookup 101",
        "ip rule add pref 101 fwmark 0x4000/0x4000 lookup 101",
        "ip rule add pref 102 ipproto udp lookup main",
        "ip rule add pref 103 not fwmark 0xca6c lookup 51820",
        "ip -6 rule add pref 20 prohibit",
    ] {
        let (program, args) = line.split_once(' ').unwrap();
        run(&wire.pod, program, args, "");
    }
    let found = node.verify("client").verification.unwrap();
    assert_eq!(found.state, VerificationState::Verified, "{found:?}");
}

/// Needs CAP_NET_RAW or CAP_NET_ADMIN in the pod.
#[test]
fn a_mark_that_shares_the_bits_of_the_proxys_does_not_pass_the_guard() {
    for capture in [CaptureKind::Routed, CaptureKind::Nat] {
        let wire = Wire::new();
        let plan = Plan {
            capture,
            ..Plan::for_pod([POD4, POD6])
        };
        wire.pod.run(|| redirect::apply(&plan)).unwrap().unwrap();
        for peer in [PEER4, PEER6] {
            let to = SocketAddr::new(peer, 8080);
            let _server = plain(&wire.peer, to);
            let connect = |mark: u32| {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                socket.set_mark(mark)?;
                socket.connect_timeout(&to.into(), PATIENCE)
            };
            let refused = wire.pod.run(|| connect(0x1_0539)).unwrap().unwrap_err();
            let kind = std::io::ErrorKind::ConnectionRefused;
            assert_eq!(refused.kind(), kind, "{peer} under {capture}");
            wire.pod.run(|| connect(0x539)).unwrap().unwrap();
        }
    }
}

/// A TCP segment to port 8080, without a valid checksum.
fn segment(from_port: u16, flags: u8, text: &str) -> Vec<u8> {
    let ports = [from_port, 8080].map(u16::to_be_bytes).concat();
    let rest = [
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        5 << 4,
        flags,
        0xff,
        0xff,
        0,
        0,
        0,
        0,
    ];
    [&ports, &rest[..], text.as_bytes()].concat()
}

/// The segment in an IP packet.
fn packet(from: IpAddr, to: IpAddr, segment: &[u8]) -> Vec<u8> {
    const TCP: u8 = 6;
    let length = u16::try_from(segment.len()).unwrap();
    match from {
        IpAddr::V4(_) => {
            let [a, b] = (20 + length).to_be_bytes();
            let header = [0x45, 0, a, b, 0, 0, 0, 0, 64, TCP, 0, 0];
            [&header[..], &nft::octets(from), &nft::octets(to), segment].concat()
        }
        IpAddr::V6(_) => {
            let [a, b] = length.to_be_bytes();
            let header = [0x60, 0, 0, 0, a, b, TCP, 64];
            [&header[..], &nft::octets(from), &nft::octets(to), segment].concat()
        }
    }
}

/// Needs CAP_NET_RAW in the pod. What cannot be prevented is documented.
#[test]
fn raw_sockets_send_only_what_the_documentation_names() {
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const DATA: u8 = 0x18;
    const IPPROTO_RAW: i32 = 255;
    let mut from_port = 40_000;
    for capture in [CaptureKind::Routed, CaptureKind::Nat] {
        let wire = Wire::new();
        let plan = Plan {
            capture,
            ..Plan::for_pod([POD4, POD6])
        };
        wire.pod.run(|| redirect::apply(&plan)).unwrap().unwrap();
        for (own, peer) in [(POD4, PEER4), (POD6, PEER6)] {
            let is_routed = capture == CaptureKind::Routed;
            let udp = |netns: &NetNs, at| netns.run(|| UdpSocket::bind(at).unwrap()).unwrap();
            let (end, last) = (udp(&wire.pod, (own, 0)), udp(&wire.peer, (peer, 9)));
            for (flags, leaves) in [(SYN, false), (DATA, !is_routed), (RST, true)] {
                for protocol in [Protocol::from(IPPROTO_RAW), Protocol::TCP] {
                    let has_header = protocol != Protocol::TCP;
                    // conntrack knows nothing of any of them.
                    from_port += 1;
                    let counter = Counter::start(&wire.peer, "eth0", "by a raw socket");
                    let segment = segment(from_port, flags, "by a raw socket");
                    let sent = wire.pod.run(|| {
                        let domain = Domain::for_address(SocketAddr::new(peer, 0));
                        let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
                        let bytes = match has_header {
                            true => packet(own, peer, &segment),
                            false => segment.clone(),
                        };
                        // Fails if the packet is blocked.
                        let _ = socket.send_to(&bytes, &SocketAddr::new(peer, 0).into());
                    });
                    sent.unwrap();
                    // What is sent afterwards arrives afterwards.
                    end.send_to(b"end", (peer, 9)).unwrap();
                    last.recv(&mut [0; 3]).unwrap();
                    let readable = counter.stop().readable;
                    let what = format!("{capture}, {peer}, flags {flags:#x}, {protocol:?}");
                    // Without a header of its own, the packet is routed as TCP, to the proxy.
                    let expected = leaves && (has_header || !is_routed);
                    assert_eq!(readable, usize::from(expected), "{what}");
                }
            }
        }
    }
}

/// As Kata Containers passes the packets of a pod's interface to its virtual machine.
#[test]
fn a_pod_whose_packets_go_to_a_virtual_machine_is_never_verified() {
    let (node, wire) = TestNode::with_pod("virtual-machine");
    await_state(&node, VerificationState::Verified);
    run(&wire.pod, "ip", "tuntap add tap0_kata mode tap", "");
    run(&wire.pod, "ip", "link set tap0_kata up", "");
    let redirect = "filter add dev eth0 parent ffff: protocol all u32 match u32 0 0 \
                    action mirred egress redirect dev tap0_kata";
    run(&wire.pod, "tc", "qdisc add dev eth0 ingress", "");
    run(&wire.pod, "tc", redirect, "");
    let reason = VerificationReason::BelowTheStack;
    await_reason(
        &node,
        reason,
        "traffic control moves incoming packets of eth0",
    );
    run(&wire.pod, "tc", "qdisc del dev eth0 ingress", "");
    await_state(&node, VerificationState::Verified);
    run(&wire.pod, "tc", "qdisc add dev eth0 clsact", "");
    let outgoing = "filter add dev eth0 egress protocol all u32 match u32 0 0 \
                    action mirred egress redirect dev tap0_kata";
    run(&wire.pod, "tc", outgoing, "");
    await_reason(
        &node,
        reason,
        "traffic control moves outgoing packets of eth0",
    );
    run(&wire.pod, "tc", "qdisc del dev eth0 clsact", "");
    await_state(&node, VerificationState::Verified);
    run(
        &wire.pod,
        "ip",
        "link add link eth0 name macvtap0 type macvtap",
        "",
    );
    let found = node.verify("client").verification.unwrap();
    assert_eq!(found.reason_code, Some(reason), "{found:?}");
    run(&wire.pod, "ip", "link del macvtap0", "");
    let found = node.verify("client").verification.unwrap();
    assert_eq!(found.state, VerificationState::Verified, "{found:?}");
}

/// A node whose pod is on the other end of a veth pair, with the node's addresses at that end.
fn pod_behind_the_node(name: &str) -> (TestNode, Wire) {
    let wire = Wire::new();
    let netns = NetNs::open(path_of(&wire.peer)).unwrap();
    let mut node = TestNode::within(name, MESH, netns);
    run(&node.netns, "ip", "link set lo up", "");
    node.start_agent();
    node.start_ready_proxy();
    let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    let add = Call::new("ADD", &path_of(&wire.pod), &config).run();
    assert!(add.status.success(), "{add:?}");
    (node, wire)
}

#[test]
fn a_pod_is_probed_from_the_node_through_its_own_interface() {
    let (node, wire) = pod_behind_the_node("from-node");
    await_state(&node, VerificationState::Verified);
    let found = node.verify("client").verification.unwrap();
    assert_eq!(found.from_node, Some(true), "{found:?}");
    // What is on the way belongs to the node, which the pod's rules do not show.
    for hook in ["output", "input"] {
        let table = format!("add table inet on-the-way-{hook}");
        run(&node.netns, "nft", &table, "");
        let chain = format!(
            "add chain inet on-the-way-{hook} c {{ type filter hook {hook} priority 0 ; }}"
        );
        run(&node.netns, "nft", &chain, "");
        let field = if hook == "output" { "dport" } else { "sport" };
        let rule = format!("add rule inet on-the-way-{hook} c tcp {field} 15099 drop");
        run(&node.netns, "nft", &rule, "");
        let found = node.verify("client").verification.unwrap();
        let reason = found.reason.clone().unwrap_or_default();
        assert_eq!(
            found.reason_code,
            Some(VerificationReason::ProbeFailed),
            "{found:?}"
        );
        assert!(
            reason.contains("from the node") && reason.contains("10.78.0.1:15099"),
            "{reason}"
        );
        run(
            &node.netns,
            "nft",
            &format!("delete table inet on-the-way-{hook}"),
            "",
        );
    }
    let found = node.verify("client").verification.unwrap();
    assert_eq!(found.state, VerificationState::Verified, "{found:?}");
    // Over another interface, the pod is not probed.
    run(
        &node.netns,
        "ip",
        "link add other type veth peer name far",
        "",
    );
    run(&node.netns, "ip", "link set other up", "");
    run(&node.netns, "ip", "route add 10.78.0.1/32 dev other", "");
    let found = node.verify("client").verification.unwrap();
    assert_eq!(found.from_node, Some(false), "{found:?}");
    drop(wire);
}

/// Needs CAP_NET_RAW or CAP_NET_ADMIN in the pod.
#[test]
fn only_the_proxys_user_leaves_by_the_proxys_mark() {
    for capture in ["routed", "nat", "nat-iptables-nft"] {
        let (mut node, wire) = (TestNode::new(&format!("user-{capture}"), MESH), Wire::new());
        let options = ["--capture", capture, "--proxy-user", "0:1337"].map(AsRef::as_ref);
        node.start_agent_with(&options);
        node.start_proxy_as_group(1337);
        let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
        let add = Call::new("ADD", &path_of(&wire.pod), &config).run();
        assert!(add.status.success(), "{add:?}");
        await_state(&node, VerificationState::Verified);
        for (peer, own) in [(PEER4, POD4), (PEER6, POD6)] {
            let to = SocketAddr::new(peer, 8080);
            let server = plain(&wire.peer, to);
            // The test's own processes have another group.
            let refused = connect_marked(&wire.pod, Some(own), to).unwrap_err();
            let kind = std::io::ErrorKind::ConnectionRefused;
            assert_eq!(refused.kind(), kind, "{peer} under {capture}");
            // The proxy sends what is left after both ends of its connection are closed.
            let sent = vec![b'x'; 4 << 20];
            let mut app = wire.pod.run(|| TcpStream::connect(to)).unwrap().unwrap();
            let (mut received, _) = accept(&server).unwrap();
            let writer = std::thread::spawn(move || {
                app.write_all(&sent).unwrap();
                drop(app);
                sent.len()
            });
            let mut all = Vec::new();
            received.set_read_timeout(Some(PATIENCE)).unwrap();
            received.read_to_end(&mut all).unwrap();
            assert_eq!(all.len(), writer.join().unwrap(), "{peer} under {capture}");
        }
    }
}
