//! A fake of Istio's node agent, which speaks ZDS byte by byte.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netns::NetNs;
use netns::seqpacket::{SeqPacket, SeqPacketListener};

use crate::node::TestNode;
use crate::sandbox::PATIENCE;

/// A length-delimited field of a protobuf message.
pub fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [
        &[number << 3 | 2, u8::try_from(bytes.len()).unwrap()],
        bytes,
    ]
    .concat()
}

/// AddWorkload for a pod of namespace `default`, with a service account of the same name.
pub fn add_workload(uid: &str, name: &str) -> Vec<u8> {
    let info = [
        field(1, name.as_bytes()),
        field(2, b"default"),
        field(3, name.as_bytes()),
    ]
    .concat();
    field(1, &[field(1, uid.as_bytes()), field(2, &info)].concat())
}

/// KeepWorkload.
pub fn keep_workload(uid: &str) -> Vec<u8> {
    field(5, &field(1, uid.as_bytes()))
}

/// DelWorkload.
pub fn del_workload(uid: &str) -> Vec<u8> {
    field(2, &field(2, uid.as_bytes()))
}

/// WorkloadSnapshotSent.
pub fn snapshot_sent() -> Vec<u8> {
    field(3, &[])
}

/// The acknowledgement of a proxy.
pub const ACK: [u8; 2] = [0x0a, 0x00];

/// The server side of ZDS, as implemented by Istio's agent.
#[derive(Debug)]
pub struct IstioAgent {
    listener: SeqPacketListener,
}

impl IstioAgent {
    /// Listens on the socket to which the node's proxy connects.
    pub fn listen(node: &TestNode) -> Self {
        Self {
            listener: SeqPacketListener::bind(node.zds_socket()).unwrap(),
        }
    }

    /// Accepts the proxy's next connection, and checks its hello.
    pub fn accept(&self) -> SeqPacket {
        let deadline = Instant::now() + PATIENCE;
        let socket = loop {
            match self.listener.accept() {
                Ok(socket) => break socket,
                Err(_) => assert!(Instant::now() < deadline, "the proxy does not connect"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        socket.set_timeout(PATIENCE).unwrap();
        assert_eq!(
            socket.recv().unwrap().unwrap().data,
            [8, 1],
            "ZdsHello, version 1"
        );
        socket
    }
}

/// Sends a request, with a network namespace if given; returns the reply.
pub fn request(socket: &SeqPacket, message: &[u8], netns: Option<&NetNs>) -> Vec<u8> {
    socket.send(message, netns.map(|n| n.as_fd())).unwrap();
    socket.recv().unwrap().unwrap().data
}
