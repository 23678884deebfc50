//! The admin interfaces: the proxy's profiles and rejected requests; liveness and metrics of both.
#![allow(clippy::unwrap_used, clippy::disallowed_types)] // runs `go tool pprof` as the reference

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use underpass_tests::node::{MESH, TestNode};
use underpass_tests::sandbox::{Sandbox, connect, read_line, serve_echo, until};
use underpass_tests::skip::skip;

const ADMIN: &str = "127.0.0.1:15000";

/// Sends a request in a node's namespace; returns the status and the body, which may be binary.
fn request(netns: &netns::NetNs, method: &str, path: &str) -> (u16, Vec<u8>) {
    request_with(netns, &format!("{method} {path}"), "Host: x")
}

/// Sends a request with these headers.
fn request_with(netns: &netns::NetNs, line: &str, headers: &str) -> (u16, Vec<u8>) {
    request_to(netns, ADMIN, line, headers)
}

/// Sends a request with these headers to an address.
fn request_to(netns: &netns::NetNs, to: &str, line: &str, headers: &str) -> (u16, Vec<u8>) {
    let mut stream = netns.run(|| TcpStream::connect(to)).unwrap().unwrap();
    write!(
        stream,
        "{line} HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let status = String::from_utf8_lossy(&answer[9..12]).parse().unwrap();
    (status, answer.split_off(head + 4))
}

#[test]
fn cpu_profile_shows_where_time_is_spent() {
    let sandbox = Sandbox::up("profile");
    serve_echo(&sandbox.pod("server"), 8080);
    let node = netns::NetNs::open(sandbox.node("node-1")["netns"].as_str().unwrap()).unwrap();
    let to = SocketAddr::new(sandbox.ips("server")[0], 8080);
    let profile = std::thread::scope(|scope| {
        let profiling = scope.spawn(|| {
            loop {
                let path = "/debug/pprof/profile?seconds=2&frequency=500";
                match request(&node, "GET", path) {
                    (409, _) => {} // the second one was earlier
                    profile => return profile,
                }
            }
        });
        let mut stream = connect(&sandbox.pod("client"), to).unwrap();
        read_line(&mut stream).unwrap();
        let mut second = 0;
        while !profiling.is_finished() {
            stream.write_all(&[b'x'; 4096]).unwrap();
            stream.read_exact(&mut [0; 4096]).unwrap();
            // A second profile at the same time is rejected.
            if second != 409 {
                second = request(&node, "GET", "/debug/pprof/profile?seconds=1").0;
            }
        }
        assert_eq!(second, 409);
        profiling.join().unwrap()
    });
    assert_eq!(profile.0, 200);
    let text = String::from_utf8_lossy(&profile.1);
    assert!(
        text.contains("nanoseconds") && text.contains("worker-"),
        "the profile names its units and threads"
    );
    let file = sandbox.folder().join("profile.pb");
    std::fs::write(&file, &profile.1).unwrap();
    let mut go = Command::new("go");
    go.args(["tool", "pprof", "-top", "-sample_index=cpu"])
        .arg(&file)
        .env("HOME", sandbox.folder());
    let Ok(output) = go.output() else {
        return skip("the go program is not installed");
    };
    let top = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && top.contains("Type: cpu") && top.contains("flat%"),
        "{output:?}"
    );
}

