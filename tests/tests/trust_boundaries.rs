//! Attacks that must fail: programming the node's namespace, using the agent without being root,
//! blocking it, exhausting its descriptors, reaching another pod's namespace through the capture,
//! and injecting text into a command line.
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
use underpass_tests::fakes::{FakePlugin, FakeProxy, add_message};
use underpass_tests::node::{MESH, TestNode, no_more_open, open_files, stable_open_files};
use underpass_tests::sandbox::{PATIENCE, Sandbox, connect, until};
use underpass_tests::skip::skip;
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

const ADDRESSES: [&str; 2] = ["10.78.0.1/24", "fd78::1/64"];
/// A user other than root.
const NOBODY: u32 = 65534;

fn call(verb: &str, node: &TestNode, wire: &Wire) -> Call {
    Call::new(
        verb,
        &path_of(&wire.pod),
        &config(&node.agent_socket(), &ADDRESSES),
    )
}

#[track_caller]
fn assert_success(output: &std::process::Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn has_no_rules(netns: &netns::NetNs) -> bool {
    netns.run(redirect::read_back).unwrap().unwrap().is_empty()
}

/// Sends a message with any number of descriptors.
fn send(socket: &SeqPacket, bytes: &[u8], fds: &[i32]) {
    let control = [ControlMessage::ScmRights(fds)];
    sendmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &[IoSlice::new(bytes)],
        &control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .unwrap();
}

/// An ADD as [`add_message`], of another pod.
fn hello_as(name: &str, addresses: Vec<IpAddr>) -> FromPlugin {
    let mut message = add_message(name);
    if let FromPlugin::Add {
        pod, addresses: a, ..
    } = &mut message
    {
        (pod.name, pod.uid, *a) = (name.to_owned(), Some(format!("uid-of-{name}")), addresses);
    }
    message
}

#[test]
fn a_descriptor_other_than_the_pods_own_namespace_is_rejected() {
    let second = "  - { name: second, namespace: default, node: node, workloadIps: [10.78.0.2, \
                  \"fd78::2\"] }\n";
    let mesh = MESH.split("  - { name: peer").next().unwrap().to_owned() + second;
    let (mut node, wire) = (TestNode::new("descriptors", &mesh), Wire::new());
    let agent = node.start_agent();
    let proxy = node.start_ready_proxy();
    assert_success(&call("ADD", &node, &wire).run());
    let rules = wire.pod.run(redirect::read_back).unwrap().unwrap();
    let before = (stable_open_files(agent), stable_open_files(proxy));

    let open = |path: &str| File::open(path).unwrap();
    let (socket, _other) = SeqPacket::pair().unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let not_namespaces = [
        "/dev/null",
        "/etc/hostname",
        "/proc/self",
        "/",
        "/proc/self/ns/user",
        "/proc/self/ns/pid",
    ];
    let not_namespaces = not_namespaces.map(open);
    let fds = not_namespaces
        .iter()
        .map(AsRawFd::as_raw_fd)
        .chain([socket.as_fd().as_raw_fd(), pipe.as_raw_fd()]);
    let pod = wire.pod.as_fd().as_raw_fd();
    let mut cases: Vec<(FromPlugin, Vec<i32>)> =
        fds.map(|fd| (add_message("c"), vec![fd])).collect();
    cases.push((add_message("c"), vec![]));
    cases.push((add_message("c"), vec![pod, pod]));
    cases.push((add_message("c"), vec![not_namespaces[0].as_raw_fd(), pod]));
    cases.push((add_message("c"), vec![node.netns.as_fd().as_raw_fd()]));
    let first = File::open("/proc/1/ns/net"); // which a container may forbid
    cases.extend(
        first
            .iter()
            .map(|f| (add_message("c"), vec![f.as_raw_fd()])),
    );
    cases.push((hello_as("second", vec![PEER4, PEER6]), vec![pod])); // another pod's namespace
    cases.push((hello_as("client", vec![]), vec![pod]));
    for (index, (message, fds)) in cases.iter().enumerate() {
        let socket = SeqPacket::connect(node.agent_socket()).unwrap();
        socket.set_timeout(PATIENCE).unwrap();
        let bytes = serde_json::to_vec(message).unwrap();
        if fds.is_empty() {
            socket.send(&bytes, None).unwrap()
        } else {
            send(&socket, &bytes, fds)
        }
        let answer: Value = serde_json::from_slice(&socket.recv().unwrap().unwrap().data).unwrap();
        assert!(
            answer["message"] == "failed" && answer["code"] == "UP-AGENT-002",
            "case {index}: {answer}"
        );
    }
    // Another pod's namespace with that pod's addresses, which differ from the mesh's.
    let plugin = FakePlugin::connect(&node);
    plugin.send(
        &hello_as("second", vec![POD4, POD6]),
        Some(wire.pod.as_fd()),
    );
    assert_eq!(plugin.rejection(), "UP-AGENT-004");
    drop(plugin);

    assert!(has_no_rules(&node.netns), "the node's namespace has rules");
    assert_eq!(
        wire.pod.run(redirect::read_back).unwrap().unwrap(),
        rules,
        "the enrolled pod's rules have changed"
    );
    assert_eq!(node.pods().len(), 1);
    until("no descriptor is left open", || {
        let now = (open_files(agent), open_files(proxy));
        (no_more_open(now.0, before.0) && no_more_open(now.1, before.1)).then_some(())
    });
}

#[test]
fn a_cni_netns_that_is_the_nodes_or_invalid_is_rejected() {
    let (mut node, wire) = (TestNode::new("cni-netns", MESH), Wire::new());
    node.start_agent();
    node.start_ready_proxy();
    // The node's own namespace has such rules, which must not be removed either.
    let loopback = [
        "127.0.0.1".parse::<IpAddr>().unwrap(),
        "::1".parse().unwrap(),
    ];
    node.netns
        .run(|| redirect::apply(&Plan::for_pod(loopback)))
        .unwrap()
        .unwrap();
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
    // If the first process has another namespace than the plugin, the agent rejects it.
    let add = call("ADD", &node, &wire)
        .with("CNI_NETNS", Some("/proc/1/ns/net"))
        .run_in(&node.netns);
    let error: Value = serde_json::from_slice(&add.stdout).unwrap();
    let may_be_opened = File::open("/proc/1/ns/net").is_ok();
    let expected = if may_be_opened {
        (100, "UP-AGENT-002")
    } else {
        (8, "UP-CNI-006")
    };
    assert!(
        error["code"] == expected.0 && error["msg"].as_str().unwrap().contains(expected.1),
        "{error}"
    );
    assert_eq!(
        node.netns.run(redirect::read_back).unwrap().unwrap(),
        rules,
        "the node's rules have changed"
    );
    assert!(has_no_rules(&wire.pod) && node.pods().is_empty());
}

#[test]
fn only_root_talks_to_the_agent() {
    let (mut node, wire) = (TestNode::new("only-root", MESH), Wire::new());
    node.start_agent();
    let sockets = [node.agent_socket(), node.zds_socket()];
    for socket in &sockets {
        assert_eq!(
            std::fs::metadata(socket).unwrap().permissions().mode() & 0o777,
            0o600,
            "{}",
            socket.display()
        );
    }
    let refused = std::thread::scope(|scope| {
        let as_nobody = || {
            nix::unistd::setfsuid(NOBODY.into()); // of this thread alone
            sockets
                .each_ref()
                .map(|s| SeqPacket::connect(s).unwrap_err().kind())
        };
        scope.spawn(as_nobody).join().unwrap()
    });
    assert_eq!(refused, [std::io::ErrorKind::PermissionDenied; 2]);
    // The agent checks the peer's credentials in addition to the file mode.
    for socket in &sockets {
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        let config = json!({ "cniVersion": "1.1.0", "name": "n", "agentSocket": socket });
        let status = Call::new("STATUS", "", &config).run_as(NOBODY, &node.file("plugin"));
        assert!(
            String::from_utf8_lossy(&status.stdout).contains("UP-CNI-008"),
            "{status:?}"
        );
    }
    let log = node.log("agent");
    for event in ["plugin_rejected", "proxy_rejected"] {
        let fields = [format!("event=\"{event}\""), format!("uid={NOBODY}")];
        assert!(
            log.lines().any(|l| fields.iter().all(|f| l.contains(f))),
            "{event}: {log}"
        );
    }
    // Abstract sockets would be reachable from any mount namespace.
    let names = node
        .netns
        .run(|| std::fs::read_to_string("/proc/thread-self/net/unix"))
        .unwrap()
        .unwrap();
    assert!(!names.contains('@'), "an abstract socket: {names}");
    node.start_ready_proxy();
    assert_success(&call("ADD", &node, &wire).run());
}

#[test]
fn oversized_and_deeply_nested_messages_are_rejected() {
    let (mut node, wire) = (TestNode::new("huge", MESH), Wire::new());
    let agent = node.start_agent();
    node.start_ready_proxy();
    let before = stable_open_files(agent);
    let mut add = serde_json::to_value(add_message("c")).unwrap();
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
        plugin.set_timeout(PATIENCE).unwrap();
        plugin.send(&bytes, Some(wire.pod.as_fd())).unwrap();
        let answer: Value = serde_json::from_slice(&plugin.recv().unwrap().unwrap().data).unwrap();
        assert_eq!(
            answer["code"],
            "UP-AGENT-001",
            "{}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(80)])
        );
        let proxy = SeqPacket::connect(node.zds_socket()).unwrap();
        proxy.set_timeout(PATIENCE).unwrap();
        proxy.send(&bytes, Some(wire.pod.as_fd())).unwrap();
        assert!(
            proxy.recv().unwrap().is_none(),
            "the proxy's connection stays open after an invalid message"
        );
    }
    // Names that fit a message, but are too long for the proxies' protocol.
    let mut message = add_message("long");
    if let FromPlugin::Add {
        pod, attachment, ..
    } = &mut message
    {
        (pod.uid, attachment.container_id) = (Some("u".repeat(20_000)), "c".repeat(20_000));
    }
    let plugin = FakePlugin::connect(&node);
    plugin.send(&message, Some(wire.pod.as_fd()));
    let Some(FromAgent::Enrol { plan }) = plugin.answer() else {
        panic!("no plan")
    };
    wire.pod.run(|| redirect::apply(&plan)).unwrap().unwrap();
    plugin.send(&FromPlugin::Installed, None);
    assert_eq!(plugin.rejection(), "UP-AGENT-010");
    drop(plugin);
    until("the rules are removed", || {
        has_no_rules(&wire.pod).then_some(())
    });
    until("no descriptor is left open", || {
        (no_more_open(open_files(agent), before)).then_some(())
    });
    assert_success(&call("ADD", &node, &wire).run());
}

