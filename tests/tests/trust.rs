//! What nobody may do: have the node's namespace programmed, talk to the agent without being root, hold it up, fill it
//! with descriptors, reach another pod's namespace through the capture, or get a word of theirs on a command line.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use handoff::{FromAgent, FromPlugin};
use netns::seqpacket::SeqPacket;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use redirect::Plan;
use serde_json::{Value, json};
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::node::{MESH, Node, no_more_open, open_files, settled};
use underpass_tests::players::{FakeProxy, PlayedPlugin, hello};
use underpass_tests::sandbox::{Sandbox, connect, until};
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

const ADDRESSES: [&str; 2] = ["10.78.0.1/24", "fd78::1/64"];
/// A user that is not root.
const NOBODY: u32 = 65534;

fn call(verb: &str, node: &Node, wire: &Wire) -> Call {
    Call::new(verb, &path_of(&wire.pod), &config(&node.agent_socket(), &ADDRESSES))
}

#[track_caller]
fn fine(output: &std::process::Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn has_no_rules(netns: &netns::NetNs) -> bool {
    netns.run(redirect::read_back).unwrap().unwrap().is_empty()
}

/// Sends a message with as many descriptors as one likes.
fn send(socket: &SeqPacket, bytes: &[u8], fds: &[i32]) {
    let control = [ControlMessage::ScmRights(fds)];
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::MSG_NOSIGNAL, None).unwrap();
}

/// An ADD as [`hello`], of another pod.
fn hello_as(name: &str, addresses: Vec<IpAddr>) -> FromPlugin {
    let mut message = hello(name);
    if let FromPlugin::Add { pod, addresses: a, .. } = &mut message {
        (pod.name, pod.uid, *a) = (name.to_owned(), Some(format!("uid-of-{name}")), addresses);
    }
    message
}

#[test]
fn a_descriptor_that_is_not_one_pods_own_namespace_is_refused() {
    let second = "  - { name: second, namespace: default, node: node, workloadIps: [10.78.0.2, \"fd78::2\"] }\n";
    let mesh = MESH.split("  - { name: peer").next().unwrap().to_owned() + second;
    let (mut node, wire) = (Node::new("descriptors", &mesh), Wire::new());
    let agent = node.start_agent();
    let proxy = node.start_ready_proxy();
    fine(&call("ADD", &node, &wire).run());
    let rules = wire.pod.run(redirect::read_back).unwrap().unwrap();
    let before = (settled(agent), settled(proxy));

    let open = |path: &str| File::open(path).unwrap();
    let (socket, _other) = SeqPacket::pair().unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let not_namespaces = ["/dev/null", "/etc/hostname", "/proc/self", "/", "/proc/self/ns/user", "/proc/self/ns/pid"];
    let not_namespaces = not_namespaces.map(open);
    let fds = not_namespaces.iter().map(AsRawFd::as_raw_fd).chain([socket.as_fd().as_raw_fd(), pipe.as_raw_fd()]);
    let pod = wire.pod.as_fd().as_raw_fd();
    let mut cases: Vec<(FromPlugin, Vec<i32>)> = fds.map(|fd| (hello("c"), vec![fd])).collect();
    cases.push((hello("c"), vec![]));
    cases.push((hello("c"), vec![pod, pod]));
    cases.push((hello("c"), vec![not_namespaces[0].as_raw_fd(), pod]));
    cases.push((hello("c"), vec![node.netns.as_fd().as_raw_fd()]));
    let first = File::open("/proc/1/ns/net"); // which a container may forbid
    cases.extend(first.iter().map(|f| (hello("c"), vec![f.as_raw_fd()])));
    cases.push((hello_as("second", vec![PEER4, PEER6]), vec![pod])); // another pod's namespace
    cases.push((hello_as("client", vec![]), vec![pod]));
    for (index, (message, fds)) in cases.iter().enumerate() {
        let socket = SeqPacket::connect(node.agent_socket()).unwrap();
        socket.set_timeout(Duration::from_secs(5)).unwrap();
        let bytes = serde_json::to_vec(message).unwrap();
        if fds.is_empty() {
            socket.send(&bytes, None).unwrap()
        } else {
            send(&socket, &bytes, fds)
        }
        let answer: Value = serde_json::from_slice(&socket.recv().unwrap().unwrap().data).unwrap();
        assert!(answer["message"] == "failed" && answer["code"] == "UP-AGENT-002", "case {index}: {answer}");
    }
    // Another pod's namespace under that pod's addresses: the mesh knows better.
    let plugin = PlayedPlugin::connect(&node);
    plugin.say(&hello_as("second", vec![POD4, POD6]), Some(wire.pod.as_fd()));
    assert_eq!(plugin.refusal(), "UP-AGENT-004");
    drop(plugin);

    assert!(has_no_rules(&node.netns), "the node has no rules of ours");
    assert_eq!(wire.pod.run(redirect::read_back).unwrap().unwrap(), rules, "the enrolled pod is as it was");
    assert_eq!(node.pods().len(), 1);
    until("nothing is left open", || {
        let now = (open_files(agent), open_files(proxy));
        (no_more_open(now.0, before.0) && no_more_open(now.1, before.1)).then_some(())
    });
}

