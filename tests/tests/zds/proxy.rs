//! The proxy, with a fake of Istio's agent.

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::time::{Duration, Instant};

use netns::NetNs;
use netns::seqpacket::SeqPacket;
use underpass_tests::iptables::install_istio_rules;
use underpass_tests::istio_agent::{
    ACK, IstioAgent, add_workload, del_workload, field, keep_workload, request, snapshot_sent,
};
use underpass_tests::node::{TestNode, no_more_open, open_files, stable_open_files};
use underpass_tests::sandbox::{connect, read_line, serve_echo, until};
use underpass_tests::wire::{PEER4, PEER6, POD4, POD6, Wire};

use super::send_with;

const MESH: &str = r#"
workloads:
  - { name: a, namespace: default, serviceAccount: a, protocol: HBONE, node: node,
      workloadIps: [10.78.0.1, "fd78::1"] }
  - { name: b, namespace: default, serviceAccount: b, protocol: HBONE, node: node,
      workloadIps: [10.78.0.2, "fd78::2"] }
"#;

/// A proxy that serves both ends of a wire, which have a connection.
struct Setup {
    node: TestNode,
    wire: Wire,
    proxy: u32,
    agents: Option<IstioAgent>,
    /// From before anything goes wrong.
    open: TcpStream,
    files: (usize, usize, usize),
}

/// The setup, and the connection of its first agent.
fn setup(name: &str) -> (Setup, SeqPacket) {
    let (mut node, wire) = (TestNode::new(name, MESH), Wire::new());
    let agents = IstioAgent::listen(&node);
    let proxy = node.start_proxy();
    let agent = agents.accept();
    install_istio_rules(&wire.pod);
    install_istio_rules(&wire.peer);
    send_snapshot(&agent, &wire);
    serve_echo(&wire.peer, 8080);
    let mut open = connect(&wire.pod, SocketAddr::new(PEER4, 8080)).unwrap();
    read_line(&mut open).unwrap();
    let mut setup = Setup {
        node,
        wire,
        proxy,
        agents: Some(agents),
        open,
        files: (0, 0, 0),
    };
    setup.assert_served();
    setup.files = stable_open_files(proxy);
    (setup, agent)
}

/// Sends both pods, and the end of the snapshot.
fn send_snapshot(agent: &SeqPacket, wire: &Wire) {
    for (netns, uid, name) in [(&wire.pod, "uid-a", "a"), (&wire.peer, "uid-b", "b")] {
        assert_eq!(request(agent, &add_workload(uid, name), Some(netns)), ACK);
    }
    assert_eq!(request(agent, &snapshot_sent(), None), ACK);
}

fn listens(netns: &NetNs) -> bool {
    let connect = || TcpStream::connect("127.0.0.1:15008").is_ok();
    netns.run(connect).unwrap()
}

impl Setup {
    /// Accepts the proxy's next connection.
    fn accept(&self) -> SeqPacket {
        self.agents.as_ref().unwrap().accept()
    }

    /// Asserts that connections of both families pass the tunnel, and that the first one is open.
    #[track_caller]
    fn assert_served(&mut self) {
        for (own, peer) in [(POD4, PEER4), (POD6, PEER6)] {
            let mut stream = connect(&self.wire.pod, SocketAddr::new(peer, 8080)).unwrap();
            assert_eq!(read_line(&mut stream).unwrap(), own.to_string());
        }
        writeln!(self.open, "still open").unwrap();
        assert_eq!(read_line(&mut self.open).unwrap(), "still open");
    }

    /// A right agent follows a wrong one.
    #[track_caller]
    fn assert_recovers(&mut self) {
        let agent = self.accept();
        send_snapshot(&agent, &self.wire);
        self.assert_served();
        let ready = self.node.get("127.0.0.1:15021", "/healthz/ready").unwrap();
        assert_eq!(ready, (200, "ready\n".to_owned()));
        until("nothing more is open than before", || {
            no_more_open(open_files(self.proxy), self.files).then_some(())
        });
    }

    fn await_log(&self, part: &str) {
        until("the proxy reports it", || {
            let log = self.node.log("proxy");
            let mut lines = log.lines();
            lines
                .any(|l| l.contains("UP-PROXY-023") && l.contains(part))
                .then_some(())
        });
    }
}

