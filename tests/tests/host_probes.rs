//! Health probes of the node reach enrolled pods directly, with a source of their own, and nothing else does.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use netns::NetNs;
use redirect::host;
use serde_json::Value;
use underpass_tests::binaries::binary;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::listener;
use underpass_tests::node::Node;
use underpass_tests::sandbox::{read_line, serve_echo, until};
use underpass_tests::wire::{POD4, POD6, Wire, join};

const MESH: &str = r#"
namespaces: [{ name: default, labels: { istio.io/dataplane-mode: ambient } }]
workloads:
  - { name: client, namespace: default, serviceAccount: client, node: node, workloadIps: [10.78.0.1, "fd78::1"] }
  - { name: other, namespace: default, serviceAccount: other, node: node, workloadIps: [10.79.0.2, "fd79::2"] }
"#;
const PROBE_SOURCES: [&str; 2] = ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"];
const ELSEWHERE: [&str; 2] = ["10.79.0.2", "fd79::2"];
const APPLICATION: u16 = 8080;

/// A node that forwards between its pod and somewhere else.
struct Scene {
    node: Node,
    wire: Wire,
    elsewhere: NetNs,
}

impl Scene {
    fn new(name: &str) -> Self {
        let (wire, elsewhere) = (Wire::new(), NetNs::create().unwrap());
        let netns = wire.peer.try_clone().unwrap();
        join(&netns, "far", &elsewhere, "eth0");
        let set = |netns: &NetNs, name: &str, value: &str| {
            netns.run(|| std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap()).unwrap();
        };
        for (netns, link) in [(&netns, "far"), (&elsewhere, "eth0")] {
            set(netns, &format!("ipv6/conf/{link}/accept_dad"), "0");
        }
        set(&netns, "ipv4/ip_forward", "1");
        set(&netns, "ipv6/conf/all/forwarding", "1");
        for args in ["link set far up", "addr add 10.79.0.1/24 dev far", "addr add fd79::1/64 dev far"] {
            ip(&netns, args);
        }
        for args in
            ["link set lo up", "link set eth0 up", "addr add 10.79.0.2/24 dev eth0", "addr add fd79::2/64 dev eth0"]
        {
            ip(&elsewhere, args);
        }
        for (netns, via) in [(&wire.pod, ["10.78.0.2", "fd78::2"]), (&elsewhere, ["10.79.0.1", "fd79::1"])] {
            via.into_iter().for_each(|via| ip(netns, &format!("route add default via {via}")));
        }
        Self { node: Node::within(name, MESH, netns), wire, elsewhere }
    }

    fn call(&self, verb: &str, netns: &NetNs, name: &str, addresses: &[&str]) -> Call {
        let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={name}");
        let config = config(&self.node.agent_socket(), addresses);
        Call::new(verb, &path_of(netns), &config).with("CNI_ARGS", Some(&args)).with("CNI_CONTAINERID", Some(name))
    }

    fn add_client(&self) {
        succeeds(&self.call("ADD", &self.wire.pod, "client", &["10.78.0.1/24", "fd78::1/64"]));
    }

    fn add_other(&self) {
        succeeds(&self.call("ADD", &self.elsewhere, "other", &["10.79.0.2/24", "fd79::2/64"]));
    }

    fn enrolled(name: &str) -> Self {
        let mut scene = Self::new(name);
        scene.node.start_agent();
        scene.node.start_ready_proxy();
        scene.add_client();
        scene
    }

    fn in_place(&self) -> Option<BTreeSet<IpAddr>> {
        addresses(&self.node.netns)
    }
}

