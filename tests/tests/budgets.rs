//! What one pod may take from the others of its node is limited.
#![allow(clippy::unwrap_used)]

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use netns::NetNs;
use serde_json::Value;
use underpass_tests::burst::{Burst, has_returned};
use underpass_tests::sandbox::{
    MESH, Sandbox, VIPS, connect, listen, read_line, serve_echo, until,
};

/// The value of a counter of a node's proxy.
fn counter(sandbox: &Sandbox, node: &str, name: &str) -> u64 {
    let metrics = sandbox.get(node, "127.0.0.1:15020", "/metrics").1;
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap().parse().unwrap()
}

/// The state of a pod in the status of its node's proxy.
fn pod_status(sandbox: &Sandbox, node: &str, pod: &str) -> Value {
    let status = sandbox.get(node, "127.0.0.1:15000", "/status").1;
    let status: Value = serde_json::from_str(&status).unwrap();
    let mut pods = status["pods"].as_array().unwrap().iter();
    pods.find(|p| p["name"] == pod).unwrap().clone()
}

/// Asserts that `underpass status` and `underpass why` of a node print a line with all these words.
fn assert_reported(sandbox: &Sandbox, node: &str, question: &str, words: &[&str]) {
    for command in ["status", &format!("why {question}")] {
        let output = sandbox.underpass(node, command).1;
        let mut lines = output.lines();
        let is_named = lines.any(|line| words.iter().all(|word| line.contains(word)));
        assert!(is_named, "{command}: no line with {words:?} in {output}");
    }
}

/// Connects, and reads the line that the application sends.
fn talk(from: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = connect(from, to)?;
    read_line(&mut stream)?;
    Ok(stream)
}

/// Opens connections to an application that does not read, and sends on each as much as fits.
/// Returns their other ends, and a channel that reports when one was closed.
fn send_unread(
    client: &NetNs,
    server: &NetNs,
    to: SocketAddr,
    count: usize,
) -> (Vec<TcpStream>, mpsc::Receiver<()>) {
    let listener = listen(server, to.port());
    let (closed, closures) = mpsc::channel();
    let unread = (0..count).map(|_| {
        let (mut stream, closed) = (connect(client, to).unwrap(), closed.clone());
        let unread = listener.accept().unwrap().0;
        std::thread::spawn(move || {
            let data = vec![7; 64 * 1024];
            while stream.write_all(&data).is_ok() {}
            let _ = closed.send(()); // the test may have ended
        });
        unread
    });
    (unread.collect(), closures)
}

/// The resident memory of a node's proxy, in KiB.
fn resident(sandbox: &Sandbox, node: &str) -> u64 {
    let pid = &sandbox.node(node)["proxy_pid"];
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let value = line.unwrap().split_whitespace().next().unwrap();
    value.parse().unwrap()
}

#[test]
fn a_pod_with_too_many_connections_gets_no_more_and_others_do() {
    const LIMIT: usize = 10;
    let environment = [("UNDERPASS_POD_MAX_CONNECTIONS", "10")];
    let sandbox = Sandbox::up_in("many-connections", MESH, &environment);
    let (client, outsider) = (sandbox.pod("client"), sandbox.pod("outsider"));
    for server in [&outsider, &client] {
        serve_echo(server, 8080);
    }
    let to = SocketAddr::new(sandbox.ips("outsider")[0], 8080);
    let mut open: Vec<_> = (0..LIMIT).map(|_| talk(&client, to).unwrap()).collect();
    let status = pod_status(&sandbox, "node-1", "client");
    assert_eq!(status["connections"], LIMIT);
    talk(&client, to).unwrap_err();
    let from_outside = SocketAddr::new(sandbox.ips("client")[0], 8080);
    talk(&outsider, from_outside).unwrap_err();
    for direction in ["outbound", "inbound"] {
        let direction = format!("direction=\"{direction}\"");
        sandbox.access_line("node-1", &["UP-PROXY-019", &direction]);
    }
    let words = [
        "default/client: 10 open connections, limit 10 (UNDERPASS_POD_MAX_CONNECTIONS)",
        "2 connections refused",
    ];
    assert_reported(&sandbox, "node-1", &format!("client {to}"), &words);
    let refused = "underpass_connections_refused_over_budget_total";
    assert_eq!(counter(&sandbox, "node-1", refused), 2);
    talk(&sandbox.pod("neighbour"), to).unwrap();
    open.pop();
    open.push(until("a connection takes the place of another", || {
        talk(&client, to).ok()
    }));
}

