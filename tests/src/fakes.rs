//! Fake peers of the agent: a proxy and a plugin that a test drives step by step, and a relay
//! between the real plugin and the agent.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use handoff::{Attachment, FromAgent, FromPlugin, PodRef};
use netns::NetNs;
use netns::seqpacket::{Packet, SeqPacket};
use zds::message::{Payload, WorkloadRequest};
use zds::{codec, proxy};

use crate::cni::FakeAgent;
use crate::node::TestNode;
use crate::sandbox::PATIENCE;
use crate::wire::{POD4, POD6};

fn connect(socket: &Path) -> SeqPacket {
    let socket = SeqPacket::connect(socket).unwrap();
    socket.set_timeout(PATIENCE).unwrap();
    socket
}

/// A proxy whose ZDS replies the test chooses.
#[derive(Debug)]
pub struct FakeProxy(SeqPacket);

impl FakeProxy {
    /// Connects and sends its hello.
    pub fn connect(node: &TestNode) -> Self {
        let socket = connect(&node.zds_socket());
        socket.send(&proxy::hello().unwrap(), None).unwrap();
        Self(socket)
    }

    /// Connects to an agent without pods, and acknowledges its snapshot.
    pub fn synced(node: &TestNode) -> Self {
        let proxy = Self::connect(node);
        assert!(matches!(proxy.next(), (Payload::SnapshotSent(_), 0)));
        proxy.answer(Ok(()));
        proxy
    }

    /// Receives the next request, and the number of descriptors that came with it.
    pub fn next(&self) -> (Payload, usize) {
        let packet = self.0.recv().unwrap().unwrap();
        let request: WorkloadRequest = codec::decode(&packet.data, codec::MAX_REQUEST).unwrap();
        (request.payload.unwrap(), packet.fds.len())
    }

    /// Replies to a request.
    pub fn answer(&self, outcome: Result<(), &str>) {
        self.0.send(&proxy::answer(outcome).unwrap(), None).unwrap();
    }
}

/// A plugin whose messages the test chooses.
#[derive(Debug)]
pub struct FakePlugin(SeqPacket);

impl FakePlugin {
    /// Connects to the node's agent.
    pub fn connect(node: &TestNode) -> Self {
        Self(connect(&node.agent_socket()))
    }

    /// Sends a message.
    pub fn send(&self, message: &FromPlugin, fd: Option<BorrowedFd<'_>>) {
        self.0
            .send(&serde_json::to_vec(message).unwrap(), fd)
            .unwrap();
    }

    /// Receives the agent's reply; `None` when it has closed the connection.
    pub fn answer(&self) -> Option<FromAgent> {
        self.0
            .recv()
            .unwrap()
            .map(|p| serde_json::from_slice(&p.data).unwrap())
    }

    /// Receives a rejection, and returns its code.
    pub fn rejection(&self) -> String {
        match self.answer() {
            Some(FromAgent::Failed { code, .. }) => code,
            other => panic!("expected a rejection, got {other:?}"),
        }
    }

    /// Presents the pod of [`add_message`] and installs the agent's plan.
    pub fn install(&self, pod: &NetNs) {
        self.send(&add_message("fake"), Some(pod.as_fd()));
        let Some(FromAgent::Enrol { plan }) = self.answer() else {
            panic!("no plan")
        };
        pod.run(|| redirect::apply(&plan)).unwrap().unwrap();
        self.send(&FromPlugin::Installed, None);
    }
}

/// The ADD of `default/client` with the addresses of a [`crate::wire::Wire`]'s pod.
pub fn add_message(container_id: &str) -> FromPlugin {
    FromPlugin::Add {
        version: handoff::VERSION,
        attachment: Attachment {
            container_id: container_id.into(),
            ifname: "eth0".into(),
        },
        pod: PodRef {
            namespace: "default".into(),
            name: "client".into(),
            uid: Some("uid-1".into()),
        },
        addresses: vec![POD4, POD6],
        annotations: Default::default(),
        netns_path: None,
        traceparent: None,
        deadline_ms: 3000,
    }
}

/// Relays messages between the built plugin and the built agent, one at a time.
#[derive(Debug)]
pub struct PluginRelay {
    plugin: crate::cni::Plugin,
    agent: SeqPacket,
}

impl PluginRelay {
    /// Accepts the plugin's connection on `listener`, and connects to the node's agent.
    pub fn between(listener: &FakeAgent, node: &TestNode) -> Self {
        Self {
            plugin: listener.accept(),
            agent: connect(&node.agent_socket()),
        }
    }

    /// Receives the plugin's next message without forwarding it.
    pub fn from_plugin(&self) -> Packet {
        self.plugin.packet().expect("the plugin is connected")
    }

    /// Forwards a message to the agent.
    pub fn to_agent(&self, packet: &Packet) {
        self.agent
            .send(&packet.data, packet.fds.first().map(AsFd::as_fd))
            .unwrap();
    }

    /// Forwards the agent's next message to the plugin.
    pub fn forward_reply(&self) {
        let packet = self.agent.recv().unwrap().expect("the agent is connected");
        self.plugin.send_bytes(&packet.data);
    }
}

/// Waits for a child to exit: one that the test has killed, or that exits by itself.
pub fn await_exit(child: &mut std::process::Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "the process does not exit");
        std::thread::sleep(Duration::from_millis(5));
    }
}
