//! The connection to the node agent. Pods go on being served while it is away.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use netns::seqpacket::AsyncSeqPacket;
use netns::{NetNs, NetNsId};
use zds::proxy::{Command, Session, answer, hello};

use super::pods::Pods;

const FIRST_BACKOFF: Duration = Duration::from_millis(10);
/// Short, for pods that start wait for it, and a local connect costs nothing.
const LONGEST_BACKOFF: Duration = Duration::from_millis(500);

/// How often pods that cannot be served are tried again, as ztunnel does.
const RETRY: Duration = Duration::from_secs(5);

/// Follows the agent for as long as the process lives.
pub(crate) async fn follow(pods: Rc<Pods>, socket: &Path) {
    let of_retries = pods.clone();
    tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(RETRY).await;
            of_retries.retry();
        }
    });
    let mut session = Session::new();
    let mut backoff = FIRST_BACKOFF;
    loop {
        match AsyncSeqPacket::connect(socket) {
            Ok(connection) => {
                tracing::info!(socket = %socket.display(), "connected to the node agent");
                backoff = FIRST_BACKOFF;
                session.reconnected();
                pods.begin_snapshot();
                if let Err(e) = converse(&pods, &mut session, &connection).await {
                    tracing::warn!("the connection to the node agent ended: {e:#}");
                }
                pods.synced.set(false);
            }
            Err(e) => tracing::debug!(socket = %socket.display(), "the node agent is away: {e}"),
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}

async fn converse(pods: &Pods, session: &mut Session<NetNsId>, connection: &AsyncSeqPacket) -> anyhow::Result<()> {
    connection.send(&hello()?, None).await?;
    while let Some(packet) = connection.recv().await? {
        // A descriptor that is no network namespace counts as none, which the session refuses by name.
        let mut namespaces: Vec<NetNs> = packet.fds.into_iter().filter_map(|fd| NetNs::from_fd(fd).ok()).collect();
        let ids = namespaces.iter().map(NetNs::id).collect();
        let outcome = match session.handle(&packet.data, ids)? {
            Command::Start { uid, info, .. } => {
                let netns = namespaces.pop().context("the session saw a namespace")?;
                let started = pods.start(&uid, info, netns).map_err(|e| e.to_string());
                if started.is_err() {
                    session.forget(&uid);
                }
                started
            }
            Command::GoOn => Ok(()),
            Command::Stop { uid } => {
                pods.stop(&uid);
                Ok(())
            }
            Command::SnapshotComplete { gone } => {
                gone.iter().for_each(|uid| pods.stop(uid));
                pods.synced.set(true);
                Ok(())
            }
            Command::Refuse(why) => Err(why),
        };
        if let Err(why) = &outcome {
            tracing::warn!("a request of the node agent was refused: {why}");
        }
        connection.send(&answer(outcome.as_ref().copied().map_err(String::as_str))?, None).await?;
    }
    bail!("the agent closed it")
}
