//! The proxy's admin interface, beside what other tests ask of it.
#![allow(clippy::unwrap_used, clippy::disallowed_types)] // `go tool pprof` is the oracle here

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use underpass_tests::node::{MESH, Node};
use underpass_tests::sandbox::{Sandbox, connect, read_line, serve_echo};
use underpass_tests::skip::skip;

const ADMIN: &str = "127.0.0.1:15000";

/// Status and body of a request in a node's namespace; the body may be no text.
fn ask(netns: &netns::NetNs, method: &str, path: &str) -> (u16, Vec<u8>) {
    let mut stream = netns.run(|| TcpStream::connect(ADMIN)).unwrap().unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let status = String::from_utf8_lossy(&answer[9..12]).parse().unwrap();
    (status, answer.split_off(head + 4))
}

#[test]
fn a_profile_tells_where_processor_time_goes() {
    let sandbox = Sandbox::up("profile");
    serve_echo(&sandbox.pod("server"), 8080);
    let node = netns::NetNs::open(sandbox.node("node-1")["netns"].as_str().unwrap()).unwrap();
    let to = SocketAddr::new(sandbox.ips("server")[0], 8080);
    let profile = std::thread::scope(|scope| {
        let looking = scope.spawn(|| ask(&node, "GET", "/debug/pprof/profile?seconds=2&frequency=500"));
        let mut stream = connect(&sandbox.pod("client"), to).unwrap();
        read_line(&mut stream).unwrap();
        let mut second = None;
        while !looking.is_finished() {
            stream.write_all(&[b'x'; 4096]).unwrap();
            stream.read_exact(&mut [0; 4096]).unwrap();
            // Another one meanwhile is refused.
            second.get_or_insert_with(|| {
                std::thread::sleep(std::time::Duration::from_millis(300));
                ask(&node, "GET", "/debug/pprof/profile?seconds=1").0
            });
        }
        assert_eq!(second, Some(409));
        looking.join().unwrap()
    });
    assert_eq!(profile.0, 200);
    let text = String::from_utf8_lossy(&profile.1);
    assert!(text.contains("nanoseconds") && text.contains("worker-"), "its units and threads are named");
    let file = sandbox.folder().join("profile.pb");
    std::fs::write(&file, &profile.1).unwrap();
    let mut go = Command::new("go");
    go.args(["tool", "pprof", "-top", "-sample_index=cpu"]).arg(&file).env("HOME", sandbox.folder());
    let Ok(output) = go.output() else { return skip("a_profile_tells_where_processor_time_goes", "there is no go") };
    let top = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && top.contains("Type: cpu") && top.contains("flat%"), "{output:?}");
}

#[test]
fn allocations_are_noted_when_asked_for() {
    let mut node = Node::new("heap", MESH);
    node.start_agent();
    let proxy = node.start_ready_proxy();
    let get = |node: &Node, method: &str, path: &str| {
        let (status, body) = ask(&node.netns, method, path);
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    let (status, why) = get(&node, "GET", "/debug/pprof/heap");
    assert!(status == 501 && why.contains("Next step: start the proxy with _RJEM_MALLOC_CONF="), "{why}");
    node.kill(proxy);

    let conf = ("_RJEM_MALLOC_CONF", "prof:true,prof_active:false,lg_prof_sample:12");
    node.start_ready_proxy_with(&[conf]);
    let (status, why) = get(&node, "GET", "/debug/pprof/heap");
    assert!(status == 409 && why.contains("Next step: POST"), "{why}");
    assert_eq!(get(&node, "GET", "/debug/pprof/heap/profiling").0, 405);
    assert_eq!(get(&node, "POST", "/debug/pprof/heap/profiling?activate=true").0, 200);
    (0..50).for_each(|_| drop(get(&node, "GET", "/config_dump")));
    let (status, profile) = ask(&node.netns, "GET", "/debug/pprof/heap");
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&profile));
    assert!(profile.starts_with(&[0x1f, 0x8b]) && profile.len() > 200, "a compressed profile");
    assert_eq!(get(&node, "POST", "/debug/pprof/heap/profiling?activate=false").0, 200);
    assert_eq!(get(&node, "GET", "/debug/pprof/heap").0, 409);
}

#[test]
fn what_cannot_be_asked_is_refused_with_the_reason() {
    let mut node = Node::new("admin-wrong", MESH);
    node.start_agent();
    node.start_ready_proxy();
    for (method, path, status, why) in [
        ("GET", "/debug/pprof/profile?seconds=0", 400, "seconds is a number from 1 to 300"),
        ("GET", "/debug/pprof/profile?seconds=x", 400, "seconds is a number"),
        ("GET", "/debug/pprof/profile?frequency=9999", 400, "frequency is a number from 1 to 1000"),
        ("POST", "/debug/pprof/profile", 405, "it takes a GET"),
        ("POST", "/debug/pprof/heap", 405, "it takes a GET"),
        ("POST", "/debug/pprof/heap/profiling?activate=perhaps", 400, "activate is true or false"),
        ("GET", "/nothing", 404, "/config_dump"),
        ("GET", "/", 200, "/debug/pprof/profile"),
    ] {
        let (found, body) = ask(&node.netns, method, path);
        let body = String::from_utf8_lossy(&body);
        assert!(found == status && body.contains(why), "{method} {path}: {found} {body}");
    }
}
