//! The node's health probes reach enrolled pods directly, from the probe source addresses; all
//! other traffic is captured.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use agent_status::HostProbesStatus;
use netns::NetNs;
use redirect::host as host_rules;
use underpass_tests::binaries::binary;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::folder;
use underpass_tests::listener;
use underpass_tests::node::TestNode;
use underpass_tests::sandbox::{PATIENCE, await_within, read_line, serve_echo, until};
use underpass_tests::wire::{POD4, POD6, Wire, join};

const MESH: &str = r#"
namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } }]
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node,
      workloadIps: [10.78.0.1, "fd78::1"] }
  - { name: other, namespace: default, serviceAccount: other, node: node,
      workloadIps: [10.79.0.2, "fd79::2"] }
"#;
const PROBE_SOURCES: [&str; 2] = ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"];
const REMOTE: [&str; 2] = ["10.79.0.2", "fd79::2"];
const APPLICATION: u16 = 8080;

/// A node that forwards between its pod and a remote namespace.
struct ForwardingNode {
    node: TestNode,
    wire: Wire,
    remote: NetNs,
}

impl ForwardingNode {
    fn new(name: &str) -> Self {
        let (wire, remote) = (Wire::new(), NetNs::create().unwrap());
        let netns = wire.peer.try_clone().unwrap();
        join(&netns, "far", &remote, "eth0");
        let set = |netns: &NetNs, name: &str, value: &str| {
            netns
                .run(|| std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap())
                .unwrap();
        };
        for (netns, link) in [(&netns, "far"), (&remote, "eth0")] {
            set(netns, &format!("ipv6/conf/{link}/accept_dad"), "0");
        }
        set(&netns, "ipv4/ip_forward", "1");
        set(&netns, "ipv6/conf/all/forwarding", "1");
        for args in [
            "link set far up",
            "addr add 10.79.0.1/24 dev far",
            "addr add fd79::1/64 dev far",
        ] {
            ip(&netns, args);
        }
        for args in [
            "link set lo up",
            "link set eth0 up",
            "addr add 10.79.0.2/24 dev eth0",
            "addr add fd79::2/64 dev eth0",
        ] {
            ip(&remote, args);
        }
        for (netns, via) in [
            (&wire.pod, ["10.78.0.2", "fd78::2"]),
            (&remote, ["10.79.0.1", "fd79::1"]),
        ] {
            via.into_iter()
                .for_each(|via| ip(netns, &format!("route add default via {via}")));
        }
        Self {
            node: TestNode::within(name, MESH, netns),
            wire,
            remote,
        }
    }

    fn call(&self, verb: &str, netns: &NetNs, name: &str, addresses: &[&str]) -> Call {
        let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={name}");
        let config = config(&self.node.agent_socket(), addresses);
        Call::new(verb, &path_of(netns), &config)
            .with("CNI_ARGS", Some(&args))
            .with("CNI_CONTAINERID", Some(name))
    }

    fn add_client(&self) {
        assert_success(&self.call(
            "ADD",
            &self.wire.pod,
            "client",
            &["10.78.0.1/24", "fd78::1/64"],
        ));
    }

    fn add_other(&self) {
        assert_success(&self.call(
            "ADD",
            &self.remote,
            "other",
            &["10.79.0.2/24", "fd79::2/64"],
        ));
    }

    fn del_other(&self) {
        assert_success(&self.call(
            "DEL",
            &self.remote,
            "other",
            &["10.79.0.2/24", "fd79::2/64"],
        ));
    }

    fn enrolled(name: &str) -> Self {
        let mut host = Self::new(name);
        host.node.start_agent();
        host.node.start_ready_proxy();
        host.add_client();
        host
    }

    fn installed(&self) -> Option<BTreeSet<IpAddr>> {
        addresses(&self.node.netns)
    }

    /// Waits until the rule has these addresses.
    #[track_caller]
    fn await_installed(&self, expected: &[&str]) {
        let expected = set_of(expected);
        let what = format!("the rule has the addresses {expected:?}");
        until(&what, || (self.installed() == expected).then_some(()));
    }
}

/// Sets a flag when it is dropped, also by a panic.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn assert_success(call: &Call) {
    let output = call.run();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn run(netns: &NetNs, program: &str, args: &[&str]) {
    let mut command = Command::new(program);
    netns::process::in_netns(&mut command, netns).unwrap();
    assert!(
        command.args(args).status().unwrap().success(),
        "{program} {args:?}"
    );
}

fn ip(netns: &NetNs, args: &str) {
    run(netns, "ip", &args.split(' ').collect::<Vec<_>>());
}

fn nft(netns: &NetNs, args: &str) {
    run(netns, "nft", &[args]);
}