#[test]
fn pods_stay_served_while_the_agent_restarts_and_those_that_its_snapshot_omits_end() {
    let (mut setup, agent) = setup("agent-restarts");
    drop(agent);
    for _ in 0..3 {
        setup.assert_served();
        // The agent's socket is missing meanwhile.
        setup.agents = None;
        setup.assert_served();
        setup.agents = Some(IstioAgent::listen(&setup.node));
        setup.assert_recovers();
    }
    let agent = setup.accept();
    assert_eq!(
        request(&agent, &add_workload("uid-b", "b"), Some(&setup.wire.peer)),
        ACK
    );
    assert_eq!(request(&agent, &snapshot_sent(), None), ACK);
    until("the pod that was omitted ends", || {
        (!listens(&setup.wire.pod)).then_some(())
    });
    assert!(listens(&setup.wire.peer));
    let again = request(&agent, &add_workload("uid-a", "a"), Some(&setup.wire.pod));
    assert_eq!(again, ACK);
    setup.open = connect(&setup.wire.pod, SocketAddr::new(PEER6, 8080)).unwrap();
    read_line(&mut setup.open).unwrap();
    setup.assert_served();
}

#[test]
fn an_agent_that_closes_every_connection_is_not_stormed() {
    const OBSERVED: Duration = Duration::from_secs(3);
    let (mut setup, agent) = setup("agent-closes");
    let began = Instant::now();
    drop(agent);
    let mut connections = 0;
    while began.elapsed() < OBSERVED {
        drop(setup.accept());
        connections += 1;
    }
    // Pauses of 10, 20, 40 … ms, and then of 2 s.
    let limit = 9 + began.elapsed().as_secs() / 2;
    assert!(connections <= limit, "{connections} connections");
    setup.await_log("the agent closed the connection");
    setup.assert_recovers();
}

#[test]
fn an_agent_that_sends_nothing_is_connected_to_again() {
    let (mut setup, agent) = setup("agent-silent");
    drop(agent);
    let silent = setup.accept();
    setup.assert_served();
    setup.await_log("sent nothing");
    setup.assert_recovers();
    drop(silent);
}

#[test]
fn an_agent_that_stops_within_its_snapshot_is_connected_to_again() {
    let (mut setup, agent) = setup("agent-half");
    drop(agent);
    let stalled = setup.accept();
    let first = add_workload("uid-b", "b");
    assert_eq!(request(&stalled, &first, Some(&setup.wire.peer)), ACK);
    setup.assert_served();
    setup.await_log("sent nothing");
    setup.assert_recovers();
    drop(stalled);
}

#[test]
fn an_agent_that_reads_no_answers_is_connected_to_again() {
    let (mut setup, agent) = setup("agent-unread");
    drop(agent);
    let unread = setup.accept();
    unread.set_timeout(Duration::from_millis(200)).unwrap();
    // It fails while the proxy waits, and in the end because the proxy has closed it.
    until("the proxy reports it", || {
        while unread.send(&keep_workload("uid-a"), None).is_ok() {}
        let log = setup.node.log("proxy");
        log.contains("the agent did not read an answer")
            .then_some(())
    });
    setup.assert_served();
    setup.assert_recovers();
}

