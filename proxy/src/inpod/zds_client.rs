//! The connection to the node agent. Pods continue to be served while the agent is unreachable.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use netns::seqpacket::AsyncSeqPacket;
use netns::{NetNs, NetNsId};
use zds::proxy::{Command, Session, answer, hello};

use super::pods::Pods;

const FIRST_BACKOFF: Duration = Duration::from_millis(10);
/// Short, because starting pods wait for the connection and connecting locally is cheap.
const LONGEST_BACKOFF: Duration = Duration::from_millis(500);

/// Interval between retries of pods that cannot be served, like ztunnel's.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Takes over from the last proxy, and then follows the agent, reconnecting when the connection
/// closes. Never returns.
pub(crate) async fn follow_agent(pods: Rc<Pods>, socket: &Path) {
    let retried = pods.clone();
    tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(RETRY_INTERVAL).await;
            retried.retry();
        }
    });
    pods.inherit(socket).await;
    let mut session = Session::new();
    let mut backoff = FIRST_BACKOFF;
    loop {
        match AsyncSeqPacket::connect(socket) {
            Ok(connection) => {
                tracing::info!(socket = %socket.display(), "connected to the node agent");
                backoff = FIRST_BACKOFF;
                session.reconnected();
                pods.begin_snapshot();
                if let Err(e) = serve_requests(&pods, &mut session, &connection).await {
                    tracing::warn!("disconnected from the node agent: {e:#}");
                }
                pods.synced.set(false);
            }
            Err(e) => {
                let socket = socket.display();
                tracing::debug!(%socket, "cannot connect to the node agent: {e}");
            }
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}

/// Handles the agent's requests until the connection closes.
async fn serve_requests(
    pods: &Pods,
    session: &mut Session<NetNsId>,
    connection: &AsyncSeqPacket,
) -> anyhow::Result<()> {
    connection.send(&hello()?, None).await?;
    while let Some(packet) = connection.recv().await? {
        // Descriptors other than network namespaces are dropped; the session rejects the request.
        let fds = packet.fds.into_iter();
        let mut namespaces: Vec<NetNs> = fds.filter_map(|fd| NetNs::from_fd(fd).ok()).collect();
        let ids = namespaces.iter().map(NetNs::id).collect();
        let outcome = match session.handle(&packet.data, ids)? {
            Command::Start { uid, info, .. } => {
                let netns = namespaces
                    .pop()
                    .context("the session accepted a request without a network namespace")?;
                let started = pods.start(&uid, info, netns).map_err(|e| e.to_string());
                if started.is_err() {
                    session.forget(&uid);
                }
                started
            }
            Command::Continue => Ok(()),
            Command::Stop { uid } => {
                pods.stop(&uid);
                Ok(())
            }
            Command::SnapshotComplete { removed } => {
                removed.iter().for_each(|uid| pods.stop(uid));
                pods.complete_snapshot();
                Ok(())
            }
            Command::Reject(reason) => Err(reason),
        };
        if let Err(reason) = &outcome {
            tracing::warn!("rejected a request of the node agent: {reason}");
        }
        let answer = answer(outcome.as_ref().copied().map_err(String::as_str))?;
        connection.send(&answer, None).await?;
    }
    bail!("the agent closed the connection")
}
