//! Exhausted, slow and stuck resources affect as few connections as possible, and the proxy
//! recovers.
#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use underpass_tests::certificates::acceptor;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::control_plane::echo;
use underpass_tests::fake_waypoint::hbone;
use underpass_tests::machine::has_exited;
use underpass_tests::node::{MESH, TestNode};
use underpass_tests::sandbox::{self, PATIENCE, Sandbox, connect, read_line, serve_echo, until};
use underpass_tests::wire::{PEER4, Wire};

/// A node with an agent; the test starts the proxy.
fn node(name: &str) -> (TestNode, Wire) {
    let (mut node, wire) = (TestNode::new(name, MESH), Wire::new());
    node.start_agent();
    serve_echo(&wire.peer, 8080);
    (node, wire)
}

fn enrol(node: &TestNode, wire: &Wire) {
    let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    let added = Call::new("ADD", &path_of(&wire.pod), &config).run();
    assert!(
        added.status.success(),
        "{}",
        String::from_utf8_lossy(&added.stdout)
    );
}

fn talk(wire: &Wire) -> std::io::Result<TcpStream> {
    let mut stream = connect(&wire.pod, SocketAddr::new(PEER4, 8080))?;
    read_line(&mut stream)?;
    Ok(stream)
}

#[test]
fn a_pod_that_uses_up_the_descriptors_gets_no_more_connections() {
    let (mut node, wire) = node("few-files");
    node.start_proxy_with_few_files(256);
    enrol(&node, &wire);
    let mut first = talk(&wire).unwrap();
    // Each takes two descriptors, which exceeds the limit.
    let many: Vec<_> = (0..250)
        .filter_map(|_| connect(&wire.pod, SocketAddr::new(PEER4, 8080)).ok())
        .collect();
    until("the proxy refuses connections of the pod", || {
        let log = node.log("proxy");
        let refused = log.lines().filter(|l| l.contains("UP-PROXY-019"));
        (refused.count() > 50).then_some(())
    });
    echo(&mut first).unwrap();
    let budgets = node.get("127.0.0.1:15000", "/status").unwrap().1;
    assert!(budgets.contains("RLIMIT_NOFILE"), "{budgets}");
    drop(many);
    until("the proxy accepts again", || talk(&wire).ok());
    echo(&mut first).unwrap();
}

#[test]
fn unread_log_blocks_no_connection() {
    let (mut node, wire) = node("unread-log");
    let unread = node.start_unread_proxy(&[("RUST_LOG", "trace")]);
    enrol(&node, &wire);
    let dropped = || {
        let metrics = node.get("127.0.0.1:15020", "/metrics").unwrap().1;
        let line = metrics
            .lines()
            .find(|l| l.starts_with("underpass_log_lines_dropped_total "))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let began = Instant::now();
    while dropped() == 0 {
        assert!(began.elapsed() < PATIENCE, "no line was dropped");
        for _ in 0..100 {
            talk(&wire).unwrap();
        }
    }
    echo(&mut talk(&wire).unwrap()).unwrap();
    drop(unread);
    talk(&wire).unwrap(); // and a closed log blocks none either
}

/// A runtime that does not read what the plugin prints delays only itself.
#[test]
fn an_unread_result_of_a_plugin_blocks_no_pod() {
    let (mut node, wire) = node("unread-result");
    node.start_ready_proxy();
    let usual = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    let more_than_a_pipe_holds = "x".repeat(100 * 1024);
    let mut large = usual.clone();
    large["prevResult"]["dns"] = json!({ "search": [more_than_a_pipe_holds] });
    let unread = Call::new("ADD", &path_of(&wire.pod), &large).start();
    until("the pod is verified", || {
        (node.verified_pods() == 1).then_some(())
    });
    talk(&wire).unwrap();
    let check = Call::new("CHECK", &path_of(&wire.pod), &usual).run();
    assert!(check.status.success(), "another plugin is answered");
    let added = unread.wait_with_output().unwrap();
    assert!(added.status.success());
    let printed: Value = serde_json::from_slice(&added.stdout).unwrap();
    assert_eq!(printed["dns"], large["prevResult"]["dns"]);
}

/// Lines wait some milliseconds for others before they are written.
#[test]
fn the_log_is_complete_when_the_proxy_exits() {
    const CONNECTIONS: usize = 300;
    let (mut node, wire) = node("whole-log");
    let pid = node.start_proxy();
    enrol(&node, &wire);
    for _ in 0..CONNECTIONS {
        talk(&wire).unwrap();
    }
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGTERM).unwrap();
    until("the proxy has exited", || has_exited(pid).then_some(()));
    let log = node.log("proxy");
    let closed = log.lines().filter(|l| l.contains("connection complete"));
    assert_eq!(closed.count(), CONNECTIONS);
    assert!(log.contains("event=\"proxy_draining\""));
}

