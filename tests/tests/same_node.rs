//! Connections within a node whose sockets the proxy joins (`UNDERPASS_SAME_NODE=join`): they are
//! decided, reported and ended as others, and nothing of them is on any wire.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use netns::NetNs;
use netns::sockopt::reset_on_close;
use underpass_tests::cni::{Call, config};
use underpass_tests::listener::accept;
use underpass_tests::sandbox::{MESH, Sandbox, connect, listen, read_line, serve_echo, until};
use underpass_tests::sniffer::Counter;

/// Bytes that no encrypted segment contains.
const TEXT: &str = "readable on this wire";
const BYTES: usize = 4 << 20;

fn up(name: &str, environment: &[(&str, &str)]) -> Sandbox {
    let join = [("UNDERPASS_SAME_NODE", "join")];
    Sandbox::up_in(name, MESH, &[&join, environment].concat())
}

/// The addresses of a pod's application.
fn addresses(sandbox: &Sandbox, pod: &str) -> Vec<SocketAddr> {
    let ips = sandbox.ips(pod).into_iter();
    ips.map(|ip| SocketAddr::new(ip, 8080)).collect()
}

/// How many ends of connections were joined on a node.
fn joined(sandbox: &Sandbox, node: &str) -> u64 {
    let metrics = sandbox.get(node, "127.0.0.1:15020", "/metrics").1;
    let name = "underpass_connections_joined_total ";
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap().parse().unwrap()
}

/// Opens a connection from `client` to an application in `neighbour`; returns both ends.
fn open(sandbox: &Sandbox, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let to = addresses(sandbox, "neighbour")[0];
    let mut client = connect(&sandbox.pod("client"), to).unwrap();
    let mut server = accept(listener).unwrap().0;
    server.write_all(b"first").unwrap(); // the server may speak first
    client.read_exact(&mut [0; 5]).unwrap();
    (client, server)
}

/// A sandbox with a joined connection: its ends, and the application's listener.
fn with_connection(name: &str) -> (Sandbox, TcpStream, TcpStream, TcpListener) {
    let sandbox = up(name, &[]);
    let listener = listen(&sandbox.pod("neighbour"), 8080);
    let (client, server) = open(&sandbox, &listener);
    assert_eq!(joined(&sandbox, "node-1"), 2, "both ends");
    (sandbox, client, server, listener)
}

/// Deletes a pod of node-1, as its runtime does.
fn delete(sandbox: &Sandbox, pod: &str) {
    let socket = sandbox.node("node-1")["agent_socket"].clone();
    let config = config(Path::new(socket.as_str().unwrap()), &["10.77.1.2/32"]);
    let mut pods = sandbox.report["pods"].as_array().unwrap().iter();
    let netns = &pods.find(|p| p["name"] == pod).unwrap()["netns"];
    // The container id of the sandbox.
    let hex: String = format!("default/{pod}")
        .bytes()
        .map(|b| format!("{b:02x}"))
        .collect();
    let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}");
    let call = Call::new("DEL", netns.as_str().unwrap(), &config)
        .with("CNI_CONTAINERID", Some(&format!("{hex:0<64}")[..64]))
        .with("CNI_ARGS", Some(&arguments));
    assert!(call.run().status.success());
}

/// The bytes that a pod's `eth0` has received and sent.
fn bytes_of_interface(pod: &NetNs) -> usize {
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let all = pod.run(read).unwrap();
    let mut lines = all.lines().map(str::trim);
    let line = lines.find_map(|line| line.strip_prefix("eth0:")).unwrap();
    let field = |n| -> usize { line.split_whitespace().nth(n).unwrap().parse().unwrap() };
    field(0) + field(8)
}

