//! The state of a stream (RFC 9113 section 5.1).

use serde::{Deserialize, Serialize};

use crate::window::{ReceiveWindow, SendWindow};

/// Which directions of a stream are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Both.
    Open,
    /// This side has finished.
    HalfClosedLocal,
    /// The peer has finished.
    HalfClosedRemote,
    /// Both sides have finished.
    Finished,
    /// The stream was reset by either side.
    Reset,
}

impl Phase {
    /// Whether the peer may send.
    pub(crate) fn can_receive(self) -> bool {
        matches!(self, Self::Open | Self::HalfClosedLocal)
    }
}

/// A stream.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stream {
    pub(crate) phase: Phase,
    /// Whether the response was sent or received.
    pub(crate) is_answered: bool,
    pub(crate) send: SendWindow,
    pub(crate) receive: ReceiveWindow,
    /// Whether the peer has sent data.
    pub(crate) has_data: bool,
    /// Whether the caller waits for a window to open.
    pub(crate) wants_credit: bool,
    /// By how much the receive window was enlarged, in bytes.
    pub(crate) growth: u32,
    /// When the receive window was last opened.
    pub(crate) granted_ms: Option<u64>,
}

impl Stream {
    pub(crate) fn new(send: SendWindow, receive: ReceiveWindow) -> Self {
        Self {
            phase: Phase::Open,
            is_answered: false,
            send,
            receive,
            has_data: false,
            wants_credit: false,
            growth: 0,
            granted_ms: None,
        }
    }

    /// Whether this side may send.
    pub(crate) fn can_send(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::HalfClosedRemote)
    }

    /// Whether the peer may send.
    pub(crate) fn can_receive(&self) -> bool {
        self.phase.can_receive()
    }

    /// Whether neither may send.
    pub(crate) fn is_closed(&self) -> bool {
        !self.can_send() && !self.can_receive()
    }

    /// This side has finished.
    pub(crate) fn finish_local(&mut self) {
        self.phase = match self.phase {
            Phase::Open => Phase::HalfClosedLocal,
            Phase::HalfClosedRemote => Phase::Finished,
            other => other,
        };
    }

    /// The peer has finished.
    pub(crate) fn finish_remote(&mut self) {
        self.phase = match self.phase {
            Phase::Open => Phase::HalfClosedRemote,
            Phase::HalfClosedLocal => Phase::Finished,
            other => other,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_close_one_by_one_and_a_reset_is_final() {
        let mut stream = Stream::new(SendWindow::new(0), ReceiveWindow::new(0, 0));
        assert!(stream.can_send() && stream.can_receive());
        stream.finish_local();
        assert!(!stream.can_send() && stream.can_receive() && !stream.is_closed());
        stream.finish_local();
        assert_eq!(stream.phase, Phase::HalfClosedLocal);
        stream.finish_remote();
        assert!(stream.is_closed());
        stream.phase = Phase::HalfClosedRemote;
        assert!(stream.can_send() && !stream.can_receive());
        stream.phase = Phase::Reset;
        stream.finish_local();
        stream.finish_remote();
        assert!(stream.phase == Phase::Reset && stream.is_closed());
    }
}