#[test]
fn a_cni_netns_that_leads_to_the_node_or_nowhere_is_refused() {
    let (mut node, wire) = (Node::new("cni-netns", MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    // The node's own namespace has rules like ours, which nobody may take away either.
    let loopback = ["127.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()];
    node.netns.run(|| redirect::apply(&Plan::for_pod(loopback))).unwrap().unwrap();
    let rules = node.netns.run(redirect::read_back).unwrap().unwrap();
    let link = |name: &str, to: &str| {
        std::os::unix::fs::symlink(to, node.file(name)).unwrap();
        node.file(name).to_str().unwrap().to_owned()
    };
    let node_path = path_of(&node.netns);
    let paths = [
        (link("to-node", &node_path), 8),
        (link("to-link", "to-node"), 8),
        (link("to-self", "/proc/self/ns/net"), 8),
        (link("to-nowhere", "/nonexistent"), 8),
        (link("to-itself", "to-itself"), 8),
        (node_path.clone(), 8),
        ("/proc/self/ns/net".to_owned(), 8),
        ("/proc/thread-self/ns/net".to_owned(), 8),
        ("/proc/self/ns/user".to_owned(), 8),
        ("/etc/hostname".to_owned(), 8),
        ("/".to_owned(), 8),
        ("/dev/null".to_owned(), 8),
        ("/nonexistent".to_owned(), 8),
        (format!("/{}", "x".repeat(5000)), 8),
        (path_of(&wire.pod).trim_start_matches('/').to_owned(), 4),
        ("../../../../../../proc/1/ns/net".to_owned(), 4),
    ];
    for (path, expected) in paths {
        let call = |verb| call(verb, &node, &wire).with("CNI_NETNS", Some(&path));
        let add = call("ADD").run_in(&node.netns);
        let error: Value = serde_json::from_slice(&add.stdout).unwrap();
        assert_eq!(error["code"], expected, "{path}: {error}");
        let del = call("DEL").run_in(&node.netns);
        assert!(del.status.success() && del.stdout.is_empty(), "{path}");
    }
    // The first process's namespace may be another than the plugin's: then the agent refuses it.
    let add = call("ADD", &node, &wire).with("CNI_NETNS", Some("/proc/1/ns/net")).run_in(&node.netns);
    let error: Value = serde_json::from_slice(&add.stdout).unwrap();
    let may_be_opened = File::open("/proc/1/ns/net").is_ok();
    let expected = if may_be_opened { (100, "UP-AGENT-002") } else { (8, "UP-CNI-006") };
    assert!(error["code"] == expected.0 && error["msg"].as_str().unwrap().contains(expected.1), "{error}");
    assert_eq!(node.netns.run(redirect::read_back).unwrap().unwrap(), rules, "the node's rules are as they were");
    assert!(has_no_rules(&wire.pod) && node.pods().is_empty());
}

#[test]
fn only_root_talks_to_the_agent() {
    let (mut node, wire) = (Node::new("only-root", MESH), Wire::new());
    node.start_agent();
    let sockets = [node.agent_socket(), node.zds_socket()];
    for socket in &sockets {
        assert_eq!(std::fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600, "{}", socket.display());
    }
    let refused = std::thread::scope(|scope| {
        let as_nobody = || {
            nix::unistd::setfsuid(NOBODY.into()); // of this thread alone
            sockets.each_ref().map(|s| SeqPacket::connect(s).unwrap_err().kind())
        };
        scope.spawn(as_nobody).join().unwrap()
    });
    assert_eq!(refused, [std::io::ErrorKind::PermissionDenied; 2]);
    // Whoever gets past the file's mode is asked who it is.
    for socket in &sockets {
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        let config = json!({ "cniVersion": "1.1.0", "name": "n", "agentSocket": socket });
        let status = Call::new("STATUS", "", &config).run_as(NOBODY, &node.file("plugin"));
        assert!(String::from_utf8_lossy(&status.stdout).contains("UP-CNI-008"), "{status:?}");
    }
    let log = node.log("agent");
    assert!(log.contains("user 65534 is no plugin") && log.contains("user 65534 is no proxy of ours"), "{log}");
    // Nothing listens where a mount namespace does not matter.
    let names = node.netns.run(|| std::fs::read_to_string("/proc/thread-self/net/unix")).unwrap().unwrap();
    assert!(!names.contains('@'), "no abstract socket: {names}");
    node.start_ready_proxy();
    fine(&call("ADD", &node, &wire).run());
}

#[test]
fn messages_that_are_huge_or_deep_are_refused() {
    let (mut node, wire) = (Node::new("huge", MESH), Wire::new());
    let agent = node.start_agent();
    node.start_ready_proxy();
    let before = settled(agent);
    let mut add = serde_json::to_value(hello("c")).unwrap();
    let with = |add: &mut Value, key: &str, value: Value| {
        add[key] = value;
        add.to_string().into_bytes()
    };
    let messages = [
        vec![b'x'; netns::seqpacket::MAX_PACKET + 1],
        vec![b'['; netns::seqpacket::MAX_PACKET],
        vec![0; 150_000],
        with(&mut add.clone(), "deadlineMs", json!(-1)),
        with(&mut add.clone(), "deadlineMs", json!(1e300)),
        with(&mut add.clone(), "version", json!(u64::MAX)),
        with(&mut add.clone(), "addresses", json!(["not an address"])),
        with(&mut add, "attachment", json!({ "containerId": 7 })),
    ];
    for bytes in messages {
        let plugin = SeqPacket::connect(node.agent_socket()).unwrap();
        plugin.set_timeout(Duration::from_secs(5)).unwrap();
        plugin.send(&bytes, Some(wire.pod.as_fd())).unwrap();
        let answer: Value = serde_json::from_slice(&plugin.recv().unwrap().unwrap().data).unwrap();
        assert_eq!(answer["code"], "UP-AGENT-001", "{}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)]));
        let proxy = SeqPacket::connect(node.zds_socket()).unwrap();
        proxy.set_timeout(Duration::from_secs(5)).unwrap();
        proxy.send(&bytes, Some(wire.pod.as_fd())).unwrap();
        assert!(proxy.recv().unwrap().is_none(), "a proxy that makes no sense is hung up on");
    }
    // Names as long as a message can hold: too long for the proxies' protocol.
    let mut message = hello("long");
    if let FromPlugin::Add { pod, attachment, .. } = &mut message {
        (pod.uid, attachment.container_id) = (Some("u".repeat(20_000)), "c".repeat(20_000));
    }
    let plugin = PlayedPlugin::connect(&node);
    plugin.say(&message, Some(wire.pod.as_fd()));
    let Some(FromAgent::Enrol { plan }) = plugin.answer() else { panic!("no plan") };
    wire.pod.run(|| redirect::apply(&plan)).unwrap().unwrap();
    plugin.say(&FromPlugin::Installed, None);
    assert_eq!(plugin.refusal(), "UP-AGENT-010");
    drop(plugin);
    until("the rules are gone", || has_no_rules(&wire.pod).then_some(()));
    until("nothing is left open", || (no_more_open(open_files(agent), before)).then_some(()));
    fine(&call("ADD", &node, &wire).run());
}

#[test]
fn a_flood_of_descriptors_leaves_none_open() {
    let (mut node, wire) = (Node::new("fd-flood", MESH), Wire::new());
    let agent = node.start_agent();
    let proxy = node.start_ready_proxy();
    let before = (settled(agent), settled(proxy));
    let message = serde_json::to_vec(&hello("flood")).unwrap();
    for count in [2, 5, 200, 253] {
        let flood = vec![wire.pod.as_fd().as_raw_fd(); count];
        for socket in [node.agent_socket(), node.zds_socket()] {
            let client = SeqPacket::connect(socket).unwrap();
            client.set_timeout(Duration::from_secs(5)).unwrap();
            send(&client, &message, &flood);
            while client.recv().unwrap().is_some() {}
        }
        // In the middle of an ADD, too.
        let plugin = SeqPacket::connect(node.agent_socket()).unwrap();
        plugin.set_timeout(Duration::from_secs(5)).unwrap();
        plugin.send(&message, Some(wire.pod.as_fd())).unwrap();
        assert!(plugin.recv().unwrap().is_some());
        send(&plugin, br#"{"message":"installed"}"#, &flood);
        while plugin.recv().unwrap().is_some() {}
    }
    until("every descriptor is closed", || {
        let now = (open_files(agent), open_files(proxy));
        (no_more_open(now.0, before.0) && no_more_open(now.1, before.1)).then_some(())
    });
    fine(&call("ADD", &node, &wire).run());
}

#[test]
fn clients_that_say_nothing_hold_up_nobody() {
    let (mut node, wire) = (Node::new("slow-loris", MESH), Wire::new());
    let agent = node.start_agent_with_few_files(1024);
    node.start_ready_proxy();
    let before = settled(agent);
    let silent = |socket: &Path| SeqPacket::connect(socket).unwrap();
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(silent(&node.agent_socket()));
        idle.push(silent(&node.zds_socket()));
    }
    until("all are accepted", || (open_files(agent).2 >= before.2 + 600).then_some(()));
    // Some that have begun: proxies that never answer, and an ADD that goes no further.
    let mute: Vec<_> = (0..10).map(|_| FakeProxy::connect(&node)).collect();
    let stalled = PlayedPlugin::connect(&node);
    stalled.say(&hello_as("client", vec![POD4, POD6]), Some(wire.peer.as_fd())); // not its addresses: refused at once
    assert_eq!(stalled.refusal(), "UP-AGENT-002");
    for verb in ["ADD", "CHECK", "DEL"] {
        let started = Instant::now();
        fine(&call(verb, &node, &wire).run());
        assert!(started.elapsed() < Duration::from_millis(1500), "{verb} took {:?}", started.elapsed());
    }
    drop((idle, mute, stalled));
    until("nothing is left open", || (no_more_open(open_files(agent), before)).then_some(()));
}

#[test]
fn the_capture_leads_into_no_other_namespace() {
    let sandbox = Sandbox::up("trust");
    let (client, outsider) = (sandbox.pod("client"), sandbox.pod("outsider"));
    let local: [IpAddr; 2] = [[127, 0, 0, 1].into(), "::1".parse().unwrap()];
    // Something that listens on loopback alone, in other pods and on both nodes.
    let mut secrets: Vec<(String, TcpListener)> = Vec::new();
    let node = |name: &str| netns::NetNs::open(sandbox.node(name)["netns"].as_str().unwrap()).unwrap();
    let places = [
        ("server", sandbox.pod("server")),
        ("neighbour", sandbox.pod("neighbour")),
        ("node-1", node("node-1")),
        ("node-2", node("node-2")),
    ];
    for (name, netns) in &places {
        for ip in local {
            let listener = netns.run(|| TcpListener::bind((ip, 9090))).unwrap().unwrap();
            listener.set_nonblocking(true).unwrap();
            secrets.push((format!("{name} {ip}"), listener));
        }
    }
    let mut ways: Vec<IpAddr> =
        ["0.0.0.0", "::", "127.0.0.2", "127.255.255.254", "::ffff:127.0.0.1", "169.254.169.254"]
            .map(|a| a.parse().unwrap())
            .into();
    ways.extend(local);
    for pod in ["client", "neighbour", "server", "outsider"] {
        ways.extend(sandbox.ips(pod));
    }
    // The proxy's ports in the pods, its and the agent's on the nodes, and the secrets.
    let ports = [15001, 15006, 15008, 15053, 15000, 15014, 15020, 15021, 9090];
    let tries = || ways.iter().flat_map(|ip| ports.map(|port| SocketAddr::new(*ip, port)));
    std::thread::scope(|scope| {
        for from in [&client, &outsider] {
            for to in tries() {
                scope.spawn(move || {
                    let Ok(mut stream) = connect(from, to) else { return };
                    let _ = stream.write_all(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                    let mut said = Vec::new();
                    let _ = stream.read_to_end(&mut said);
                    // A tunnel listener may say goodbye in TLS.
                    assert!(said.is_empty() || said[0] == 0x15, "{to} said {}", String::from_utf8_lossy(&said));
                });
            }
        }
    });
    for (name, listener) in &secrets {
        assert!(listener.accept().is_err(), "{name} was reached");
    }
    for (_, netns) in &places {
        connect(netns, SocketAddr::new(local[0], 9090)).unwrap(); // there was something to reach
    }
    for node in ["node-1", "node-2"] {
        assert!(!sandbox.log(node, "proxy").contains("panicked"));
    }
}

/// Values that a shell would act upon.
fn hostile(marker: &Path) -> Vec<String> {
    let touch = format!("touch {}", marker.display());
    vec![
        format!("$({touch})"),
        format!("`{touch}`"),
        format!("'\"; {touch}; '\""),
        format!("x\n{touch}\n"),
        format!("|{touch}&"),
        format!("--help={touch}"),
        "-o${IFS}x".to_owned(),
        "%n%s\\x00../../../bin/sh".to_owned(),
    ]
}

/// How many programs were started according to strace, whose log is whole when the traced program has ended.
fn starts(log: &Path) -> usize {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter(|l| l.contains("exec")).count()
}

#[test]
fn no_word_of_the_runtime_reaches_a_command_line() {
    const NAME: &str = "no_word_of_the_runtime_reaches_a_command_line";
    let works = Command::new("strace").args(["-qq", "-e", "trace=none", "true"]).output();
    if !works.is_ok_and(|o| o.status.success()) {
        println!("skipped: {NAME}: strace is not installed, or may not trace here");
        return;
    }
    let folder = underpass_tests::folder::folder("command-lines-marker");
    let marker = folder.join("marker");
    let values = hostile(&marker);
    let mut mesh = MESH.split("  - { name: peer").next().unwrap().to_owned();
    for (index, value) in values.iter().enumerate() {
        let quoted = serde_json::to_string(value).unwrap();
        mesh += &format!(
            "  - {{ name: {quoted}, namespace: default, serviceAccount: {quoted}, network: n{index}, node: node, workloadIps: [10.78.0.1, \"fd78::1\"] }}\n"
        );
    }
    let (mut node, wire) = (Node::new("command-lines", &mesh), Wire::new());
    let agent_log = node.file("agent.strace");
    let agent = node.start_agent_traced(&agent_log);
    node.start_ready_proxy();
    let traced = |call: Call, index: usize| {
        let log = node.file(&format!("{index}.strace"));
        let output = call.run_traced(&log);
        until("strace sees the plugin", || (starts(&log) > 0).then_some(()));
        assert_eq!(starts(&log), 1, "{call:?} started a program: {}", std::fs::read_to_string(&log).unwrap());
        std::fs::remove_file(log).unwrap();
        output
    };
    let good = |verb| {
        let mut config = config(&node.agent_socket(), &ADDRESSES);
        config["cniVersion"] = json!("1.1.0");
        (Call::new(verb, &path_of(&wire.pod), &config), config)
    };
    let mut joined = 0;
    for (index, value) in values.iter().enumerate() {
        // A whole life under such a name.
        let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={value};K8S_POD_UID={value}");
        for verb in ["ADD", "CHECK", "DEL"] {
            let output = traced(good(verb).0.with("CNI_ARGS", Some(&args)), index);
            joined += usize::from(verb == "ADD" && output.status.success());
        }
        // And in every other place.
        for verb in ["ADD", "DEL", "CHECK", "STATUS", "GC", value] {
            let verb: &'static str = verb.to_owned().leak();
            let (call, config) = good(verb);
            for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH", "CNI_ARGS"] {
                traced(call.clone().with(name, Some(value)), index);
            }
            for key in
                ["name", "agentSocket", "excludeNamespaces", "type", "args", "cniVersion", "cni.dev/valid-attachments"]
            {
                let mut config = config.clone();
                config[key] = match key {
                    "excludeNamespaces" => json!([value]),
                    "cni.dev/valid-attachments" => json!([{ "containerID": value, "ifname": value }]),
                    _ => json!(value),
                };
                traced(Call { stdin: config.to_string().into_bytes(), ..call.clone() }, index);
            }
        }
    }
    assert!(joined >= 6, "only {joined} pods joined under such a name");
    node.kill(agent);
    assert_eq!(starts(&agent_log), 1, "the agent started a program");
    assert!(!marker.exists());
    std::fs::remove_dir_all(folder).unwrap();
}
