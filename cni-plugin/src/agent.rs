//! The conversation with the node agent, under one deadline.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use handoff::{FromAgent, FromPlugin};
use netns::seqpacket::SeqPacket;

use crate::failure::Failure;

/// How long the agent may take to undo an ADD that it refused.
const UNDOING: Duration = Duration::from_secs(1);

/// A connection to the node agent.
pub(crate) struct Agent {
    socket: SeqPacket,
    started: Instant,
    deadline: Instant,
}

impl Agent {
    /// Connects; whatever is said later is said before `limit` has passed.
    pub(crate) fn connect(path: &str, limit: Duration) -> Result<Self, Failure> {
        let started = Instant::now();
        let absent = |source| Failure::AgentAbsent { socket: path.to_owned(), source };
        let socket = SeqPacket::connect(path).map_err(absent)?;
        // Rules are taken from root, or from whoever we are (in a user namespace everybody is root or nobody).
        let peer = socket.peer().map_err(absent)?.uid;
        if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
            return Err(Failure::AgentIsNobody { socket: path.to_owned(), uid: peer });
        }
        Ok(Self { socket, started, deadline: started + limit })
    }

    pub(crate) fn send(&self, message: &FromPlugin, fd: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
        self.arm()?;
        let bytes = serde_json::to_vec(message).map_err(|e| Failure::Internal(e.to_string()))?;
        self.socket.send(&bytes, fd).map_err(|e| self.broken(e))
    }

    pub(crate) fn receive(&self) -> Result<FromAgent, Failure> {
        self.arm()?;
        let packet = self.socket.recv().map_err(|e| self.broken(e))?.ok_or(Failure::AgentClosed)?;
        serde_json::from_slice(&packet.data).map_err(|e| Failure::AgentConfused(e.to_string()))
    }

    /// Waits until the agent has closed the connection: it has then undone what it did for this pod. One that hangs is not
    /// waited for.
    pub(crate) fn await_close(&self) {
        let until = Instant::now() + UNDOING;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if self.socket.set_timeout(left).is_err() || !matches!(self.socket.recv(), Ok(Some(_))) {
                return;
            }
        }
    }

    fn arm(&self) -> Result<(), Failure> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.silent());
        }
        self.socket.set_timeout(left).map_err(|e| self.broken(e))
    }

    fn broken(&self, error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.silent(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Failure::AgentClosed,
            _ => Failure::AgentBroke(error),
        }
    }

    fn silent(&self) -> Failure {
        Failure::AgentSilent(self.started.elapsed().as_millis())
    }
}