#[test]
fn a_flood_of_descriptors_leaves_none_open() {
    let (mut node, wire) = (TestNode::new("fd-flood", MESH), Wire::new());
    let agent = node.start_agent();
    let proxy = node.start_ready_proxy();
    let before = (stable_open_files(agent), stable_open_files(proxy));
    let message = serde_json::to_vec(&add_message("flood")).unwrap();
    for count in [2, 5, 200, 253] {
        let flood = vec![wire.pod.as_fd().as_raw_fd(); count];
        for socket in [node.agent_socket(), node.zds_socket()] {
            let client = SeqPacket::connect(socket).unwrap();
            client.set_timeout(PATIENCE).unwrap();
            send(&client, &message, &flood);
            while client.recv().unwrap().is_some() {}
        }
        // During an ADD as well.
        let plugin = SeqPacket::connect(node.agent_socket()).unwrap();
        plugin.set_timeout(PATIENCE).unwrap();
        plugin.send(&message, Some(wire.pod.as_fd())).unwrap();
        assert!(plugin.recv().unwrap().is_some());
        send(&plugin, br#"{"message":"installed"}"#, &flood);
        while plugin.recv().unwrap().is_some() {}
    }
    until("every descriptor is closed", || {
        let now = (open_files(agent), open_files(proxy));
        (no_more_open(now.0, before.0) && no_more_open(now.1, before.1)).then_some(())
    });
    assert_success(&call("ADD", &node, &wire).run());
}

#[test]
fn silent_clients_block_no_one() {
    let (mut node, wire) = (TestNode::new("slow-loris", MESH), Wire::new());
    let agent = node.start_agent_with_few_files(1024);
    node.start_ready_proxy();
    let before = stable_open_files(agent);
    let silent = |socket: &Path| SeqPacket::connect(socket).unwrap();
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(silent(&node.agent_socket()));
        idle.push(silent(&node.zds_socket()));
    }
    until("all are accepted", || {
        (open_files(agent).2 >= before.2 + 600).then_some(())
    });
    // Clients that have begun: proxies that never answer, and an ADD that does not continue.
    let mute: Vec<_> = (0..10).map(|_| FakeProxy::connect(&node)).collect();
    let stalled = FakePlugin::connect(&node);
    stalled.send(
        &hello_as("client", vec![POD4, POD6]),
        Some(wire.peer.as_fd()),
    ); // not its addresses: rejected at once
    assert_eq!(stalled.rejection(), "UP-AGENT-002");
    for verb in ["ADD", "CHECK", "DEL"] {
        let started = Instant::now();
        assert_success(&call(verb, &node, &wire).run());
        assert!(
            started.elapsed() < Duration::from_secs(5), // the agent's limit for a silent client
            "{verb} took {:?}",
            started.elapsed()
        );
    }
    drop((idle, mute, stalled));
    until("no descriptor is left open", || {
        (no_more_open(open_files(agent), before)).then_some(())
    });
}

