//! Peers that fall silent at any stage of a tunnel, or end its TCP connection there, in every way:
//! a connection of which nothing was sent moves to another endpoint, what was received before is
//! delivered, every application gets an end, and nothing of the tunnel is left.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use tokio::time::timeout;
use underpass_tests::background;
use underpass_tests::certificates::certificate;
use underpass_tests::fake_waypoint::hbone;
use underpass_tests::listener::accept;
use underpass_tests::sandbox::{
    MESH, PATIENCE, Sandbox, connect, listen, read_line, serve_echo, until,
};
use underpass_tests::staged_peer::Stage::{
    ClientHello, Connected, Data, GoAway, HalfClose, Request, ServerHello, Settings, Tls,
};
use underpass_tests::staged_peer::Then::{CloseNotify, Fin, Reset, Silence};
use underpass_tests::staged_peer::{Stage, StagedClient, StagedServer, Then};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const OUTSIDER: &str = "spiffe://cluster.local/ns/outside/sa/outsider";
const STAGES: [Stage; 9] = [
    Connected,
    ClientHello,
    ServerHello,
    Tls,
    Settings,
    Request,
    Data,
    HalfClose,
    GoAway,
];
/// Idle tunnels are closed soon, so that what they use is not taken for a leak.
const SHORT_IDLE: (&str, &str) = ("POOL_UNUSED_RELEASE_TIMEOUT", "1s");
/// Well below every other deadline that a connection could have waited for instead: 10 s for TCP,
/// 15 s for the answer to CONNECT. What is awaited takes two seconds.
const MOVED: Duration = Duration::from_secs(9);
/// Pipes of `splice`, which may be kept for the next connection, and the like.
const SPARE_FILES: usize = 6;

/// The name of the pod that plays a stage: its proxy is the test's.
fn player(number: usize) -> String {
    format!("player-{number}")
}

/// A pod for each stage, and one whose node does not even complete TCP connections; each serves a
/// service together with `server`.
fn mesh_with_players() -> String {
    let mut mesh = MESH.to_owned();
    let (mut pods, mut names, mut services) = (String::new(), String::new(), String::new());
    for number in 0..=STAGES.len() {
        let (name, host) = (player(number), 100 + number);
        let service = format!("default/{name}.default.svc.cluster.local: {{ 80: 8080 }}");
        pods.push_str(&format!(
            "  - {{ name: {name}, namespace: outside, serviceAccount: outsider, node: node-1, \
             protocol: HBONE, workloadIps: [10.77.1.{host}, \"fd77:1::{host}\"], services: {{ \
             {service} }} }}\n"
        ));
        names.push_str(&format!(", {service}"));
        services.push_str(&format!(
            "  - {{ name: {name}, namespace: default, vips: [/10.96.1.{host}], ports: {{ 80: 8080 \
             }} }}\n"
        ));
    }
    let server = "default/server.default.svc.cluster.local: { 80: 8080 }";
    mesh = mesh.replace(server, &format!("{server}{names}"));
    mesh = mesh.replace("services:\n", &format!("{pods}services:\n"));
    mesh + &services
}

fn service(number: usize) -> SocketAddr {
    format!("10.96.1.{}:80", 100 + number).parse().unwrap()
}

/// A mesh in which `outsider` has a proxy, which the test plays.
fn mesh_with_fake_proxy() -> String {
    MESH.replace(
        "name: outsider, namespace: outside,",
        "name: outsider, namespace: outside, protocol: HBONE,",
    )
}

/// Open connections and descriptors of the proxy of a node.
fn used(sandbox: &Sandbox, node: &str) -> (u64, usize) {
    let status = sandbox.get(node, "127.0.0.1:15000", "/status").1;
    let status: Value = serde_json::from_str(&status).unwrap();
    let pid = &sandbox.node(node)["proxy_pid"];
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    (status["connections"].as_u64().unwrap(), files.count())
}

