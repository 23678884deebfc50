//! The node's proxy is replaced by the next one while connections are opened.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::machine::has_exited;
use underpass_tests::next_proxy::{NextProxy, first_proxy, signal};
use underpass_tests::sandbox::{
    MESH, Sandbox, VIPS, connect, listen, read_line, serve_echo, until,
};
use underpass_tests::traffic::Traffic;

/// How long open connections may take to finish. Only detects a hang.
const DEADLINE: (&str, &str) = ("CONNECTION_TERMINATION_DEADLINE", "120s");

/// Stops all threads of a process from running.
fn freeze(pid: u32) {
    signal(pid, Signal::SIGSTOP);
    let is_frozen = |thread: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    };
    until("all threads are stopped", || {
        let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        threads.all(is_frozen).then_some(())
    });
}

fn stop(pid: u32) {
    signal(pid, Signal::SIGTERM);
    until("the last proxy has exited", || {
        has_exited(pid).then_some(())
    });
}

fn vips() -> impl Iterator<Item = SocketAddr> + Clone {
    VIPS.map(|vip| vip.parse().unwrap()).into_iter()
}

/// Replaces both proxies in turn, several times, while connections are opened without a pause. The
/// next proxies have either tunnel engine, so that both ends have each combination.
fn replace_proxies_under_load(name: &str, capture: &str) {
    const CLIENTS: usize = 8;
    let environment = [("UNDERPASS_CAPTURE", capture), DEADLINE];
    let sandbox = Sandbox::up_in(name, MESH, &environment);
    let mut traffic = Traffic::default();
    traffic.serve(&sandbox.pod("server"), (IpAddr::from([0; 16]), 8080).into());
    let client = sandbox.pod("client");
    for to in vips().cycle().take(CLIENTS) {
        traffic.connect(&client, to);
    }
    let began = std::time::Instant::now();
    let mut last: Vec<Option<NextProxy>> = vec![None, None];
    for engine in ["h2", "own", "h2", "own"] {
        for (last, node) in last.iter_mut().zip(["node-2", "node-1"]) {
            let next = NextProxy::start_with(&sandbox, node, engine);
            assert_eq!(traffic.failures(), [""; 0], "both proxies of {node} run");
            match last {
                Some(last) => stop(last.pid()),
                None => stop(first_proxy(&sandbox, node)),
            }
            assert_eq!(traffic.failures(), [""; 0], "one proxy of {node} stopped");
            *last = Some(next);
        }
    }
    let ([v4, v6], took) = (traffic.opened(), began.elapsed());
    assert!(v4 > 0 && v6 > 0, "{v4} and {v6} connections");
    eprintln!("{capture}: {v4} connections of IPv4 and {v6} of IPv6 in {took:?}, none lost");
}

#[test]
fn no_connection_is_lost_when_the_proxies_are_replaced_under_routed() {
    replace_proxies_under_load("replaced-routed", "routed");
}

#[test]
fn no_connection_is_lost_when_the_proxies_are_replaced_under_nat() {
    replace_proxies_under_load("replaced-nat", "nat");
}

/// Both proxies accept from the same sockets, so that none has connections of its own that wait.
#[test]
fn connections_that_wait_to_be_accepted_survive_the_end_of_a_proxy() {
    let sandbox = Sandbox::up("waiting");
    serve_echo(&sandbox.pod("server"), 8080);
    let client = sandbox.pod("client");
    let (last, next) = (
        first_proxy(&sandbox, "node-1"),
        NextProxy::start(&sandbox, "node-1"),
    );
    for pid in [last, next.pid()] {
        freeze(pid);
    }
    let to = vips().cycle().take(60);
    let mut waiting: Vec<_> = to.map(|to| connect(&client, to).unwrap()).collect();
    signal(last, Signal::SIGKILL);
    until("the last proxy has exited", || {
        has_exited(last).then_some(())
    });
    signal(next.pid(), Signal::SIGCONT);
    for stream in &mut waiting {
        read_line(stream).unwrap();
    }
}

#[test]
fn a_proxy_that_does_not_answer_is_replaced_as_well() {
    let sandbox = Sandbox::up("unresponsive");
    serve_echo(&sandbox.pod("server"), 8080);
    let last = first_proxy(&sandbox, "node-1");
    freeze(last);
    let next = NextProxy::start(&sandbox, "node-1");
    signal(last, Signal::SIGKILL);
    until("the last proxy has exited", || {
        has_exited(last).then_some(())
    });
    let third = NextProxy::start(&sandbox, "node-1");
    drop(next);
    let client = sandbox.pod("client");
    for to in vips() {
        read_line(&mut connect(&client, to).unwrap()).unwrap();
    }
    drop(third);
}

