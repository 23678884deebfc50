//! What is scarce, slow or stuck holds up as little as can be, and recovers.
#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use underpass_tests::certificates::acceptor;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::control_plane::say;
use underpass_tests::node::{MESH, Node};
use underpass_tests::played_proxy::hbone;
use underpass_tests::sandbox::{self, Sandbox, connect, read_line, serve_echo, until};
use underpass_tests::wire::{PEER4, Wire};

/// A node with its agent; what runs its pod's proxy is up to the test.
fn node(name: &str) -> (Node, Wire) {
    let (mut node, wire) = (Node::new(name, MESH), Wire::new());
    node.start_agent();
    serve_echo(&wire.peer, 8080);
    (node, wire)
}

fn enrol(node: &Node, wire: &Wire) {
    let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    let added = Call::new("ADD", &path_of(&wire.pod), &config).run();
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stdout));
}

fn talk(wire: &Wire) -> std::io::Result<TcpStream> {
    let mut stream = connect(&wire.pod, SocketAddr::new(PEER4, 8080))?;
    read_line(&mut stream)?;
    Ok(stream)
}

#[test]
fn a_proxy_that_may_open_no_more_files_waits_quietly_and_recovers() {
    let (mut node, wire) = node("few-files");
    node.start_proxy_with_few_files(256);
    enrol(&node, &wire);
    let mut first = talk(&wire).unwrap();
    // Each takes two, so these are more than it can have; whoever comes too late waits to be accepted.
    let many: Vec<_> = (0..250).map(|_| connect(&wire.pod, SocketAddr::new(PEER4, 8080)).unwrap()).collect();
    until("it says so", || node.log("proxy").contains("cannot accept").then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    say(&mut first).unwrap();
    let lines = node.log("proxy").lines().count();
    assert!(lines < 500, "{lines} lines");
    drop(many);
    until("it accepts again", || talk(&wire).ok());
    say(&mut first).unwrap();
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_connection() {
    let (mut node, wire) = node("unread-log");
    let unread = node.start_unread_proxy(&[("RUST_LOG", "trace")]);
    enrol(&node, &wire);
    let dropped = || {
        let metrics = node.get("127.0.0.1:15020", "/metrics").unwrap().1;
        let line = metrics.lines().find(|l| l.starts_with("underpass_log_lines_dropped_total ")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let began = Instant::now();
    while dropped() == 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "no line was dropped");
        for _ in 0..100 {
            talk(&wire).unwrap();
        }
    }
    say(&mut talk(&wire).unwrap()).unwrap();
    drop(unread);
    talk(&wire).unwrap(); // nor one that is closed
}

/// A tunnel is open, and nobody says anything.
#[test]
fn a_proxy_at_rest_sleeps() {
    let sandbox = Sandbox::up("at-rest");
    serve_echo(&sandbox.pod("server"), 8080);
    let mut open = connect(&sandbox.pod("client"), SocketAddr::new(sandbox.ips("server")[0], 8080)).unwrap();
    read_line(&mut open).unwrap();
    let pid = sandbox.node("node-1")["proxy_pid"].as_u64().unwrap();
    let woken = || -> u64 {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let of = |thread: std::fs::DirEntry| {
            let status = std::fs::read_to_string(thread.path().join("status")).unwrap();
            let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        threads.map(of).sum()
    };
    let before = woken();
    std::thread::sleep(Duration::from_secs(4));
    let times = woken() - before;
    assert!(times < 120, "woken {times} times in four seconds");
}

/// The first tunnel to a server breaks while others wait for it: all are told, and whoever comes next opens another.
#[tokio::test]
async fn a_tunnel_that_fails_leaves_nobody_waiting() {
    let mesh = sandbox::MESH
        .replace("name: outsider, namespace: outside,", "name: outsider, namespace: outside, protocol: HBONE,");
    let sandbox = Sandbox::up_with("first-fails", &mesh);
    let acceptor = acceptor(&sandbox, "spiffe://cluster.local/ns/outside/sa/outsider");
    for ip in sandbox.ips("outsider") {
        let listener = sandbox.pod("outsider").run(|| std::net::TcpListener::bind(hbone(ip)).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let client = sandbox.pod("client");
        let asking: Vec<_> = (0..8)
            .map(|_| {
                let client = client.try_clone().unwrap();
                tokio::task::spawn_blocking(move || {
                    connect(&client, SocketAddr::new(ip, 8080)).and_then(|mut s| read_line(&mut s))
                })
            })
            .collect();
        let (broken, _) = listener.accept().await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await; // the others have come
        drop(broken);
        let acceptor = acceptor.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut tunnel = h2::server::handshake(acceptor.accept(tcp).await.unwrap()).await.unwrap();
                    while let Some(Ok((_request, mut respond))) = tunnel.accept().await {
                        let mut stream: h2::SendStream<bytes::Bytes> =
                            respond.send_response(http::Response::new(()), false).unwrap();
                        stream.send_data(bytes::Bytes::from_static(b"here\n"), true).unwrap();
                    }
                });
            }
        });
        let began = Instant::now();
        for asked in asking {
            let _ = tokio::time::timeout(Duration::from_secs(8), asked).await.expect("an answer").unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(8));
        let client = client.try_clone().unwrap();
        let later = tokio::task::spawn_blocking(move || {
            read_line(&mut connect(&client, SocketAddr::new(ip, 8080)).unwrap()).unwrap()
        });
        assert_eq!(later.await.unwrap(), "here");
        serving.abort();
    }
}
