//! GOAWAY in both directions, and the orderly end of a connection.

use serde::{Deserialize, Serialize};

use super::core::Core;
use crate::config::Role;
use crate::error::{ErrorCode, StreamId, Violation};
use crate::event::Change;
use crate::frame::write;
use crate::stream::Phase;

/// The ping behind the first GOAWAY: its answer shows that the client has read it.
const DRAIN_PING: [u8; 8] = *b"draining";

/// How far this side has announced that it accepts no more streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Drain {
    /// Not at all.
    Serving,
    /// It has, and accepts those that were on the way.
    Announced,
    /// It accepts none after this one.
    Final(StreamId),
}

impl Drain {
    /// Whether a new stream is not accepted.
    pub(super) fn is_refused(self, id: StreamId) -> bool {
        matches!(self, Self::Final(last) if id > last)
    }
}

impl Core {
    /// As [`crate::Connection::drain`].
    pub(super) fn start_drain(&mut self) {
        if self.drain != Drain::Serving || self.failure.is_some() {
            return;
        }
        match self.role {
            Role::Server => {
                write::go_away(&mut self.out, StreamId::MAX, ErrorCode::NO_ERROR, "");
                write::ping(&mut self.out, DRAIN_PING, false);
                self.drain = Drain::Announced;
            }
            Role::Client => self.finish_drain(),
        }
    }

    fn finish_drain(&mut self) {
        write::go_away(&mut self.out, self.last_of_peer, ErrorCode::NO_ERROR, "");
        self.drain = Drain::Final(self.last_of_peer);
    }

    pub(super) fn answer_ping(&mut self, payload: [u8; 8]) {
        write::ping(&mut self.out, payload, true);
    }

    pub(super) fn receive_pong(&mut self, payload: [u8; 8], now_ms: u64) {
        if payload == DRAIN_PING && self.drain == Drain::Announced {
            self.finish_drain();
        } else {
            self.liveness.receive_pong(payload, now_ms);
        }
    }

    pub(super) fn receive_go_away(&mut self, last: StreamId) -> Result<(), Violation> {
        if self.peer_last.is_some_and(|before| last > before) {
            return Err(Violation::GoAwayIncreased);
        }
        self.peer_last = Some(last);
        if self.role == Role::Client {
            let refused = self.streams.range_mut(StreamId(last.0 + 1)..);
            for (id, stream) in refused {
                if !stream.is_closed() {
                    stream.phase = Phase::Reset;
                    self.changes.push_back((*id, Change::Refused));
                }
            }
        }
        Ok(())
    }

    /// Whether an end has announced that it accepts no more streams.
    pub(super) fn is_draining(&self) -> bool {
        self.drain != Drain::Serving || self.peer_last.is_some()
    }

    /// As [`crate::Connection::is_finished`].
    pub(super) fn has_finished(&self) -> bool {
        let no_more = match (self.role, self.drain) {
            (_, Drain::Final(_)) => true,
            (Role::Client, _) => self.peer_last.is_some(),
            (Role::Server, _) => false,
        };
        self.failure.is_some() || no_more && self.open_streams() == 0
    }
}
