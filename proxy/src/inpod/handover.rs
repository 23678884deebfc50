//! Listening sockets of pods pass from one proxy of a node to the next. Both accept from the same
//! sockets until the first one stops, so that no connection is lost on the way: the kernel resets
//! those that are being opened, or wait to be accepted, when it closes a socket for good.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use netns::NetNsId;
use netns::seqpacket::{AsyncSeqPacket, AsyncSeqPacketListener};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::pods::Pods;
use crate::data::ListenerKind;

/// Name of the socket on which a proxy hands over, beside the agent's socket.
const SOCKET: &str = "handover.sock";
/// How long the other proxy may take for a message. It is stopped or overloaded if it takes longer.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after `accept` failed.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// What a listening socket in a pod receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "protocol", content = "kind")]
pub(super) enum SocketKind {
    /// Connections.
    Tcp(ListenerKind),
    /// DNS queries over UDP.
    DnsOverUdp,
}

/// The listening sockets of a pod, kept for the next proxy.
pub(super) type SharedSockets = Rc<[(SocketKind, OwnedFd)]>;

/// The message that accompanies a socket.
#[derive(Serialize, Deserialize)]
struct Description {
    /// Device and inode number of the pod's network namespace, which the socket keeps alive.
    dev: u64,
    ino: u64,
    socket: SocketKind,
}

/// Sockets that the last proxy has handed over, by namespace.
#[derive(Default)]
pub(super) struct InheritedSockets(HashMap<NetNsId, Vec<(SocketKind, OwnedFd)>>);

impl InheritedSockets {
    /// Receives the sockets of the proxy that now runs on the node, if there is one.
    /// `agent_socket` is the path of the agent's socket.
    pub(super) async fn receive(agent_socket: &Path) -> Self {
        let mut sockets = Self::default();
        // This fails if no other proxy runs on the node.
        let Ok(connection) = AsyncSeqPacket::connect(agent_socket.with_file_name(SOCKET)) else {
            return sockets;
        };
        if let Err(e) = sockets.receive_all(&connection).await {
            tracing::warn!("cannot take over all sockets of the last proxy: {e}");
        }
        let pods = sockets.0.len();
        tracing::info!(pods, "took over the listening sockets of the last proxy");
        sockets
    }

    async fn receive_all(&mut self, connection: &AsyncSeqPacket) -> io::Result<()> {
        while let Some(mut packet) = timeout(MESSAGE_DEADLINE, connection.recv()).await?? {
            // Another version may have other sockets.
            let described = serde_json::from_slice(&packet.data);
            if let (Ok(Description { dev, ino, socket }), Some(fd)) = (described, packet.fds.pop())
            {
                let of_pod = self.0.entry(NetNsId { dev, ino }).or_default();
                of_pod.push((socket, fd));
            }
        }
        Ok(())
    }

    /// Removes the sockets of a pod.
    pub(super) fn take(&mut self, netns: NetNsId) -> Vec<(SocketKind, OwnedFd)> {
        self.0.remove(&netns).unwrap_or_default()
    }
}

/// Hands the sockets of all pods over to every proxy that asks for them, once this one has its
/// pods. Never returns.
pub(crate) async fn hand_over(pods: Rc<Pods>, agent_socket: &Path) {
    pods.until_synced().await;
    let path = agent_socket.with_file_name(SOCKET);
    let listener = match AsyncSeqPacketListener::replace(&path) {
        Ok(listener) => listener,
        Err(e) => {
            let path = path.display();
            tracing::warn!("cannot listen on {path} for the next proxy: {e}");
            return std::future::pending().await;
        }
    };
    loop {
        match listener.accept().await {
            Ok(next) => {
                let pods = pods.clone();
                tokio::task::spawn_local(async move {
                    if let Err(e) = send_all(&pods, &next).await {
                        tracing::warn!("cannot hand over to the next proxy: {e}");
                    }
                });
            }
            Err(e) => {
                tracing::warn!("cannot accept the connection of the next proxy: {e}");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn send_all(pods: &Pods, next: &AsyncSeqPacket) -> io::Result<()> {
    let peer = next.peer()?;
    if peer.uid != 0 {
        let error = format!("uid {} may not receive sockets: only root may", peer.uid);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, error));
    }
    let shared = pods.shared_sockets();
    tracing::info!(
        pid = peer.pid,
        pods = shared.len(),
        "handing over to the next proxy"
    );
    for (NetNsId { dev, ino }, sockets) in shared {
        for &(socket, ref fd) in sockets.iter() {
            let description = serde_json::to_vec(&Description { dev, ino, socket })?;
            let sent = next.send(&description, Some(fd.as_fd()));
            timeout(MESSAGE_DEADLINE, sent).await??;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proxies of different versions exchange these messages.
    #[test]
    fn descriptions_of_sockets_remain() {
        let describe = |socket| {
            let (dev, ino) = (4, 4026532007);
            serde_json::to_string(&Description { dev, ino, socket }).unwrap()
        };
        assert_eq!(
            describe(SocketKind::Tcp(ListenerKind::Hbone)),
            r#"{"dev":4,"ino":4026532007,"socket":{"protocol":"tcp","kind":"hbone"}}"#
        );
        assert_eq!(
            describe(SocketKind::DnsOverUdp),
            r#"{"dev":4,"ino":4026532007,"socket":{"protocol":"dnsOverUdp"}}"#
        );
    }
}
