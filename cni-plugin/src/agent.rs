//! The client of the node agent, with one deadline for all messages.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use handoff::{FromAgent, FromPlugin};
use netns::NetNs;
use netns::seqpacket::SeqPacket;

use crate::failure::Failure;

/// Time limit for the agent to clean up after an ADD that it rejected.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to the node agent.
#[derive(Debug)]
pub(crate) struct Agent {
    socket: SeqPacket,
    deadline: Deadline,
}

/// The time limit of all messages on a connection.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    started: Instant,
    limit: Duration,
}

impl Deadline {
    /// The time left at `now`.
    fn left(&self, now: Instant) -> Result<Duration, Failure> {
        let left = self
            .limit
            .saturating_sub(now.saturating_duration_since(self.started));
        if left.is_zero() {
            Err(self.missed(now))
        } else {
            Ok(left)
        }
    }

    fn missed(&self, now: Instant) -> Failure {
        Failure::AgentSilent(now.saturating_duration_since(self.started).as_millis())
    }
}

/// Sends a request to the agent on `socket`, or on its default one, and returns the answer. `netns`
/// is the pod's network namespace, if the request is about one.
pub(crate) fn ask(
    socket: Option<&str>,
    limit: Duration,
    request: &FromPlugin,
    netns: Option<&NetNs>,
) -> Result<FromAgent, Failure> {
    let agent = Agent::connect(socket, limit)?;
    agent.send(request, netns.map(NetNs::as_fd))?;
    agent.receive()
}

impl Agent {
    /// Connects to the agent on `socket`, or on its default one. All later messages must complete
    /// within `limit` from now.
    pub(crate) fn connect(socket: Option<&str>, limit: Duration) -> Result<Self, Failure> {
        let started = Instant::now();
        let path = socket.unwrap_or(handoff::DEFAULT_SOCKET);
        let absent = |source| Failure::AgentAbsent {
            socket: path.to_owned(),
            source,
        };
        let socket = SeqPacket::connect(path).map_err(absent)?;
        let uid = socket.peer().map_err(absent)?.uid;
        if !is_trusted(uid, nix::unistd::geteuid().as_raw()) {
            return Err(Failure::UntrustedAgent {
                socket: path.to_owned(),
                uid,
            });
        }
        Ok(Self {
            socket,
            deadline: Deadline { started, limit },
        })
    }

    pub(crate) fn send(
        &self,
        message: &FromPlugin,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), Failure> {
        self.set_timeout()?;
        let bytes = serde_json::to_vec(message).map_err(|e| Failure::Internal(e.to_string()))?;
        self.socket.send(&bytes, fd).map_err(|e| self.broken(e))
    }

    pub(crate) fn receive(&self) -> Result<FromAgent, Failure> {
        self.set_timeout()?;
        let packet = self
            .socket
            .recv()
            .map_err(|e| self.broken(e))?
            .ok_or(Failure::AgentClosed)?;
        serde_json::from_slice(&packet.data).map_err(|e| Failure::UnexpectedReply(e.to_string()))
    }

    /// Waits until the agent closes the connection, after it has cleaned up, or for at most
    /// `CLEANUP_TIMEOUT`.
    pub(crate) fn await_close(&self) {
        let cleanup = Deadline {
            started: Instant::now(),
            limit: CLEANUP_TIMEOUT,
        };
        while let Ok(left) = cleanup.left(Instant::now()) {
            if self.socket.set_timeout(left).is_err() || !matches!(self.socket.recv(), Ok(Some(_)))
            {
                return;
            }
        }
    }

    /// Sets the socket's timeout to the time left until the deadline.
    fn set_timeout(&self) -> Result<(), Failure> {
        let left = self.deadline.left(Instant::now())?;
        self.socket.set_timeout(left).map_err(|e| self.broken(e))
    }

    fn broken(&self, error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.deadline.missed(Instant::now()),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Failure::AgentClosed,
            _ => Failure::AgentBroke(error),
        }
    }
}

/// Whether plans are accepted from a process of this user: root or the plugin's own user. The
/// latter matters in a user namespace, where uids other than its own are not mapped.
fn is_trusted(uid: u32, own: u32) -> bool {
    uid == 0 || uid == own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected(limit: Duration) -> (Agent, SeqPacket) {
        let (socket, peer) = SeqPacket::pair().unwrap();
        let deadline = Deadline {
            started: Instant::now(),
            limit,
        };
        (Agent { socket, deadline }, peer)
    }

    #[test]
    fn the_time_left_shrinks_to_zero_and_then_the_deadline_is_missed() {
        let started = Instant::now();
        let deadline = Deadline {
            started,
            limit: Duration::from_millis(300),
        };
        for (elapsed, left) in [(0, Some(300)), (299, Some(1)), (300, None), (1200, None)] {
            let result = deadline.left(started + Duration::from_millis(elapsed));
            match (result, left) {
                (Ok(found), Some(left)) => assert_eq!(found, Duration::from_millis(left)),
                (Err(Failure::AgentSilent(ms)), None) => assert_eq!(ms, u128::from(elapsed)),
                (result, left) => panic!("{result:?} instead of {left:?} after {elapsed} ms"),
            }
        }
    }

    #[test]
    fn the_largest_limit_does_not_overflow() {
        let limit = Duration::from_millis(u64::MAX);
        let (agent, _peer) = connected(limit);
        assert!(agent.send(&FromPlugin::Installed, None).is_ok());
        let left = agent.deadline.left(agent.deadline.started).unwrap();
        assert_eq!(left, limit);
    }

    #[test]
    fn each_way_to_lose_the_agent_has_its_own_failure() {
        let (agent, _peer) = connected(Duration::from_millis(20));
        assert!(matches!(agent.receive(), Err(Failure::AgentSilent(ms)) if ms >= 20));
        let expired = agent.send(&FromPlugin::Installed, None);
        assert!(matches!(expired, Err(Failure::AgentSilent(_))));

        let (agent, peer) = connected(Duration::from_secs(5));
        peer.send(b"{", None).unwrap();
        assert!(matches!(agent.receive(), Err(Failure::UnexpectedReply(_))));
        drop(peer);
        assert!(matches!(agent.receive(), Err(Failure::AgentClosed)));
        let sent = agent.send(&FromPlugin::Installed, None);
        assert!(matches!(sent, Err(Failure::AgentClosed)));
    }

    #[test]
    fn a_missing_agent_is_reported_with_its_socket() {
        let ask = ask(
            Some("/nonexistent/agent.sock"),
            Duration::from_secs(1),
            &FromPlugin::Status {
                version: handoff::VERSION,
            },
            None,
        );
        let socket = match ask {
            Err(Failure::AgentAbsent { socket, .. }) => socket,
            other => panic!("{other:?}"),
        };
        assert_eq!(socket, "/nonexistent/agent.sock");
    }

    #[test]
    fn only_root_and_the_own_user_are_trusted() {
        for (uid, own, trusted) in [(0, 0, true), (0, 7, true), (7, 7, true), (7, 0, false)] {
            assert_eq!(is_trusted(uid, own), trusted, "{uid} for {own}");
        }
    }
}