/// Waits until nothing is left of all connections and tunnels.
fn await_nothing_left(sandbox: &Sandbox, node: &str, files: usize) {
    let what = format!("nothing is left in the proxy of {node}, which had {files} descriptors");
    until(&what, || {
        let (connections, now) = used(sandbox, node);
        (connections == 0 && now <= files + SPARE_FILES).then_some(())
    });
}

/// Waits for an error of the socket, such as a reset, without reading or writing.
fn await_reset(stream: &TcpStream, what: &str) {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
    let seen = polled[0].revents().unwrap();
    assert!(seen.contains(PollFlags::POLLERR), "{what}: {seen:?}");
}

/// Reads everything; returns it and the end.
fn read_all(stream: &mut TcpStream) -> (Vec<u8>, Result<(), ErrorKind>) {
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all);
    (all, end.map(|_| ()).map_err(|e| e.kind()))
}

/// Listens with a queue that is full, so that the kernel answers to no further SYN. Returns what
/// keeps it full.
fn answers_no_syn(sandbox: &Sandbox, pod: &str, at: SocketAddr) -> Vec<socket2::Socket> {
    use socket2::{Domain, Socket, Type};
    let bind = || {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
        socket.bind(&at.into())?;
        socket.listen(0)?;
        std::io::Result::Ok(socket)
    };
    let netns = sandbox.pod(pod);
    let listener = until("the address is usable", || netns.run(bind).unwrap().ok());
    let fill = || {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
        socket.connect_timeout(&at.into(), Duration::from_millis(500))?;
        std::io::Result::Ok(socket)
    };
    let mut sockets = vec![listener];
    while let Ok(filling) = netns.run(fill).unwrap() {
        sockets.push(filling);
    }
    sockets
}

/// Connections through a service reach `server`, although another endpoint is silent.
fn silence_costs_little(sandbox: &Sandbox, number: usize, tried: impl Fn() -> bool, what: &str) {
    let client = sandbox.pod("client");
    let own = sandbox.ips("client")[0].to_string();
    let mut longest = Duration::ZERO;
    let mut count = 0;
    while count < 8 || !tried() {
        let began = Instant::now();
        let mut stream = connect(&client, service(number)).unwrap();
        let line = read_line(&mut stream).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(line, own, "{what}");
        longest = longest.max(began.elapsed());
        count += 1;
    }
    assert!(longest < MOVED, "{what}: {longest:?}");
    eprintln!("{what}: {count} connections, the longest {longest:?}");
}

/// The error of the client's connection that has these words in its access log line, which must be
/// one of its stage.
fn error_of(sandbox: &Sandbox, words: &str, stage: Option<Stage>) -> String {
    let codes: &[&str] = match stage {
        None => &["UP-PROXY-004"],
        // A reset may precede the end of connect(2), as the proxy sees it.
        Some(Connected | ClientHello | ServerHello) => &["UP-PROXY-004", "UP-PROXY-005"],
        Some(Tls | Settings | Request) => &["UP-PROXY-006", "UP-PROXY-007"],
        Some(Data | HalfClose | GoAway) => &["UP-PROXY-015"],
    };
    let line = sandbox.access_line("node-1", &["\taccess\t", words, "error="]);
    let error = line.split("error=").nth(1).unwrap();
    assert!(codes.iter().any(|code| error.contains(code)), "{line}");
    error.to_owned()
}

/// A connection to the silent peer itself ends, with the reason in the access log.
fn silence_ends(sandbox: &Sandbox, ip: IpAddr, stage: Option<Stage>) {
    let what = format!("silent after {stage:?}");
    let began = Instant::now();
    let mut stream = connect(&sandbox.pod("client"), SocketAddr::new(ip, 8080)).unwrap();
    if stage >= Some(Data) {
        assert_eq!(read_line(&mut stream).unwrap(), "here", "{what}");
    }
    let (rest, end) = read_all(&mut stream);
    assert!(rest.is_empty());
    if stage == Some(HalfClose) {
        assert_eq!(end, Ok(()), "{what}");
        await_reset(&stream, &what);
    } else {
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{what}");
    }
    let error = error_of(sandbox, &format!("dst.addr={ip}:"), stage);
    eprintln!("{what}: ended after {:?}: {error}", began.elapsed());
}

