//! The agent, with fakes of the proxy beside the real one.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;

use agent_status::VerificationState;
use netns::seqpacket::SeqPacket;
use underpass_tests::cni::{Call, config, path_of};
use underpass_tests::node::{TestNode, no_more_open, open_files, stable_open_files};
use underpass_tests::sandbox::{PATIENCE, until};
use underpass_tests::wire::Wire;
use zds::proxy::{answer, hello};

use super::send_with;

/// A connection of a proxy that has sent nothing yet.
fn connect(node: &TestNode) -> SeqPacket {
    let socket = SeqPacket::connect(node.zds_socket()).unwrap();
    socket.set_timeout(PATIENCE).unwrap();
    socket
}

fn call(node: &TestNode, wire: &Wire, verb: &str) {
    let config = config(&node.agent_socket(), &["10.78.0.1/24", "fd78::1/64"]);
    let output = Call::new(verb, &path_of(&wire.pod), &config).run();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
}

/// Asserts that the pod is verified, and can leave and join again.
fn assert_serves(node: &TestNode, wire: &Wire) {
    let verification = node.verify("client").verification.unwrap();
    assert_eq!(verification.state, VerificationState::Verified);
    call(node, wire, "DEL");
    call(node, wire, "ADD");
}

/// Receives until the agent closes the connection, with or without having read everything.
fn await_end(socket: &SeqPacket) {
    loop {
        match socket.recv() {
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return,
            Err(e) => panic!("the agent keeps the connection: {e}"),
        }
    }
}

#[test]
fn proxies_that_restart_or_are_wrong_affect_no_other() {
    let (mut node, wire) = TestNode::with_pod("wrong-proxies");
    let agent = node_agent(&node);
    let files = stable_open_files(agent);
    let (hello, ok) = (hello().unwrap(), answer(Ok(())).unwrap());
    let too_long = vec![0; 20_000];
    let scripts: [(&str, &[&[u8]]); 7] = [
        ("another version", &[&[8, 9]]),
        ("no hello", &[&ok]),
        ("garbage", &[&[0xff; 30]]),
        ("garbage after the hello", &[&hello, &[0xff; 30]]),
        ("an overlong answer", &[&hello, &too_long]),
        ("answers without a request", &[&hello, &ok, &ok, &ok, &ok]),
        ("an overlong hello", &[&too_long]),
    ];
    for (what, messages) in scripts {
        let socket = connect(&node);
        for message in messages {
            // The agent may have closed it already.
            let _ = socket.send(message, None);
        }
        await_end(&socket);
        until(what, || {
            node.log("agent").contains("UP-AGENT-030").then_some(())
        });
        assert_serves(&node, &wire);
    }
    // One that leaves within its snapshot, and one that sends descriptors.
    let socket = connect(&node);
    socket.send(&hello, None).unwrap();
    socket.recv().unwrap().unwrap();
    drop(socket);
    let (socket, opened) = (connect(&node), File::open("/etc/hostname").unwrap());
    let file = opened.as_raw_fd();
    send_with(&socket, &hello, &[file]);
    socket.recv().unwrap().unwrap();
    send_with(&socket, &ok, &[file; 3]);
    drop(socket);
    assert_serves(&node, &wire);
    until("nothing more is open than before", || {
        no_more_open(open_files(agent), files).then_some(())
    });
    // The pod's own proxy restarts.
    let proxy = u32::try_from(node.status().proxies[0].pid).unwrap();
    node.kill(proxy);
    node.start_ready_proxy();
    assert_serves(&node, &wire);
}

#[test]
fn proxies_that_stall_at_any_message_affect_no_other_and_are_disconnected() {
    let (node, wire) = TestNode::with_pod("stalled-proxies");
    let agent = node_agent(&node);
    let files = stable_open_files(agent);
    // Before the hello, before the first answer, and before the second one.
    let stalled: Vec<SeqPacket> = (0..3).map(|_| connect(&node)).collect();
    for socket in &stalled[1..] {
        socket.send(&hello().unwrap(), None).unwrap();
        socket.recv().unwrap().unwrap();
    }
    stalled[2].send(&answer(Ok(())).unwrap(), None).unwrap();
    assert_serves(&node, &wire);
    stalled.iter().for_each(await_end);
    until("the agent reports them", || {
        let log = node.log("agent");
        let reports =
            log.matches("UP-AGENT-030: closed the connection to the proxy: the proxy did");
        (reports.count() == stalled.len()).then_some(())
    });
    assert_serves(&node, &wire);
    drop(stalled);
    until("nothing more is open than before", || {
        no_more_open(open_files(agent), files).then_some(())
    });
}

/// The process id of the node's agent.
fn node_agent(node: &TestNode) -> u32 {
    let pid = connect(node).peer().unwrap().pid;
    u32::try_from(pid).unwrap()
}