/// The addresses in the sets of the table; `None` without the table.
fn addresses(netns: &NetNs) -> Option<BTreeSet<IpAddr>> {
    let table = netns
        .run(|| nft::dump_table(&nft::Socket::open().unwrap(), host_rules::TABLE_NAME).unwrap())
        .unwrap()?;
    let elements = table.sets.iter().flat_map(|s| &s.elements);
    Some(elements.filter_map(nft::Element::address).collect())
}

fn set_of(addresses: &[&str]) -> Option<BTreeSet<IpAddr>> {
    Some(addresses.iter().map(|a| a.parse().unwrap()).collect())
}

/// Connects to the application in the pod; returns the client address that it sees.
fn source_seen_from(netns: &NetNs, pod: IpAddr) -> io::Result<String> {
    let mut stream: TcpStream = listener::connect(netns, SocketAddr::new(pod, APPLICATION))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    read_line(&mut stream)
}

#[test]
fn node_probe_reaches_the_application_from_the_probe_source() {
    let mut host = ForwardingNode::new("host-probe");
    host.node.start_agent();
    host.node.start_ready_proxy();
    // A CNI plugin masquerades traffic from the node to pods, at the usual priority, from a chain
    // that is older than Underpass's.
    for family in ["ip", "ip6"] {
        let chain = "type nat hook postrouting priority srcnat; masquerade\n";
        nft(
            &host.node.netns,
            &format!("table {family} unrelated {{ chain post {{ {chain} }}\n}}"),
        );
    }
    serve_echo(&host.wire.pod, APPLICATION);
    for pod in [POD4, POD6] {
        assert!(
            !PROBE_SOURCES.contains(&source_seen_from(&host.node.netns, pod).unwrap().as_str()),
            "the pod is not enrolled"
        );
    }
    host.add_client();
    host.await_installed(&["10.78.0.1", "fd78::1"]);
    for (pod, source) in [POD4, POD6].into_iter().zip(PROBE_SOURCES) {
        assert_eq!(source_seen_from(&host.node.netns, pod).unwrap(), source);
    }
    // Without a proxy, only probes reach the pod.
    host.node.kill_all();
    for (pod, source) in [POD4, POD6].into_iter().zip(PROBE_SOURCES) {
        assert_eq!(
            source_seen_from(&host.node.netns, pod).unwrap(),
            source,
            "probes bypass the proxy"
        );
        assert!(
            listener::connect_briefly(&host.remote, SocketAddr::new(pod, APPLICATION)).is_err(),
            "forwarded traffic is captured"
        );
    }
}

#[test]
fn forwarded_traffic_keeps_its_source_and_is_captured() {
    let host = ForwardingNode::enrolled("host-forward");
    serve_echo(&host.wire.pod, APPLICATION);
    for (pod, source) in [POD4, POD6].into_iter().zip(REMOTE) {
        assert_eq!(source_seen_from(&host.remote, pod).unwrap(), source);
        until("the proxy logs the connection", || {
            let log = host.node.log("proxy");
            log.lines()
                .any(|l| l.contains("inbound") && l.contains(source))
                .then_some(())
        });
    }
    for pod in [POD4, POD6] {
        source_seen_from(&host.node.netns, pod).unwrap();
    }
    assert!(
        !PROBE_SOURCES
            .iter()
            .any(|s| host.node.log("proxy").contains(s)),
        "the proxy sees no probes"
    );
}

#[test]
fn probe_addresses_persist_while_the_agent_restarts() {
    let mut host = ForwardingNode::enrolled("host-restart");
    const ENROLLED: [&str; 2] = ["10.78.0.1", "fd78::1"];
    host.await_installed(&ENROLLED);
    let enrolled = set_of(&ENROLLED);
    let (over, netns) = (AtomicBool::new(false), host.node.netns.try_clone().unwrap());
    let checks = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut checks = 0;
            while !over.load(Ordering::Relaxed) {
                let found = addresses(&netns).unwrap_or_default();
                assert!(
                    found.is_superset(enrolled.as_ref().unwrap()),
                    "after {checks} checks: {found:?}"
                );
                checks += 1;
            }
            checks
        });
        let end = SetOnDrop(&over);
        for stale in ["10.9.9.1", "10.9.9.2", "10.9.9.3"] {
            host.node.kill_all();
            // A pod that has left while no agent was running.
            nft(
                &host.node.netns,
                &format!("add element inet underpass-host pods4 {{ {stale} }}"),
            );
            host.node.start_agent();
            host.await_installed(&ENROLLED); // stale addresses are removed
        }
        drop(end);
        watcher.join().unwrap()
    });
    assert!(checks > 100, "{checks}");
}

#[test]
fn probe_addresses_follow_pod_changes() {
    let host = ForwardingNode::enrolled("host-follow");
    host.add_other();
    host.await_installed(&["10.78.0.1", "fd78::1", "10.79.0.2", "fd79::2"]);
    let expected = HostProbesStatus {
        state: "in place".to_owned(),
        addresses: 4,
        reason: None,
    };
    let is_expected = || (host.node.status().host_probes == expected).then_some(());
    until("the status has the addresses", is_expected);
    assert_success(&host.call(
        "DEL",
        &host.wire.pod,
        "client",
        &["10.78.0.1/24", "fd78::1/64"],
    ));
    host.await_installed(&["10.79.0.2", "fd79::2"]); // the other pod's addresses stay
    host.del_other();
    host.await_installed(&[]);
}

