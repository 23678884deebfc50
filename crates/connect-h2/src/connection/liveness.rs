//! Whether the peer is alive: everything that it sends shows it, and pings ask for it.

use serde::{Deserialize, Serialize};

use super::core::Core;
use crate::error::Violation;
use crate::frame::write;

/// What is known about the life of the peer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Liveness {
    started_ms: u64,
    /// When anything was last received.
    heard_ms: u64,
    /// The number of the ping that is not answered, and when it was sent.
    ping: Option<(u64, u64)>,
    pings: u64,
    /// The shortest time between a ping or the first settings and the answer.
    round_trip_ms: Option<u64>,
}

impl Liveness {
    pub(super) fn new(now_ms: u64) -> Self {
        Self {
            started_ms: now_ms,
            heard_ms: now_ms,
            ping: None,
            pings: 0,
            round_trip_ms: None,
        }
    }

    pub(super) fn hear(&mut self, now_ms: u64) {
        self.heard_ms = self.heard_ms.max(now_ms);
    }

    pub(super) fn heard_ms(&self) -> u64 {
        self.heard_ms
    }

    /// The shortest round trip seen, at least 1 ms.
    pub(super) fn round_trip_ms(&self) -> Option<u64> {
        self.round_trip_ms
    }

    pub(super) fn receive_pong(&mut self, payload: [u8; 8], now_ms: u64) {
        if let Some((number, sent_ms)) = self.ping
            && payload == number.to_be_bytes()
        {
            self.ping = None;
            self.measure(sent_ms, now_ms);
        }
    }

    /// The peer has acknowledged the settings, which were sent at the start.
    pub(super) fn receive_settings_ack(&mut self, now_ms: u64) {
        self.measure(self.started_ms, now_ms);
    }

    fn measure(&mut self, sent_ms: u64, now_ms: u64) {
        let round_trip = now_ms.saturating_sub(sent_ms).max(1);
        let before = self.round_trip_ms.unwrap_or(u64::MAX);
        self.round_trip_ms = Some(before.min(round_trip));
    }
}

impl Core {
    /// Sends a ping, unless one is not answered yet.
    pub(super) fn send_ping(&mut self, now_ms: u64) {
        if self.liveness.ping.is_none() && self.failure.is_none() {
            self.liveness.pings += 1;
            let number = self.liveness.pings;
            self.liveness.ping = Some((number, now_ms));
            write::ping(&mut self.out, number.to_be_bytes(), false);
        }
    }

    /// As [`crate::Connection::tick`].
    pub(super) fn tick(&mut self, now_ms: u64) -> Result<(), Violation> {
        if self.failure.is_none() {
            if self.settings_deadline().is_some_and(|due| now_ms >= due) {
                self.fail(Violation::SettingsTimeout);
            } else if now_ms >= self.liveness_deadline() {
                match self.liveness.ping {
                    Some(_) => self.fail(Violation::PingTimeout),
                    None => self.send_ping(now_ms),
                }
            }
        }
        self.failure.map_or(Ok(()), Err)
    }

    /// As [`crate::Connection::deadline_ms`].
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        if self.failure.is_some() {
            return None;
        }
        let settings = self.settings_deadline().unwrap_or(u64::MAX);
        Some(settings.min(self.liveness_deadline()))
    }

    fn settings_deadline(&self) -> Option<u64> {
        let is_complete = self.has_peer_settings && self.is_acknowledged;
        let due = self
            .liveness
            .started_ms
            .saturating_add(self.config.settings_ms);
        (!is_complete).then_some(due)
    }

    /// When the peer must be pinged, or have sent something.
    fn liveness_deadline(&self) -> u64 {
        let heard = self.liveness.heard_ms;
        match self.liveness.ping {
            Some((_, sent)) => sent
                .max(heard)
                .saturating_add(self.config.keepalive_answer_ms),
            None => heard.saturating_add(self.config.keepalive_idle_ms),
        }
    }
}