#[test]
fn heap_profile_requires_active_profiling() {
    let mut node = TestNode::new("heap", MESH);
    node.start_agent();
    let proxy = node.start_ready_proxy();
    let get = |node: &TestNode, method: &str, path: &str| {
        let (status, body) = request(&node.netns, method, path);
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    let (status, text) = get(&node, "GET", "/debug/pprof/heap");
    assert_eq!(status, 501);
    assert!(
        text.contains("Next step: ") && text.contains("_RJEM_MALLOC_CONF="),
        "{text}"
    );
    node.kill(proxy);

    let conf = (
        "_RJEM_MALLOC_CONF",
        "prof:true,prof_active:false,lg_prof_sample:12",
    );
    node.start_ready_proxy_with(&[conf]);
    let (status, text) = get(&node, "GET", "/debug/pprof/heap");
    assert_eq!(status, 409);
    assert!(
        text.contains("Next step: ") && text.contains("POST /debug/pprof/heap/profiling"),
        "{text}"
    );
    assert_eq!(get(&node, "GET", "/debug/pprof/heap/profiling").0, 405);
    assert_eq!(
        get(&node, "POST", "/debug/pprof/heap/profiling?activate=true").0,
        200
    );
    (0..50).for_each(|_| drop(get(&node, "GET", "/config_dump")));
    let (status, profile) = request(&node.netns, "GET", "/debug/pprof/heap");
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&profile));
    assert!(
        profile.starts_with(&[0x1f, 0x8b]) && profile.len() > 200,
        "the profile is compressed"
    );
    assert_eq!(
        get(&node, "POST", "/debug/pprof/heap/profiling?activate=false").0,
        200
    );
    assert_eq!(get(&node, "GET", "/debug/pprof/heap").0, 409);
}

#[test]
fn invalid_admin_requests_are_rejected_with_a_reason() {
    let mut node = TestNode::new("admin-wrong", MESH);
    node.start_agent();
    node.start_ready_proxy();
    for (method, path, status, text) in [
        ("GET", "/debug/pprof/profile?seconds=0", 400, "seconds"),
        ("GET", "/debug/pprof/profile?seconds=x", 400, "seconds"),
        (
            "GET",
            "/debug/pprof/profile?frequency=9999",
            400,
            "frequency",
        ),
        ("POST", "/debug/pprof/profile", 405, "GET"),
        ("POST", "/debug/pprof/heap", 405, "GET"),
        (
            "POST",
            "/debug/pprof/heap/profiling?activate=perhaps",
            400,
            "activate",
        ),
        ("GET", "/nothing", 404, "/config_dump"),
        ("GET", "/", 200, "/debug/pprof/profile"),
    ] {
        let (found, body) = request(&node.netns, method, path);
        let body = String::from_utf8_lossy(&body);
        assert!(
            found == status && body.contains(text),
            "{method} {path}: {found} {body}"
        );
    }
}

#[test]
fn web_pages_cannot_read_or_stop_the_proxy() {
    let mut node = TestNode::new("admin-web", MESH);
    node.start_agent();
    node.start_ready_proxy();
    for headers in [
        "Host: attacker.example:15000",
        "Host: 127.0.0.1:15000\r\nOrigin: https://attacker.example",
        "Host: 127.0.0.1:15000\r\nOrigin: null",
        "Host: localhost\r\nSec-Fetch-Site: cross-site",
    ] {
        for line in [
            "POST /quitquitquit",
            "POST /logging?level=off",
            "GET /config_dump",
        ] {
            let (status, body) = request_with(&node.netns, line, headers);
            assert_eq!(
                status,
                403,
                "{line} {headers}: {}",
                String::from_utf8_lossy(&body)
            );
        }
    }
    assert_eq!(
        request_with(&node.netns, "GET /status", "Host: localhost:15000").0,
        200
    );
}

#[test]
fn open_connections_of_one_client_exclude_no_other() {
    let mut node = TestNode::new("admin-flood", MESH);
    node.start_agent();
    node.start_ready_proxy();
    for (port, path) in [
        (15020, "/metrics"),
        (15021, "/healthz/ready"),
        (15000, "/status"),
    ] {
        let from: std::net::SocketAddr = ([127, 0, 0, 9], 0).into();
        let open = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&from.into())?;
            socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
            let mut stream = TcpStream::from(socket);
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
            Ok::<_, std::io::Error>(stream)
        };
        let silent: Vec<_> = (0..200).map(|_| node.netns.run(open).unwrap()).collect();
        let (status, _) = node.get(&format!("127.0.0.1:{port}"), path).unwrap();
        assert_eq!(status, 200, "{path}");
        // The others were closed, whether or not they have read their response.
        let is_open = |mut stream: TcpStream| {
            stream
                .set_read_timeout(Some(std::time::Duration::from_millis(1)))
                .unwrap();
            let mut buffer = [0; 65_536];
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(e) => return e.kind() == std::io::ErrorKind::WouldBlock,
                }
            }
        };
        let open = silent.into_iter().flatten().map(is_open);
        assert!(open.filter(|open| *open).count() <= 32, "{path}");
    }
}