fn assert_reset(stream: &mut TcpStream) {
    let error = stream.read_exact(&mut [0; 1 << 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn both_ends_report_a_joined_connection_and_no_wire_has_a_byte_of_it() {
    let sandbox = up("join", &[]);
    let (client, neighbour) = (sandbox.pod("client"), sandbox.pod("neighbour"));
    serve_echo(&neighbour, 8080);
    let node = NetNs::open(sandbox.node("node-1")["netns"].as_str().unwrap()).unwrap();
    for to in addresses(&sandbox, "neighbour") {
        // The node's ends of the pods' interfaces are in its namespace.
        let wire = Counter::start_on_all(&node, TEXT);
        let inside = Counter::start_on_all(&client, TEXT);
        let before = [&client, &neighbour].map(bytes_of_interface);
        let mut stream = connect(&client, to).unwrap();
        let own = read_line(&mut stream).unwrap();
        assert!(
            sandbox.ips("client").contains(&own.parse().unwrap()),
            "{own} connects"
        );
        let sent = TEXT.repeat(BYTES / TEXT.len());
        let (mut sending, text) = (stream.try_clone().unwrap(), sent.clone());
        let sender = thread::spawn(move || {
            sending.write_all(text.as_bytes()).unwrap();
            sending.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        sender.join().unwrap();
        assert!(received == sent, "the echo differs");
        assert!(inside.stop().readable > 0, "the text can be recognised");
        let tally = wire.stop();
        assert!(tally.tls > 0, "CONNECT passes a tunnel: {tally:?}");
        assert_eq!(tally.readable, 0, "{tally:?}");
        assert!(tally.bytes < BYTES / 8, "{tally:?}");
        for (pod, before) in [&client, &neighbour].into_iter().zip(before) {
            let bytes = bytes_of_interface(pod) - before;
            assert!(bytes < BYTES / 8, "{bytes} on eth0");
        }
        let line_end = own.len() + 1;
        let (from_client, to_client) = (sent.len(), sent.len() + line_end);
        for (direction, sent, received) in [
            ("outbound", from_client, to_client),
            ("inbound", to_client, from_client),
        ] {
            let words = [
                format!("direction=\"{direction}\""),
                format!("bytes_sent={sent}"),
                format!("bytes_recv={received}"),
                format!("dst.hbone_addr={to}"),
            ];
            let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
            words.extend([
                "joined=true",
                "src.identity=\"spiffe://cluster.local/ns/default",
            ]);
            sandbox.access_line("node-1", &words);
        }
    }
    assert_eq!(joined(&sandbox, "node-1"), 4);
}

#[test]
fn connections_to_other_nodes_and_without_the_setting_are_not_joined() {
    let exchange = |sandbox: &Sandbox, pod: &str| {
        serve_echo(&sandbox.pod(pod), 8080);
        let mut stream = connect(&sandbox.pod("client"), addresses(sandbox, pod)[0]).unwrap();
        read_line(&mut stream).unwrap();
    };
    let sandbox = up("join-nodes", &[]);
    exchange(&sandbox, "server");
    assert_eq!(
        ["node-1", "node-2"].map(|node| joined(&sandbox, node)),
        [0, 0]
    );
    let sandbox = Sandbox::up("join-off");
    exchange(&sandbox, "neighbour");
    assert_eq!(joined(&sandbox, "node-1"), 0);
    let line = sandbox.access_line("node-1", &["direction=\"inbound\""]);
    assert!(!line.contains("joined"), "{line}");
}

#[test]
fn a_joined_connection_ends_as_either_application_ends_it() {
    let (sandbox, mut client, mut server, listener) = with_connection("join-ends");
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut question = String::new();
    server.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    server.write_all(&vec![7; BYTES]).unwrap();
    drop(server);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert!(
        answer == vec![7; BYTES],
        "{} bytes of the answer",
        answer.len()
    );

    let (mut client, server) = open(&sandbox, &listener);
    reset_on_close(&server).unwrap();
    drop(server);
    assert_reset(&mut client);
    let (client, mut server) = open(&sandbox, &listener);
    reset_on_close(&client).unwrap();
    drop(client);
    assert_reset(&mut server);
    for direction in ["inbound", "outbound"] {
        let direction = format!("direction=\"{direction}\"");
        sandbox.access_line("node-1", &["joined=true", "error=", &direction]);
    }
}

#[test]
fn a_joined_connection_is_cut_when_policies_no_longer_allow_it() {
    let (sandbox, mut client, mut server, listener) = with_connection("join-policy");
    sandbox.set_policies(
        "  - { name: deny-all, namespace: default, scope: Namespace, action: Deny, rules: [[[{ \
         principals: [{ Suffix: /sa/client }] }]]] }",
    );
    assert_reset(&mut client);
    assert_reset(&mut server);
    for direction in ["inbound", "outbound"] {
        let direction = format!("direction=\"{direction}\"");
        sandbox.access_line("node-1", &["joined=true", "error=", &direction, "bytes_"]);
    }
    // A new one is denied as any other.
    let to = addresses(&sandbox, "neighbour")[0];
    let denied = connect(&sandbox.pod("client"), to).and_then(|mut s| s.read_exact(&mut [0]));
    assert!(denied.is_err());
    assert_eq!(joined(&sandbox, "node-1"), 2);
    drop(listener);
}

#[test]
fn a_joined_connection_is_cut_when_the_pod_of_either_end_is_deleted() {
    for (name, leaving) in [("join-client", "client"), ("join-server", "neighbour")] {
        let (sandbox, mut client, mut server, _listener) = with_connection(name);
        delete(&sandbox, leaving);
        assert_reset(&mut client);
        assert_reset(&mut server);
    }
}

#[test]
fn a_joined_connection_is_cut_with_its_proxy() {
    let (sandbox, mut client, mut server, _listener) = with_connection("join-proxy");
    let pid = sandbox.node("node-1")["proxy_pid"].as_i64().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(client.read_exact(&mut [0]).is_err());
    assert!(server.read_exact(&mut [0]).is_err());
}

#[test]
fn joined_connections_count_towards_the_limit_of_both_pods() {
    const LIMIT: usize = 8;
    let sandbox = up("join-limit", &[("UNDERPASS_POD_MAX_CONNECTIONS", "8")]);
    serve_echo(&sandbox.pod("neighbour"), 8080);
    let (client, to) = (sandbox.pod("client"), addresses(&sandbox, "neighbour")[0]);
    let talk = || {
        let mut stream = connect(&client, to)?;
        read_line(&mut stream).map(|_| stream)
    };
    let mut open: Vec<_> = (0..LIMIT).map_while(|_| talk().ok()).collect();
    // The tunnels of the client's workers count as well.
    assert!(
        (LIMIT - 2..LIMIT).contains(&open.len()),
        "{} are open",
        open.len()
    );
    assert_eq!(joined(&sandbox, "node-1"), 2 * open.len() as u64);
    talk().unwrap_err();
    sandbox.access_line("node-1", &["UP-PROXY-019", "direction=\"inbound\""]);
    open.pop();
    open.push(until("a connection takes the place of another", || {
        talk().ok()
    }));
}