#[test]
fn wrong_requests_of_an_agent_are_rejected_and_change_nothing() {
    let (mut setup, agent) = setup("agent-wrong");
    let opened = ["/etc/hostname", "/proc/self/ns/mnt"].map(|path| File::open(path).unwrap());
    let raw = |netns: &NetNs| netns.as_fd().as_raw_fd();
    let (pod, peer) = (raw(&setup.wire.pod), raw(&setup.wire.peer));
    let own = raw(&setup.node.netns);
    let [file, mounts] = opened.each_ref().map(AsRawFd::as_raw_fd);
    let add = || add_workload("uid-a", "a");
    let wrong: [(&str, Vec<u8>, &[i32]); 9] = [
        ("no descriptor", add_workload("uid-c", "c"), &[]),
        ("a file", add(), &[file]),
        ("another kind of namespace", add(), &[mounts]),
        ("the proxy's own namespace", add(), &[own]),
        ("two namespaces", add(), &[pod, peer]),
        ("Del with a descriptor", del_workload("uid-a"), &[peer]),
        ("an unknown message", field(9, b"of a later version"), &[]),
        ("Keep after the snapshot", keep_workload("uid-a"), &[]),
        ("a second end of the snapshot", snapshot_sent(), &[]),
    ];
    for (what, message, fds) in &wrong {
        send_with(&agent, message, fds);
        let answer = agent.recv().unwrap().unwrap().data;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains("UP-PROXY-024"), "{what}: {answer}");
    }
    setup.assert_served();
    until("nothing more is open than before", || {
        no_more_open(open_files(setup.proxy), setup.files).then_some(())
    });
    drop(agent);
    let cut = &add()[..10];
    let endings: [(&str, &[u8], &[i32]); 4] = [
        ("garbage", &[0xff; 30], &[]),
        ("a message that is cut off", cut, &[pod]),
        ("a message of 2,000 bytes", &[0; 2000], &[pod]),
        ("a hundred descriptors", &add(), &[file; 100]),
    ];
    for (what, message, fds) in endings {
        let agent = setup.accept();
        send_with(&agent, message, fds);
        assert!(agent.recv().unwrap().is_none(), "{what}");
        setup.assert_served();
    }
    setup.await_log("descriptors");
    setup.assert_recovers();
}

#[test]
fn a_pod_that_is_named_twice_is_served_once() {
    let (mut setup, agent) = setup("named-twice");
    let name = |uid| request(&agent, &add_workload(uid, "a"), Some(&setup.wire.pod));
    assert_eq!(name("uid-a"), ACK);
    assert_eq!(name("uid-other"), ACK);
    let pods = || {
        let (_, metrics) = setup.node.get("127.0.0.1:15020", "/metrics").unwrap();
        metrics.contains("workload_manager_active_proxy_count 2")
    };
    assert!(pods(), "two namespaces, three uids");
    assert_eq!(name("uid-a"), ACK);
    assert!(pods());
    // The connections of the pod that was replaced have ended.
    setup.open = connect(&setup.wire.pod, SocketAddr::new(PEER4, 8080)).unwrap();
    read_line(&mut setup.open).unwrap();
    setup.assert_served();
    assert_eq!(request(&agent, &del_workload("uid-other"), None), ACK);
    setup.assert_served();
    until("nothing more is open than before", || {
        no_more_open(open_files(setup.proxy), setup.files).then_some(())
    });
}

#[test]
fn a_pod_stays_served_in_its_namespace_until_it_can_be_in_another() {
    let (mut setup, agent) = setup("elsewhere");
    let other = Wire::new();
    let taken = || TcpListener::bind(("::", 15008)).unwrap();
    let taken = other.pod.run(taken).unwrap();
    let answer = request(&agent, &add_workload("uid-a", "a"), Some(&other.pod));
    assert!(String::from_utf8_lossy(&answer).contains("UP-PROXY-002"));
    setup.assert_served();
    drop(taken);
    until("the pod is served in its new namespace", || {
        listens(&other.pod).then_some(())
    });
    until("and no longer in the first one", || {
        (!listens(&setup.wire.pod)).then_some(())
    });
}

#[test]
fn pods_stay_served_while_the_proxy_has_no_descriptor_left() {
    let (mut setup, agent) = setup("no-descriptors");
    let limit = |value: &str| {
        let (pid, limit) = (setup.proxy.to_string(), format!("--nofile={value}:"));
        let status = Command::new("prlimit")
            .args(["--pid", &pid, &limit])
            .status();
        assert!(status.unwrap().success());
    };
    limit("4");
    let add = add_workload("uid-c", "c");
    let other = Wire::new();
    agent.send(&add, Some(other.pod.as_fd())).unwrap();
    assert!(agent.recv().unwrap().is_none(), "its descriptor is lost");
    writeln!(setup.open, "still open").unwrap();
    assert_eq!(read_line(&mut setup.open).unwrap(), "still open");
    setup.await_log("descriptors");
    limit("1024");
    setup.assert_recovers();
}