/// A stopped process answers nothing; a proxy that is not ready does.
#[test]
fn the_proxy_is_alive_while_its_threads_make_progress() {
    let mut node = TestNode::new("admin-live", MESH);
    let proxy = node.start_proxy();
    let get = |path| node.get("127.0.0.1:15021", path).map(|(status, _)| status);
    until("the proxy serves", || get("/healthz/live").ok());
    assert_eq!(get("/healthz/live").unwrap(), 200);
    assert_eq!(
        get("/healthz/ready").unwrap(),
        500,
        "no agent has sent its pods"
    );
    assert_eq!(get("/healthz").unwrap(), 404);
    assert_silent_while_stopped(&node, proxy, "127.0.0.1:15021", "/healthz/live");
}

#[test]
fn the_agent_is_alive_while_its_loop_makes_progress() {
    let mut node = TestNode::new("agent-live", MESH);
    let agent = node.start_agent();
    let get = |path| node.get("127.0.0.1:15014", path).unwrap().0;
    assert_eq!(
        (get("/healthz"), get("/readyz")),
        (200, 503),
        "no proxy is connected"
    );
    assert_silent_while_stopped(&node, agent, "127.0.0.1:15014", "/healthz");
}

fn assert_silent_while_stopped(node: &TestNode, process: u32, address: &str, path: &str) {
    let process = nix::unistd::Pid::from_raw(process.try_into().unwrap());
    let signal = |signal| nix::sys::signal::kill(process, signal).unwrap();
    signal(nix::sys::signal::Signal::SIGSTOP);
    let mut stream = node
        .netns
        .run(|| TcpStream::connect(address))
        .unwrap()
        .unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let timeout = std::time::Duration::from_millis(500);
    stream.set_read_timeout(Some(timeout)).unwrap();
    let mut answer = [0; 12];
    let error = stream.read(&mut answer).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    signal(nix::sys::signal::Signal::SIGCONT);
    stream.set_read_timeout(None).unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

/// Scrapers outside the node read the metrics, and nothing else.
#[test]
fn the_agents_metrics_have_an_address_of_their_own() {
    let mut node = TestNode::new("agent-metrics", MESH);
    // The address is in use at first.
    let occupied = node
        .netns
        .run(|| TcpListener::bind("127.0.0.2:15014"))
        .unwrap()
        .unwrap();
    node.start_agent_with(&["--metrics-addr".as_ref(), "127.0.0.2".as_ref()]);
    until("the obstacle is logged", || {
        let log = node.log("agent");
        log.contains("no metrics on their own address")
            .then_some(())
    });
    assert_eq!(node.get("127.0.0.1:15014", "/healthz").unwrap().0, 200);
    drop(occupied);
    let own = "127.0.0.2:15014";
    let metrics = until("the metrics are served", || node.get(own, "/metrics").ok());
    assert_eq!(metrics.0, 200);
    assert!(metrics.1.contains("underpass_"), "{}", metrics.1);
    for (method, path) in [
        ("GET", "/status"),
        ("POST", "/verify?pod=shop/web"),
        ("GET", "/readyz"),
        ("GET", "/healthz"),
        ("GET", "/"),
    ] {
        assert_eq!(node.request(method, own, path).unwrap().0, 404, "{path}");
    }
    // Prometheus uses the node's name.
    let response = request_to(&node.netns, own, "GET /metrics", "Host: node-1.example.com");
    assert_eq!(response.0, 200);
    assert_eq!(node.get("127.0.0.1:15014", "/status").unwrap().0, 200);
}