#[test]
fn the_capture_reaches_no_other_namespace() {
    let sandbox = Sandbox::up("trust");
    let (client, outsider) = (sandbox.pod("client"), sandbox.pod("outsider"));
    let local: [IpAddr; 2] = [[127, 0, 0, 1].into(), "::1".parse().unwrap()];
    // Loopback listeners in other pods and on both nodes.
    let mut listeners: Vec<(String, TcpListener)> = Vec::new();
    let node =
        |name: &str| netns::NetNs::open(sandbox.node(name)["netns"].as_str().unwrap()).unwrap();
    let places = [
        ("server", sandbox.pod("server")),
        ("neighbour", sandbox.pod("neighbour")),
        ("node-1", node("node-1")),
        ("node-2", node("node-2")),
    ];
    for (name, netns) in &places {
        for ip in local {
            let listener = netns
                .run(|| TcpListener::bind((ip, 9090)))
                .unwrap()
                .unwrap();
            listener.set_nonblocking(true).unwrap();
            listeners.push((format!("{name} {ip}"), listener));
        }
    }
    let mut ways: Vec<IpAddr> = [
        "0.0.0.0",
        "::",
        "127.0.0.2",
        "127.255.255.254",
        "::ffff:127.0.0.1",
        "169.254.169.254",
    ]
    .map(|a| a.parse().unwrap())
    .into();
    ways.extend(local);
    for pod in ["client", "neighbour", "server", "outsider"] {
        ways.extend(sandbox.ips(pod));
    }
    // The proxy's ports in the pods, its and the agent's on the nodes, and the listeners.
    let ports = [15001, 15006, 15008, 15053, 15000, 15014, 15020, 15021, 9090];
    let tries = || {
        ways.iter()
            .flat_map(|ip| ports.map(|port| SocketAddr::new(*ip, port)))
    };
    std::thread::scope(|scope| {
        for from in [&client, &outsider] {
            for to in tries() {
                scope.spawn(move || {
                    let Ok(mut stream) = connect(from, to) else {
                        return;
                    };
                    let _ = stream
                        .write_all(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                    let mut response = Vec::new();
                    let _ = stream.read_to_end(&mut response);
                    // A tunnel listener may send a TLS alert.
                    let text = String::from_utf8_lossy(&response);
                    assert!(
                        response.is_empty() || response[0] == 0x15,
                        "{to} sent {text}"
                    );
                });
            }
        }
    });
    for (name, listener) in &listeners {
        assert!(listener.accept().is_err(), "{name} was reached");
    }
    for (_, netns) in &places {
        // The listener can be reached from its own namespace.
        connect(netns, SocketAddr::new(local[0], 9090)).unwrap();
    }
    for node in ["node-1", "node-2"] {
        assert!(!sandbox.log(node, "proxy").contains("panicked"));
    }
}

/// Values that a shell would execute.
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

/// The number of programs started, by strace's log, which is complete when the traced program has
/// exited.
fn starts(log: &Path) -> usize {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter(|l| l.contains("exec")).count()
}

#[test]
fn no_input_from_the_runtime_reaches_a_command_line() {
    let works = Command::new("strace")
        .args(["-qq", "-e", "trace=none", "true"])
        .output();
    if !works.is_ok_and(|o| o.status.success()) {
        return skip("strace is not installed, or may not trace here");
    }
    let folder = underpass_tests::folder::folder("command-lines-marker");
    let marker = folder.join("marker");
    let values = hostile(&marker);
    let mut mesh = MESH.split("  - { name: peer").next().unwrap().to_owned();
    for (index, value) in values.iter().enumerate() {
        let quoted = serde_json::to_string(value).unwrap();
        mesh += &format!(
            "  - {{ name: {quoted}, namespace: default, serviceAccount: {quoted}, network: \
             n{index}, node: node, workloadIps: [10.78.0.1, \"fd78::1\"] }}\n"
        );
    }
    let (mut node, wire) = (TestNode::new("command-lines", &mesh), Wire::new());
    let agent_log = node.file("agent.strace");
    let agent = node.start_agent_traced(&agent_log);
    node.start_ready_proxy();
    let traced = |call: Call, index: usize| {
        let log = node.file(&format!("{index}.strace"));
        let output = call.run_traced(&log);
        until("strace has logged the plugin", || {
            (starts(&log) > 0).then_some(())
        });
        assert_eq!(
            starts(&log),
            1,
            "{call:?} started a program: {}",
            std::fs::read_to_string(&log).unwrap()
        );
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
        // ADD, CHECK and DEL of a pod with such a name.
        let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={value};K8S_POD_UID={value}");
        for verb in ["ADD", "CHECK", "DEL"] {
            let output = traced(good(verb).0.with("CNI_ARGS", Some(&args)), index);
            joined += usize::from(verb == "ADD" && output.status.success());
        }
        // The value in every other input.
        for verb in ["ADD", "DEL", "CHECK", "STATUS", "GC", value] {
            let verb: &'static str = verb.to_owned().leak();
            let (call, config) = good(verb);
            for name in [
                "CNI_CONTAINERID",
                "CNI_IFNAME",
                "CNI_NETNS",
                "CNI_PATH",
                "CNI_ARGS",
            ] {
                traced(call.clone().with(name, Some(value)), index);
            }
            for key in [
                "name",
                "agentSocket",
                "excludeNamespaces",
                "type",
                "args",
                "cniVersion",
                "cni.dev/valid-attachments",
            ] {
                let mut config = config.clone();
                config[key] = match key {
                    "excludeNamespaces" => json!([value]),
                    "cni.dev/valid-attachments" => {
                        json!([{ "containerID": value, "ifname": value }])
                    }
                    _ => json!(value),
                };
                traced(
                    Call {
                        stdin: config.to_string().into_bytes(),
                        ..call.clone()
                    },
                    index,
                );
            }
        }
    }
    assert!(joined >= 6, "only {joined} pods joined under such a name");
    node.kill(agent);
    assert_eq!(starts(&agent_log), 1, "the agent started a program");
    assert!(!marker.exists());
    std::fs::remove_dir_all(folder).unwrap();
}
