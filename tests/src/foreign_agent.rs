//! An agent that is not ours: Istio's ZDS byte by byte.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netns::NetNs;
use netns::seqpacket::{SeqPacket, SeqPacketListener};

use crate::node::Node;

/// A field of a protobuf message that holds bytes.
pub fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

/// Serve this pod of namespace `default`, whose service account has its name.
pub fn add_workload(uid: &str, name: &str) -> Vec<u8> {
    let info = [field(1, name.as_bytes()), field(2, b"default"), field(3, name.as_bytes())].concat();
    field(1, &[field(1, uid.as_bytes()), field(2, &info)].concat())
}

/// Go on serving it.
pub fn keep_workload(uid: &str) -> Vec<u8> {
    field(5, &field(1, uid.as_bytes()))
}

/// Serve it no more.
pub fn del_workload(uid: &str) -> Vec<u8> {
    field(2, &field(2, uid.as_bytes()))
}

/// That was all.
pub fn snapshot_sent() -> Vec<u8> {
    field(3, &[])
}

/// The answer of a proxy that has done what it was asked.
pub const DONE: [u8; 2] = [0x0a, 0x00];

/// The server side of ZDS, as Istio's agent is.
#[derive(Debug)]
pub struct ForeignAgent {
    listener: SeqPacketListener,
}

impl ForeignAgent {
    /// Listens where the node's proxy connects.
    pub fn listen(node: &Node) -> Self {
        Self { listener: SeqPacketListener::bind(node.zds_socket()).unwrap() }
    }

    /// The proxy's next connection, after its hello.
    pub fn accept(&self) -> SeqPacket {
        let deadline = Instant::now() + Duration::from_secs(8);
        let socket = loop {
            match self.listener.accept() {
                Ok(socket) => break socket,
                Err(_) => assert!(Instant::now() < deadline, "the proxy does not connect"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        socket.set_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(socket.recv().unwrap().unwrap().data, [8, 1], "ZdsHello, version 1");
        socket
    }
}

/// Sends a request, and with it a namespace; returns the answer.
pub fn ask(socket: &SeqPacket, request: &[u8], netns: Option<&NetNs>) -> Vec<u8> {
    socket.send(request, netns.map(|n| n.as_fd())).unwrap();
    socket.recv().unwrap().unwrap().data
}
