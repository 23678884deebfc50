//! Everything that happens to the agent's pods arrives as a message in one inbox.

use std::sync::Arc;
use std::time::Instant;

use handoff::{Attachment, FromAgent, PodRef};
use netns::NetNs;
use netns::seqpacket::AsyncSeqPacket;
use pod_life::{Answer, Generation, Input, LateStart, LifeId, Sandbox};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::retire::HeldPod;

/// A message to the agent's loop.
#[derive(Debug)]
pub(crate) enum Message {
    /// A plugin presents a pod.
    Add(Box<AddRequest>),
    /// A plugin's connection, by its number, has sent or done something.
    Plugin(u64, Input),
    /// The runtime deletes an attachment.
    Delete {
        attachment: Attachment,
        pod: Option<PodRef>,
        done: oneshot::Sender<Deletion>,
    },
    /// The runtime has only these attachments.
    Collect {
        valid: Vec<Attachment>,
        done: oneshot::Sender<Deletion>,
    },
    /// Membership of pods may have changed.
    Reconcile,
    /// A running pod was found by its processes. If the agent does not have it, no plugin has
    /// presented it; then this is its late start.
    Found(Sandbox, Option<LateStart>),
    /// Something has happened to one pod.
    Pod(LifeId, Input),
    /// A performer has done its work. A pod that joins keeps the namespace that it opened.
    Done {
        id: LifeId,
        generation: Generation,
        answer: Answer,
        netns: Option<Arc<NetNs>>,
    },
    /// A proxy has accepted all pods, or none is connected after the grace period.
    ProxiesChanged,
    /// Send the open namespace of a pod, for a check.
    Namespace(LifeId, oneshot::Sender<Arc<NetNs>>),
    /// Stop deciding, and send the pods that may have rules: Underpass leaves the node.
    Retire(oneshot::Sender<Vec<HeldPod>>),
    /// Verify a pod; the sender is dropped when that is done.
    Verify(LifeId, oneshot::Sender<()>),
    /// Answer, as proof that messages are handled.
    Ping(oneshot::Sender<()>),
}

/// An ADD, and the way back to its plugin.
#[derive(Debug)]
pub(crate) struct AddRequest {
    pub(crate) sandbox: Sandbox,
    pub(crate) netns: Arc<NetNs>,
    pub(crate) deadline: Instant,
    pub(crate) connection: u64,
    /// Dropping it closes the connection.
    pub(crate) plugin: PluginReply,
}

/// The way back to a plugin.
#[derive(Debug)]
pub(crate) struct PluginReply {
    pub(crate) socket: Arc<AsyncSeqPacket>,
    /// For messages that the socket does not accept at once.
    pub(crate) queue: UnboundedSender<FromAgent>,
}

impl PluginReply {
    /// Sends a message, which is lost if the plugin has exited. Normally it is sent at once, before
    /// the effects that follow it: the pod's start waits for it.
    pub(crate) fn send(&self, message: FromAgent) {
        let sent = serde_json::to_vec(&message).map(|bytes| self.socket.try_send(&bytes));
        if !matches!(sent, Ok(Ok(()))) {
            let _ = self.queue.send(message);
        }
    }
}

/// The number of the write that no longer contains a deleted pod.
pub(crate) type Deletion = u64;

/// The sending end of the inbox.
#[derive(Debug, Clone)]
pub(crate) struct Inbox(UnboundedSender<Message>);

impl Inbox {
    /// Creates an inbox.
    pub(crate) fn new() -> (Self, UnboundedReceiver<Message>) {
        let (sender, receiver) = unbounded_channel();
        (Self(sender), receiver)
    }

    /// Sends a message; it is lost only when the agent exits.
    pub(crate) fn send(&self, message: Message) {
        let _ = self.0.send(message); // the agent is exiting
    }

    /// Sends a performer's answer.
    pub(crate) fn answer(&self, id: LifeId, generation: Generation, answer: Answer) {
        self.send(Message::Done {
            id,
            generation,
            answer,
            netns: None,
        });
    }
}