fn succeeds(call: &Call) {
    let output = call.run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn run(netns: &NetNs, program: &str, args: &[&str]) {
    let mut command = Command::new(program);
    netns::process::in_netns(&mut command, netns).unwrap();
    assert!(command.args(args).status().unwrap().success(), "{program} {args:?}");
}

fn ip(netns: &NetNs, args: &str) {
    run(netns, "ip", &args.split(' ').collect::<Vec<_>>());
}

fn nft(netns: &NetNs, args: &str) {
    run(netns, "nft", &[args]);
}

/// The addresses that the rule is for; none when there is no table.
fn addresses(netns: &NetNs) -> Option<BTreeSet<IpAddr>> {
    let table = netns.run(|| nft::dump_table(&nft::Socket::open().unwrap(), host::TABLE_NAME).unwrap()).unwrap()?;
    Some(table.sets.into_iter().flat_map(|s| s.elements).collect())
}

fn of(addresses: &[&str]) -> Option<BTreeSet<IpAddr>> {
    Some(addresses.iter().map(|a| a.parse().unwrap()).collect())
}

/// Connects to the application in the pod; whom it sees.
fn seen_from(netns: &NetNs, pod: IpAddr) -> io::Result<String> {
    let mut stream: TcpStream = listener::connect(netns, SocketAddr::new(pod, APPLICATION))?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(3)))?;
    read_line(&mut stream)
}

#[test]
fn a_probe_of_the_node_reaches_the_application_with_a_source_of_its_own() {
    let mut scene = Scene::new("host-probe");
    scene.node.start_agent();
    scene.node.start_ready_proxy();
    // A CNI plugin masquerades what the node sends to pods, at the usual priority, and so before what was there.
    for family in ["ip", "ip6"] {
        let chain = "type nat hook postrouting priority srcnat; masquerade\n";
        nft(&scene.node.netns, &format!("table {family} somebody {{ chain post {{ {chain} }}\n}}"));
    }
    serve_echo(&scene.wire.pod, APPLICATION);
    for pod in [POD4, POD6] {
        assert!(!PROBE_SOURCES.contains(&seen_from(&scene.node.netns, pod).unwrap().as_str()), "not enrolled");
    }
    scene.add_client();
    for (pod, source) in [POD4, POD6].into_iter().zip(PROBE_SOURCES) {
        assert_eq!(seen_from(&scene.node.netns, pod).unwrap(), source);
    }
    // Without a proxy nothing else gets in.
    scene.node.kill_all();
    for (pod, source) in [POD4, POD6].into_iter().zip(PROBE_SOURCES) {
        assert_eq!(seen_from(&scene.node.netns, pod).unwrap(), source, "directly");
        assert!(seen_from(&scene.elsewhere, pod).is_err(), "what the node forwards is captured");
    }
}

#[test]
fn what_the_node_forwards_keeps_its_source_and_is_captured() {
    let scene = Scene::enrolled("host-forward");
    serve_echo(&scene.wire.pod, APPLICATION);
    for (pod, source) in [POD4, POD6].into_iter().zip(ELSEWHERE) {
        assert_eq!(seen_from(&scene.elsewhere, pod).unwrap(), source);
        until("the proxy tells of it", || {
            let log = scene.node.log("proxy");
            log.lines().any(|l| l.contains("inbound") && l.contains(source)).then_some(())
        });
    }
    for pod in [POD4, POD6] {
        seen_from(&scene.node.netns, pod).unwrap();
    }
    assert!(!PROBE_SOURCES.iter().any(|s| scene.node.log("proxy").contains(s)), "the proxy never sees a probe");
}

#[test]
fn addresses_are_never_absent_while_the_agent_restarts() {
    let mut scene = Scene::enrolled("host-restart");
    let enrolled = of(&["10.78.0.1", "fd78::1"]);
    assert_eq!(scene.in_place(), enrolled);
    let (over, netns) = (AtomicBool::new(false), scene.node.netns.try_clone().unwrap());
    let looks = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = 0;
            while !over.load(Ordering::Relaxed) {
                let found = addresses(&netns).unwrap_or_default();
                assert!(found.is_superset(enrolled.as_ref().unwrap()), "after {looks} looks: {found:?}");
                looks += 1;
            }
            looks
        });
        for stale in ["10.9.9.1", "10.9.9.2", "10.9.9.3"] {
            scene.node.kill_all();
            // A pod that has left while no agent was there.
            nft(&scene.node.netns, &format!("add element inet underpass-host pods4 {{ {stale} }}"));
            scene.node.start_agent();
            assert_eq!(scene.in_place(), enrolled, "what is stale is gone");
        }
        over.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    assert!(looks > 100, "{looks}");
}