#[test]
fn a_pod_with_too_many_new_connections_waits_and_loses_none_and_others_do_not_wait() {
    const LIMIT: usize = 20;
    let environment = [("UNDERPASS_POD_MAX_NEW_CONNECTIONS", "20")];
    let sandbox = Sandbox::up_in("new-connections", MESH, &environment);
    let client = sandbox.pod("client");
    serve_echo(&sandbox.pod("outsider"), 8080);
    let to = SocketAddr::new(sandbox.ips("outsider")[0], 8080);
    let delayed = "underpass_connections_delayed_over_budget_total";
    until("connections are delayed", || {
        let started = Instant::now();
        // All at once, then what the server sends on each.
        let open: Vec<_> = (0..3 * LIMIT)
            .map(|_| connect(&client, to).unwrap())
            .collect();
        for mut stream in open {
            read_line(&mut stream).unwrap();
        }
        // A third may pass at once, and the others in two seconds.
        assert!(started.elapsed() > Duration::from_secs(1));
        (counter(&sandbox, "node-1", delayed) > 0).then_some(())
    });
    let log = sandbox.log("node-1", "proxy");
    let line = |pod: &str| {
        let words = ["UP-PROXY-021", "UNDERPASS_POD_MAX_NEW_CONNECTIONS", pod];
        log.lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
    };
    assert!(line("client") && !line("neighbour"), "{log}");
    // Both proxies are of one node, and accept from the client and nothing else.
    sandbox.access_line(
        "node-1",
        &["delayed=\"UP-PROXY-021\"", "src.workload=\"client\""],
    );
    let words = [
        "default/client: new connections per second, limit 20 (UNDERPASS_POD_MAX_NEW_CONNECTIONS)",
        " delayed, the last ",
    ];
    assert_reported(&sandbox, "node-1", &format!("client {to}"), &words);
    talk(&sandbox.pod("neighbour"), to).unwrap();
    assert!(pod_status(&sandbox, "node-1", "neighbour")["exhaustedBudgets"].is_null());
}

#[test]
fn unread_connections_are_closed_beyond_the_budget_and_others_continue() {
    const UNREAD: usize = 24;
    const LIMIT: u64 = 4 << 20;
    let environment = [("UNDERPASS_POD_MAX_UNREAD_BYTES", "4194304")];
    let sandbox = Sandbox::up_in("unread", MESH, &environment);
    let (client, server) = (sandbox.pod("client"), sandbox.pod("server"));
    serve_echo(&server, 8080);
    let mut other = talk(&client, VIPS[0].parse().unwrap()).unwrap();
    let to = SocketAddr::new(sandbox.ips("server")[0], 9090);
    let (_unread, closures) = send_unread(&client, &server, to, UNREAD);
    let closed_by = "underpass_connections_closed_over_budget_total";
    until("the budget is exceeded", || {
        (counter(&sandbox, "node-2", closed_by) > 0).then_some(())
    });
    let words = [
        "UP-PROXY-020",
        "(UNDERPASS_POD_MAX_UNREAD_BYTES)",
        "dst.workload=\"server\"",
    ];
    sandbox.access_line("node-2", &words);
    let words = [
        "default/server: ",
        " unread bytes, limit 4194304 (UNDERPASS_POD_MAX_UNREAD_BYTES)",
        " closed, the last ",
    ];
    assert_reported(&sandbox, "node-2", &format!("client {to}"), &words);
    closures.recv().unwrap();
    let unread = pod_status(&sandbox, "node-2", "server")["unreadBytes"].as_u64();
    assert!(unread.unwrap() <= LIMIT);
    other.write_all(b"still served\n").unwrap();
    assert_eq!(read_line(&mut other).unwrap(), "still served");
    talk(&client, VIPS[1].parse().unwrap()).unwrap();
}

#[test]
fn memory_of_a_burst_is_returned() {
    let sandbox = Sandbox::up("burst");
    let to = SocketAddr::new(sandbox.ips("server")[0], 9090);
    let idle = resident(&sandbox, "node-2");
    let (unread, _) = send_unread(&sandbox.pod("client"), &sandbox.pod("server"), to, 100);
    let is_held = || {
        let unread = pod_status(&sandbox, "node-2", "server")["unreadBytes"].as_u64();
        (unread.unwrap() > 64 << 20).then_some(())
    };
    until("the proxy holds the burst", is_held);
    let peak = resident(&sandbox, "node-2");
    assert!(peak > idle + 48 * 1024, "{idle} KiB, then {peak} KiB");
    drop(unread);
    until("most of the memory is returned", || {
        (resident(&sandbox, "node-2") < idle + (peak - idle) / 4).then_some(())
    });
}

/// A tenth of `scripts/bench burst`, which has 10,000 connections.
#[test]
fn a_burst_on_idle_connections_ends_none_and_its_memory_returns() {
    let burst = Burst {
        idle: 1_000,
        bursting: 60,
        bytes: 12 << 20,
    };
    let program = Path::new(env!("CARGO_BIN_EXE_underpass-bench"));
    for memory in burst.run("burst-of-many", program) {
        assert!(has_returned(memory.after, memory.idle), "{memory:?}");
        assert!(has_returned(memory.end, memory.before), "{memory:?}");
    }
}