/// A tunnel is open and idle.
#[test]
fn idle_proxy_rarely_wakes_up() {
    let sandbox = Sandbox::up("at-rest");
    serve_echo(&sandbox.pod("server"), 8080);
    let mut open = connect(
        &sandbox.pod("client"),
        SocketAddr::new(sandbox.ips("server")[0], 8080),
    )
    .unwrap();
    read_line(&mut open).unwrap();
    let pid = sandbox.node("node-1")["proxy_pid"].as_u64().unwrap();
    let wakeups = || -> u64 {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .flatten();
        let of = |thread: std::fs::DirEntry| {
            let status = std::fs::read_to_string(thread.path().join("status")).unwrap();
            let line = status
                .lines()
                .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"))
                .unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        threads.map(of).sum()
    };
    let before = wakeups();
    std::thread::sleep(Duration::from_secs(4));
    let times = wakeups() - before;
    assert!(times < 120, "{times} wakeups in four seconds");
}

/// The first tunnel to a server fails while other connections wait for it: all of them end, and the
/// next connection opens another tunnel.
#[tokio::test]
async fn failed_tunnel_leaves_no_connection_waiting() {
    let mesh = sandbox::MESH.replace(
        "name: outsider, namespace: outside,",
        "name: outsider, namespace: outside, protocol: HBONE,",
    );
    let sandbox = Sandbox::up_with("first-fails", &mesh);
    let acceptor = acceptor(&sandbox, "spiffe://cluster.local/ns/outside/sa/outsider");
    for ip in sandbox.ips("outsider") {
        let listener = sandbox
            .pod("outsider")
            .run(|| std::net::TcpListener::bind(hbone(ip)).unwrap())
            .unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let client = sandbox.pod("client");
        let connecting: Vec<_> = (0..8)
            .map(|_| {
                let client = client.try_clone().unwrap();
                tokio::task::spawn_blocking(move || {
                    connect(&client, SocketAddr::new(ip, 8080)).and_then(|mut s| read_line(&mut s))
                })
            })
            .collect();
        let (broken, _) = listener.accept().await.unwrap();
        // Until the others wait for the tunnel.
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(broken);
        let acceptor = acceptor.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut tunnel = h2::server::handshake(acceptor.accept(tcp).await.unwrap())
                        .await
                        .unwrap();
                    while let Some(Ok((_request, mut respond))) = tunnel.accept().await {
                        let mut stream: h2::SendStream<bytes::Bytes> = respond
                            .send_response(http::Response::new(()), false)
                            .unwrap();
                        stream
                            .send_data(bytes::Bytes::from_static(b"here\n"), true)
                            .unwrap();
                    }
                });
            }
        });
        for result in connecting {
            let _ = tokio::time::timeout(PATIENCE, result)
                .await
                .expect("no connection keeps waiting")
                .unwrap();
        }
        let client = client.try_clone().unwrap();
        let later = tokio::task::spawn_blocking(move || {
            read_line(&mut connect(&client, SocketAddr::new(ip, 8080)).unwrap()).unwrap()
        });
        assert_eq!(later.await.unwrap(), "here");
        serving.abort();
    }
}