#[test]
fn the_agent_answers_while_another_program_changes_the_nodes_nf_tables() {
    let host = ForwardingNode::enrolled("host-busy");
    // One transaction, as long as one of kube-proxy in a large cluster: the kernel makes all other
    // changes of the namespace's tables wait for it.
    let addresses: Vec<String> = (0..200_000)
        .map(|i| Ipv4Addr::from(0x0b00_0000_u32 + i).to_string())
        .collect();
    let set = format!(
        "set s {{ type ipv4_addr; elements = {{ {} }} }}",
        addresses.join(", ")
    );
    let file = folder::until_exit("host-busy-nft").join("table.nft");
    std::fs::write(
        &file,
        format!("table ip t\ndelete table ip t\ntable ip t {{ {set}; }}\n"),
    )
    .unwrap();
    await_within(
        120,
        "the agent answers before it could change the table",
        || {
            std::thread::scope(|scope| {
                let other =
                    scope.spawn(|| run(&host.node.netns, "nft", &["-f", file.to_str().unwrap()]));
                let mut has_answered = false;
                while !other.is_finished() && !has_answered {
                    host.add_other();
                    let status = host.node.status();
                    let is_waiting = host.installed() == set_of(&["10.78.0.1", "fd78::1"]);
                    has_answered = is_waiting && status.pods.len() == 2;
                    host.del_other();
                }
                has_answered.then_some(())
            })
        },
    );
    host.await_installed(&["10.78.0.1", "fd78::1"]);
}

#[test]
fn changed_host_probe_rule_is_repaired() {
    let host = ForwardingNode::enrolled("host-repair");
    let changes = [
        (
            "table_rewritten=false missing=1 unexpected=0",
            "delete element inet underpass-host pods4 { 10.78.0.1 }",
        ),
        (
            "table_rewritten=false missing=0 unexpected=1",
            "add element inet underpass-host pods6 { fd99::1 }",
        ),
        (
            "table_rewritten=true missing=0 unexpected=0",
            "flush chain inet underpass-host postrouting",
        ),
        (
            "table_rewritten=true missing=0 unexpected=0",
            "delete table inet underpass-host",
        ),
    ];
    for (expected, change) in changes {
        let before = host.node.log("agent").len();
        nft(&host.node.netns, change);
        let line = until("the repair is logged", || {
            let log = host.node.log("agent");
            log[before..]
                .lines()
                .find(|l| l.contains("event=\"host_probes_repaired\""))
                .map(str::to_owned)
        });
        assert!(
            line.contains(expected) && line.contains("nft (pid "),
            "{line}"
        );
        host.await_installed(&["10.78.0.1", "fd78::1"]);
    }
    // A pod that joins or leaves triggers the repair at once.
    nft(&host.node.netns, "delete table inet underpass-host");
    host.add_other();
    host.await_installed(&["10.78.0.1", "fd78::1", "10.79.0.2", "fd79::2"]);
    nft(&host.node.netns, "add table inet unrelated");
    nft(&host.node.netns, "list table inet unrelated");
}

#[test]
fn host_probe_rule_is_removed_when_disabled_or_uninstalled() {
    let mut host = ForwardingNode::enrolled("host-off");
    serve_echo(&host.wire.pod, APPLICATION);
    host.node.kill_all();
    assert!(
        host.installed().is_some(),
        "the rule stays when the agent stops"
    );
    host.node
        .start_agent_with(&["--host-probes=false".as_ref()]);
    host.node.start_ready_proxy();
    assert_eq!(host.installed(), None);
    assert_eq!(
        source_seen_from(&host.node.netns, POD4).unwrap(),
        "10.78.0.2",
        "the probe is captured"
    );
    host.node.kill_all();
    host.node.start_agent();
    host.await_installed(&["10.78.0.1", "fd78::1"]);
    host.node.kill_all();
    let mut command = Command::new(binary("underpass-agent"));
    // Runs outside the node's namespace, which is passed by path.
    command
        .arg("uninstall")
        .arg("--host-netns")
        .arg(path_of(&host.node.netns));
    std::fs::create_dir_all(host.node.file("net.d")).unwrap();
    command
        .arg("--conf-dir")
        .arg(host.node.file("net.d"))
        .arg("--bin-dir")
        .arg(host.node.file("bin"));
    command.arg("--state-dir").arg(host.node.file("state"));
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(host.installed(), None);
    assert!(
        host.wire
            .pod
            .run(redirect::read_back)
            .unwrap()
            .unwrap()
            .is_empty(),
        "the pod's rules are removed"
    );
}
