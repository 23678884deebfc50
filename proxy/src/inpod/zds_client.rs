//! The connection to the node agent. Pods continue to be served while the agent is unreachable.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use error_code::proxy::{AGENT_CONNECTION, AGENT_REQUEST};
use netns::seqpacket::{AsyncSeqPacket, Packet};
use netns::{NetNs, NetNsId};
use tokio::time::{Instant, timeout};
use zds::codec::CodecError;
use zds::proxy::{Command, Session, answer, hello};

use super::pods::Pods;

const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause while no process listens on the agent's socket. Short, because starting pods wait
/// for the connection and connecting locally is cheap.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause after connections that failed, which cost both ends more, and are logged.
const LONGEST_PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(2);

/// How long the agent may take for a message of its snapshot, or to make room for an answer.
const AGENT_DEADLINE: Duration = Duration::from_secs(5);

/// Interval between retries of pods that cannot be served, like ztunnel's.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Why a connection to the agent ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the agent closed the connection")]
    Closed,
    #[error("the agent sent nothing for {} s within its snapshot", AGENT_DEADLINE.as_secs())]
    Silent,
    #[error("the agent did not read an answer within {} s", AGENT_DEADLINE.as_secs())]
    Unread,
    #[error("the agent sent an invalid message: {0}")]
    Protocol(#[from] CodecError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

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
    let mut pause = FIRST_PAUSE;
    let mut outage = Outage::default();
    loop {
        let began = Instant::now();
        let longest = match AsyncSeqPacket::connect(socket) {
            Ok(connection) => {
                tracing::info!(socket = %socket.display(), "connected to the node agent");
                outage = Outage::default();
                session.reconnected();
                pods.begin_snapshot();
                let Err(e) = serve_requests(&pods, &mut session, &connection).await;
                tracing::warn!("{AGENT_CONNECTION}: {e}; pods stay served");
                pods.synced.set(false);
                if session.snapshot_complete() && began.elapsed() > LONGEST_PAUSE_AFTER_FAILURE {
                    pause = FIRST_PAUSE;
                }
                LONGEST_PAUSE_AFTER_FAILURE
            }
            Err(e) => {
                outage.report(socket, &e);
                LONGEST_PAUSE
            }
        };
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// A time without a connection, which is reported once.
#[derive(Default)]
struct Outage {
    since: Option<Instant>,
    is_reported: bool,
}

impl Outage {
    fn report(&mut self, socket: &Path, error: &io::Error) {
        let socket = socket.display();
        tracing::debug!("cannot connect to {socket}: {error}");
        let since = *self.since.get_or_insert_with(Instant::now);
        if !self.is_reported && since.elapsed() >= AGENT_DEADLINE {
            self.is_reported = true;
            tracing::warn!("{AGENT_CONNECTION}: cannot connect to {socket}: {error}");
        }
    }
}

/// Handles the agent's requests until the connection ends.
async fn serve_requests(
    pods: &Pods,
    session: &mut Session<NetNsId>,
    connection: &AsyncSeqPacket,
) -> Result<Infallible, ConnectionError> {
    send(connection, &hello()?).await?;
    loop {
        let received = connection.recv();
        // An agent without changes is silent once its snapshot is complete.
        let received = if session.snapshot_complete() {
            received.await
        } else {
            let limited = timeout(AGENT_DEADLINE, received).await;
            limited.map_err(|_| ConnectionError::Silent)?
        };
        let packet = received?.ok_or(ConnectionError::Closed)?;
        let outcome = handle(pods, session, packet)?;
        if let Err(reason) = &outcome {
            tracing::warn!("rejected a request of the node agent: {reason}");
        }
        let outcome = outcome.as_ref().copied().map_err(String::as_str);
        send(connection, &answer(outcome)?).await?;
    }
}

async fn send(connection: &AsyncSeqPacket, message: &[u8]) -> Result<(), ConnectionError> {
    let sent = timeout(AGENT_DEADLINE, connection.send(message, None)).await;
    Ok(sent.map_err(|_| ConnectionError::Unread)??)
}

/// Handles one request; returns the answer, which is an error if nothing was changed.
fn handle(
    pods: &Pods,
    session: &mut Session<NetNsId>,
    packet: Packet,
) -> Result<Result<(), String>, CodecError> {
    let mut namespaces = namespaces_of_pods(packet.fds);
    let ids = namespaces.iter().map(NetNs::id).collect();
    let rejected = |reason: &str| Err(format!("{AGENT_REQUEST}: {reason}"));
    Ok(match session.handle(&packet.data, ids)? {
        Command::Start {
            uid,
            info,
            replaces,
            ..
        } => {
            let started = match namespaces.pop() {
                Some(netns) => pods.start(&uid, info, netns).map_err(|e| e.to_string()),
                None => rejected("Add without a network namespace"), // the session requires one
            };
            match &started {
                Ok(()) => replaces.iter().for_each(|uid| pods.stop(uid)),
                Err(_) => session.start_failed(&uid),
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
        Command::Reject(reason) => rejected(&reason),
    })
}

/// The network namespaces among these descriptors, but for the proxy's own, where it must not
/// capture anything. The others are closed, and the session rejects the request.
fn namespaces_of_pods(fds: Vec<std::os::fd::OwnedFd>) -> Vec<NetNs> {
    if fds.is_empty() {
        return Vec::new();
    }
    let own = NetNs::current().ok().map(|own| own.id());
    let namespaces = fds.into_iter().filter_map(|fd| NetNs::from_fd(fd).ok());
    namespaces.filter(|ns| Some(ns.id()) != own).collect()
}