/// Takes as long as a ping may remain unanswered, half a minute, in which it only waits.
#[test]
fn a_server_that_falls_silent_at_any_stage_costs_little_and_leaves_nothing() {
    let sandbox = Sandbox::up_in("silent-server", &mesh_with_players(), &[SHORT_IDLE]);
    serve_echo(&sandbox.pod("server"), 8080);
    let before = used(&sandbox, "node-1").1;
    thread::scope(|scope| {
        let sandbox = &sandbox;
        for (number, stage) in STAGES.into_iter().enumerate() {
            scope.spawn(move || {
                let (pod, ip) = (player(number), sandbox.ips(&player(number))[0]);
                let peer = StagedServer::start(sandbox, &pod, hbone(ip), OUTSIDER, b"here\n");
                peer.stop_all((stage, Silence));
                if stage < Data {
                    let what = format!("silent after {stage:?}");
                    silence_costs_little(sandbox, number, || peer.opened() > 0, &what);
                }
                silence_ends(sandbox, ip, Some(stage));
            });
        }
        scope.spawn(move || {
            let (pod, ip) = (player(STAGES.len()), sandbox.ips(&player(STAGES.len()))[0]);
            let _full = answers_no_syn(sandbox, &pod, hbone(ip));
            silence_costs_little(sandbox, STAGES.len(), || true, "no TCP");
            silence_ends(sandbox, ip, None);
        });
    });
    await_nothing_left(&sandbox, "node-1", before);
}

/// As long as [`a_server_that_falls_silent_at_any_stage_costs_little_and_leaves_nothing`].
#[test]
fn a_client_that_falls_silent_at_any_stage_leaves_nothing() {
    let runtime = background::runtime();
    let sandbox = Sandbox::up_in("silent-client", MESH, &[SHORT_IDLE]);
    let listener = listen(&sandbox.pod("server"), 8080);
    let (ip, client) = (sandbox.ips("server")[0], sandbox.pod("client"));
    let before = used(&sandbox, "node-2").1;
    let mut peers = Vec::new();
    let mut applications = Vec::new();
    for stage in STAGES {
        let identity = certificate(&sandbox.folder().join("box/ca"), CLIENT);
        let to = SocketAddr::new(ip, 8080);
        let began = Instant::now();
        let opening = StagedClient::open(&client, identity, to, stage, b"here\n");
        let mut peer = runtime.block_on(opening);
        if stage >= Data {
            applications.push((stage, accept(&listener).unwrap().0));
        }
        peers.push(runtime.spawn(async move {
            peer.ended().await;
            eprintln!("silent after {stage:?}: ended after {:?}", began.elapsed());
        }));
    }
    for (stage, mut application) in applications {
        let what = format!("silent after {stage:?}");
        application.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(read_line(&mut application).unwrap(), "here", "{what}");
        let (rest, end) = read_all(&mut application);
        assert!(rest.is_empty());
        if stage == HalfClose {
            assert_eq!(end, Ok(()), "{what}");
            await_reset(&application, &what);
        } else {
            assert_eq!(end, Err(ErrorKind::ConnectionReset), "{what}");
        }
    }
    for peer in peers {
        let ended = runtime.block_on(async { timeout(PATIENCE, peer).await });
        ended.unwrap().unwrap();
    }
    sandbox.access_line("node-2", &["UP-PROXY-005", "no handshake within 5 s"]);
    await_nothing_left(&sandbox, "node-2", before);
}

const ENDS: [Then; 3] = [Fin, CloseNotify, Reset];

/// What a stream sends before its tunnel ends.
fn sent() -> Vec<u8> {
    (0..50_000u32).map(|i| (i % 251) as u8).collect()
}