#[test]
fn policies_apply_to_open_connections_while_a_proxy_drains() {
    let sandbox = Sandbox::up_in("drain-policy", MESH, &[DEADLINE]);
    let listener = listen(&sandbox.pod("server"), 8080);
    let mut client = connect(&sandbox.pod("client"), vips().next().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    let draining = first_proxy(&sandbox, "node-2");
    signal(draining, Signal::SIGTERM);
    sandbox.access_line("node-2", &["proxy_draining"]);
    sandbox.set_policies(
        "  - { name: other, namespace: default, scope: Namespace, action: Allow, rules: \
         [[[{ principals: [{ Suffix: /sa/other }] }]]] }",
    );
    assert!(client.read(&mut [0]).is_err(), "the connection is reset");
    sandbox.access_line("node-2", &["UP-PROXY-011"]);
    drop(server);
}

/// The connections have ended for the proxy that stops, but a part of their data has not left it.
#[test]
fn data_that_is_not_sent_yet_survives_the_end_of_its_proxy() {
    const LENGTH: usize = 128 * 1024;
    let sandbox = Sandbox::up_in("unsent", MESH, &[DEADLINE]);
    let listener = listen(&sandbox.pod("server"), 8080);
    let client = sandbox.pod("client");
    let to = vips().cycle().take(100);
    let mut open: Vec<_> = to
        .map(|to| {
            let mut client = connect(&client, to).unwrap();
            let (server, _) = listener.accept().unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            assert_eq!(client.read(&mut [0]).unwrap(), 0, "the server has ended");
            (client, server)
        })
        .collect();
    let (sending, receiving) = (
        first_proxy(&sandbox, "node-1"),
        first_proxy(&sandbox, "node-2"),
    );
    freeze(receiving);
    for (client, _) in &mut open {
        client.write_all(&[7; LENGTH]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
    }
    signal(sending, Signal::SIGTERM);
    sandbox.access_line("node-1", &["proxy_draining"]);
    until("the connections have ended", || {
        let lines = sandbox.log("node-1", "proxy");
        let ended = lines.matches("connection complete").count() == open.len();
        (ended || has_exited(sending)).then_some(())
    });
    signal(receiving, Signal::SIGCONT);
    for (_, server) in &mut open {
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), LENGTH);
    }
    until("the proxy has exited", || has_exited(sending).then_some(()));
}

/// A client that keeps its connection for one request after another, like a pool of HTTP, with a
/// pause between them. Returns how many were answered until the connection ended between two.
fn request_until_closed(mut stream: TcpStream, pause: Duration) -> usize {
    let mut answered = 0;
    loop {
        stream.write_all(b"?").unwrap();
        stream.set_read_timeout(None).unwrap();
        let read = stream.read(&mut [0]);
        assert_eq!(read.unwrap_or(0), 1, "request {answered} was cut");
        answered += 1;
        stream.set_read_timeout(Some(pause)).unwrap();
        match stream.read(&mut [0]) {
            Ok(0) => return answered,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            other => panic!("the connection did not end in order: {other:?}"),
        }
    }
}

/// How long the server takes for a request: longer than a connection must be idle to be closed.
const WORK: Duration = Duration::from_millis(400);
/// How long clients wait before the next request: longer than that as well, or so short that their
/// connections are hardly ever idle.
const PAUSES: [Duration; 2] = [Duration::from_millis(900), Duration::from_millis(10)];

#[test]
fn the_end_of_a_drain_cuts_no_request_on_connections_that_are_kept() {
    for node in ["node-2", "node-1"] {
        let deadline = (DEADLINE.0, "6s");
        let sandbox = Sandbox::up_in(&format!("kept-{node}"), MESH, &[deadline]);
        let listener = listen(&sandbox.pod("server"), 8080);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    while stream.read(&mut [0]).is_ok_and(|n| n == 1) {
                        std::thread::sleep(WORK);
                        let _ = stream.write_all(b"!");
                    }
                });
            }
        });
        let client = sandbox.pod("client");
        std::thread::scope(|scope| {
            let clients: Vec<_> = vips()
                .cycle()
                .take(12)
                .map(|to| connect(&client, to).unwrap())
                .collect();
            // All have passed the proxy before it stops accepting.
            for mut stream in &clients {
                stream.write_all(b"?").unwrap();
            }
            for mut stream in &clients {
                stream.read_exact(&mut [0]).unwrap();
            }
            let clients: Vec<_> = clients
                .into_iter()
                .zip(PAUSES.into_iter().cycle())
                .map(|(stream, pause)| scope.spawn(move || request_until_closed(stream, pause)))
                .collect();
            signal(first_proxy(&sandbox, node), Signal::SIGTERM);
            for client in clients {
                let answered = client.join().unwrap();
                assert!(
                    answered >= 2,
                    "{answered}: closed before the end of the drain"
                );
            }
        });
        until("the proxy has exited", || {
            has_exited(first_proxy(&sandbox, node)).then_some(())
        });
        let log = sandbox.log(node, "proxy");
        assert!(!log.contains("UP-PROXY-014"), "a connection was cut: {log}");
    }
}
