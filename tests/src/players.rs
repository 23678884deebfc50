//! Who talks to the agent, played by a test that can stop at any step; and what stands between the two.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use handoff::{Attachment, FromAgent, FromPlugin, PodRef};
use netns::NetNs;
use netns::seqpacket::{Packet, SeqPacket};
use zds::message::{Payload, WorkloadRequest};
use zds::{codec, proxy};

use crate::cni::FakeAgent;
use crate::node::Node;
use crate::wire::{POD4, POD6};

const PATIENCE: Duration = Duration::from_secs(5);

fn connect(socket: &Path) -> SeqPacket {
    let socket = SeqPacket::connect(socket).unwrap();
    socket.set_timeout(PATIENCE).unwrap();
    socket
}

/// A proxy that says what the test wants.
#[derive(Debug)]
pub struct FakeProxy(SeqPacket);

impl FakeProxy {
    /// Connects and says hello.
    pub fn connect(node: &Node) -> Self {
        let socket = connect(&node.zds_socket());
        socket.send(&proxy::hello().unwrap(), None).unwrap();
        Self(socket)
    }

    /// Connects to an agent that knows no pod yet, and takes its snapshot.
    pub fn synced(node: &Node) -> Self {
        let proxy = Self::connect(node);
        assert!(matches!(proxy.next(), (Payload::SnapshotSent(_), 0)));
        proxy.answer(Ok(()));
        proxy
    }

    /// The next request, and whether a descriptor came with it.
    pub fn next(&self) -> (Payload, usize) {
        let packet = self.0.recv().unwrap().unwrap();
        let request: WorkloadRequest = codec::decode(&packet.data, codec::MAX_REQUEST).unwrap();
        (request.payload.unwrap(), packet.fds.len())
    }

    /// Answers.
    pub fn answer(&self, outcome: Result<(), &str>) {
        self.0.send(&proxy::answer(outcome).unwrap(), None).unwrap();
    }
}

/// A plugin that goes no further than the test wants.
#[derive(Debug)]
pub struct PlayedPlugin(SeqPacket);

impl PlayedPlugin {
    /// Connects.
    pub fn connect(node: &Node) -> Self {
        Self(connect(&node.agent_socket()))
    }

    /// Says what a plugin says.
    pub fn say(&self, message: &FromPlugin, fd: Option<BorrowedFd<'_>>) {
        self.0.send(&serde_json::to_vec(message).unwrap(), fd).unwrap();
    }

    /// What the agent answers; `None` when it hangs up.
    pub fn answer(&self) -> Option<FromAgent> {
        self.0.recv().unwrap().map(|p| serde_json::from_slice(&p.data).unwrap())
    }

    /// The code of a refusal.
    pub fn refusal(&self) -> String {
        match self.answer() {
            Some(FromAgent::Failed { code, .. }) => code,
            other => panic!("{other:?} is no refusal"),
        }
    }

    /// Presents the pod of [`hello`] and installs the agent's plan.
    pub fn install(&self, pod: &NetNs) {
        self.say(&hello("played"), Some(pod.as_fd()));
        let Some(FromAgent::Enrol { plan }) = self.answer() else { panic!("no plan") };
        pod.run(|| redirect::apply(&plan)).unwrap().unwrap();
        self.say(&FromPlugin::Installed, None);
    }
}

/// The ADD of `default/client` with the addresses of a [`crate::wire::Wire`]'s pod.
pub fn hello(container_id: &str) -> FromPlugin {
    FromPlugin::Add {
        version: handoff::VERSION,
        attachment: Attachment { container_id: container_id.into(), ifname: "eth0".into() },
        pod: PodRef { namespace: "default".into(), name: "client".into(), uid: Some("uid-1".into()) },
        addresses: vec![POD4, POD6],
        annotations: Default::default(),
        netns_path: None,
        traceparent: None,
        deadline_ms: 3000,
    }
}

/// Stands between the built plugin and the built agent, and passes on one message at a time.
#[derive(Debug)]
pub struct Relay {
    plugin: crate::cni::Plugin,
    agent: SeqPacket,
}

impl Relay {
    /// Awaits the plugin on `here`, and connects to the node's agent for it.
    pub fn between(here: &FakeAgent, node: &Node) -> Self {
        Self { plugin: here.accept(), agent: connect(&node.agent_socket()) }
    }

    /// Takes the plugin's next message, without passing it on.
    pub fn from_plugin(&self) -> Packet {
        self.plugin.packet().expect("the plugin has said something")
    }

    /// Passes a message on to the agent.
    pub fn to_agent(&self, packet: &Packet) {
        self.agent.send(&packet.data, packet.fds.first().map(AsFd::as_fd)).unwrap();
    }

    /// Passes the agent's next message on to the plugin.
    pub fn answer(&self) {
        let packet = self.agent.recv().unwrap().expect("the agent has answered");
        self.plugin.send_bytes(&packet.data);
    }
}

/// Waits for a child that a test has killed or that must end by itself.
pub fn ended(child: &mut std::process::Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "the process does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}