/// A connection whose stream is served, and stays open: its tunnel has no room for another one.
fn served(sandbox: &Sandbox, ip: IpAddr, what: &str) -> TcpStream {
    let mut stream = connect(&sandbox.pod("client"), SocketAddr::new(ip, 8080)).unwrap();
    let mut received = vec![0; sent().len()];
    let read = stream.read_exact(&mut received);
    read.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(received, sent(), "{what}");
    stream
}

#[test]
fn a_server_that_ends_a_tunnel_at_any_stage_loses_nothing_and_the_next_one_works() {
    let environment = [SHORT_IDLE, ("POOL_MAX_STREAMS_PER_CONNECTION", "1")];
    let sandbox = Sandbox::up_in("server-ends", &mesh_with_fake_proxy(), &environment);
    let ip = sandbox.ips("outsider")[0];
    let before = used(&sandbox, "node-1").1;
    let peer = StagedServer::start(&sandbox, "outsider", hbone(ip), OUTSIDER, &sent());
    let mut open = Vec::new();
    for stage in STAGES {
        for then in ENDS {
            let what = format!("{then:?} after {stage:?}");
            peer.stop_next([(stage, then)]);
            if stage >= Data {
                let mut stream = served(&sandbox, ip, &what);
                let (rest, end) = read_all(&mut stream);
                assert!(rest.is_empty(), "{what}");
                // A half-close is one, unless the reset follows before it is read.
                if stage == HalfClose && end.is_ok() {
                    await_reset(&stream, &what);
                } else {
                    assert_eq!(end, Err(ErrorKind::ConnectionReset), "{what}");
                }
            } else {
                if stage >= Tls {
                    // Another tunnel, on which nothing was sent either.
                    open.push(served(&sandbox, ip, &what));
                    peer.stop_next([(stage, then); 2]);
                }
                let to = SocketAddr::new(ip, 8080);
                let stream = connect(&sandbox.pod("client"), to);
                let ended = stream.and_then(|mut stream| stream.read(&mut [0]));
                let error = ended.unwrap_err().kind();
                assert_eq!(error, ErrorKind::ConnectionReset, "{what}");
            }
            open.push(served(&sandbox, ip, &format!("next one, {what}")));
        }
    }
    drop(open);
    await_nothing_left(&sandbox, "node-1", before);
}

#[test]
fn a_client_that_ends_a_tunnel_at_any_stage_loses_nothing_and_leaves_nothing() {
    let runtime = background::runtime();
    let sandbox = Sandbox::up_in("client-ends", MESH, &[SHORT_IDLE]);
    let listener = listen(&sandbox.pod("server"), 8080);
    let (ip, client) = (sandbox.ips("server")[0], sandbox.pod("client"));
    let before = used(&sandbox, "node-2").1;
    for stage in STAGES {
        for then in ENDS {
            let what = format!("{then:?} after {stage:?}");
            let identity = certificate(&sandbox.folder().join("box/ca"), CLIENT);
            let to = SocketAddr::new(ip, 8080);
            let sent = sent();
            let opening = StagedClient::open(&client, identity, to, stage, &sent);
            let peer = runtime.block_on(opening);
            let application = (stage >= Data).then(|| accept(&listener).unwrap().0);
            let ended = runtime.block_on(async { timeout(PATIENCE, peer.end(then)).await });
            ended.unwrap_or_else(|_| panic!("{what}: the proxy does not end the tunnel"));
            let Some(mut application) = application else {
                continue;
            };
            application.set_read_timeout(Some(PATIENCE)).unwrap();
            let (received, end) = read_all(&mut application);
            assert_eq!(received, sent, "{what}");
            // A half-close is one, unless the reset follows before it is read.
            if stage == HalfClose && end.is_ok() {
                await_reset(&application, &what);
            } else {
                assert_eq!(end, Err(ErrorKind::ConnectionReset), "{what}");
            }
        }
    }
    await_nothing_left(&sandbox, "node-2", before);
}