#[test]
fn addresses_follow_the_pods_one_by_one() {
    let scene = Scene::enrolled("host-follow");
    scene.add_other();
    assert_eq!(scene.in_place(), of(&["10.78.0.1", "fd78::1", "10.79.0.2", "fd79::2"]));
    let status: Value = serde_json::from_str(&scene.node.get("127.0.0.1:15014", "/status").unwrap().1).unwrap();
    assert_eq!(status["hostProbes"], serde_json::json!({ "state": "in place", "addresses": 4 }));
    succeeds(&scene.call("DEL", &scene.wire.pod, "client", &["10.78.0.1/24", "fd78::1/64"]));
    assert_eq!(scene.in_place(), of(&["10.79.0.2", "fd79::2"]), "the other pod's stay");
    succeeds(&scene.call("DEL", &scene.elsewhere, "other", &["10.79.0.2/24", "fd79::2/64"]));
    assert_eq!(scene.in_place(), of(&[]));
}

#[test]
fn what_somebody_changes_of_the_nodes_rule_is_put_right() {
    let scene = Scene::enrolled("host-repair");
    let enrolled = of(&["10.78.0.1", "fd78::1"]);
    let changes = [
        ("1 addresses were missing", "delete element inet underpass-host pods4 { 10.78.0.1 }"),
        ("1 should not have been there", "add element inet underpass-host pods6 { fd99::1 }"),
        ("missing or altered", "flush chain inet underpass-host postrouting"),
        ("missing or altered", "delete table inet underpass-host"),
    ];
    for (expected, change) in changes {
        let before = scene.node.log("agent").len();
        nft(&scene.node.netns, change);
        let line = until("the repair is told", || {
            let log = scene.node.log("agent");
            log[before..].lines().find(|l| l.contains("health probes")).map(str::to_owned)
        });
        assert!(line.contains(expected) && line.contains("nft (pid "), "{line}");
        assert_eq!(scene.in_place(), enrolled);
    }
    // Where a pod joins or leaves before that, it is put right then.
    nft(&scene.node.netns, "delete table inet underpass-host");
    scene.add_other();
    assert_eq!(scene.in_place(), of(&["10.78.0.1", "fd78::1", "10.79.0.2", "fd79::2"]));
    nft(&scene.node.netns, "add table inet somebody");
    nft(&scene.node.netns, "list table inet somebody");
}

#[test]
fn the_nodes_rule_goes_when_it_is_not_wanted_and_when_underpass_is_uninstalled() {
    let mut scene = Scene::enrolled("host-off");
    serve_echo(&scene.wire.pod, APPLICATION);
    scene.node.kill_all();
    assert!(scene.in_place().is_some(), "an agent that stops leaves it");
    scene.node.start_agent_with(&["--host-probes=false".as_ref()]);
    scene.node.start_ready_proxy();
    assert_eq!(scene.in_place(), None);
    assert_eq!(seen_from(&scene.node.netns, POD4).unwrap(), "10.78.0.2", "as anybody else");
    scene.node.kill_all();
    scene.node.start_agent();
    assert_eq!(scene.in_place(), of(&["10.78.0.1", "fd78::1"]));
    scene.node.kill_all();
    let mut command = Command::new(binary("underpass-agent"));
    // Not in the node's namespace: it is named.
    command.arg("uninstall").arg("--host-netns").arg(path_of(&scene.node.netns));
    std::fs::create_dir_all(scene.node.file("net.d")).unwrap();
    command.arg("--conf-dir").arg(scene.node.file("net.d")).arg("--bin-dir").arg(scene.node.file("bin"));
    command.arg("--state-dir").arg(scene.node.file("state"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 pods, and the node"));
    assert_eq!(scene.in_place(), None);
}
