//! DATA of the peer, and its flow control.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::core::Core;
use crate::error::{ProtocolError, StreamId, Violation};
use crate::event::{Change, Event};
use crate::frame::write;
use crate::settings::MAX_WINDOW;
use crate::stream::Phase;
use crate::window::Exceeded;

/// A stream is granted new bytes when they are at least this fraction of its window. Smaller
/// grants for an application that reads slowly would cost a frame each.
const STREAM_SHARE: i64 = 4;
/// Nearer peers are not limited by windows, and times in milliseconds do not tell whether they are.
const MIN_ROUND_TRIP_MS: u64 = 2;

/// The DATA frame that is being received.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DataFrame {
    /// Whether the data is not for a stream that receives.
    is_discarded: bool,
    /// What counts for flow control, in bytes.
    length: u32,
    /// What of it was not delivered yet, in the end the padding.
    left: u32,
}

impl Core {
    pub(super) fn begin_data(&mut self, id: StreamId, length: u32) -> Result<(), ProtocolError> {
        if self.is_idle(id) {
            return Err(Violation::UnexpectedStream.into());
        }
        let judged = self.judge_data(id, length);
        let is_discarded = !matches!(judged, Ok(true));
        let counted = self.receive_window.receive(length, is_discarded);
        counted.map_err(|Exceeded| Violation::WindowExceeded)?;
        self.frame = Some(DataFrame {
            is_discarded,
            length,
            left: length,
        });
        judged
            .map(|_| ())
            .map_err(|violation| ProtocolError::Stream(id, violation))
    }

    /// Whether the stream expects data; counts it if so.
    fn judge_data(&mut self, id: StreamId, length: u32) -> Result<bool, Violation> {
        let is_client = self.role == crate::Role::Client;
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(false);
        };
        match stream.phase {
            Phase::Reset => Ok(false),
            _ if !stream.can_receive() => Err(Violation::StreamClosed),
            _ if is_client && !stream.is_answered => Err(Violation::MalformedHead),
            _ => {
                let counted = stream.receive.receive(length, false);
                counted.map_err(|Exceeded| Violation::WindowExceeded)?;
                Ok(true)
            }
        }
    }

    pub(super) fn receive_data(&mut self, id: StreamId, range: Range<usize>) -> Option<Event> {
        let frame = self.frame.as_mut()?;
        let stream = self.streams.get_mut(&id)?;
        if frame.is_discarded || !stream.can_receive() {
            return None;
        }
        frame.left -= range.len() as u32;
        stream.has_data = true;
        Some(Event::Data { id, range })
    }

    pub(super) fn end_data(
        &mut self,
        id: StreamId,
        end_stream: bool,
        now_ms: u64,
    ) -> Result<(), Violation> {
        let Some(frame) = self.frame.take() else {
            return Ok(());
        };
        let is_empty = frame.length == 0 || !frame.is_discarded && frame.left == frame.length;
        if is_empty && !end_stream {
            self.patience.spend(now_ms)?;
        }
        if let Some(stream) = self.streams.get_mut(&id)
            && !frame.is_discarded
        {
            let padding = stream.receive.take(frame.left.into());
            self.receive_window.take(padding);
            if end_stream && stream.can_receive() {
                stream.finish_remote();
                self.report(id, Change::Ended);
            }
            if padding > 0 {
                self.grant_stream(id, now_ms);
            }
        }
        self.grant_connection();
        Ok(())
    }

    /// As [`crate::Connection::taken`].
    pub(super) fn take(&mut self, id: StreamId, bytes: usize, now_ms: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            let taken = stream.receive.take(bytes);
            self.receive_window.take(taken);
            self.grant_stream(id, now_ms);
            self.grant_connection();
        }
    }

    /// Opens the window of a stream if it is time, and enlarges it if it limits the peer.
    fn grant_stream(&mut self, id: StreamId, now_ms: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let window = &mut stream.receive;
        if !stream.phase.can_receive() || !window.is_due(STREAM_SHARE) {
            return;
        }
        let since = stream.granted_ms.replace(now_ms);
        let keeps_up = window.unread() <= window.size() / 4;
        let limits = match (since, self.liveness.round_trip_ms()) {
            // A quarter of a window or more was used within a round trip.
            (Some(since), Some(round_trip)) if round_trip >= MIN_ROUND_TRIP_MS => {
                now_ms.saturating_sub(since) <= round_trip
            }
            _ => false,
        };
        if keeps_up && limits {
            let budget = self.growth_budget.saturating_sub(self.growth);
            let room = i64::from(MAX_WINDOW) - window.size().max(self.receive_window.size());
            let more = window.size().min(room).clamp(0, MAX_WINDOW.into()) as u64;
            let more = more.min(budget);
            window.resize(more as i64);
            stream.growth += more as u32;
            self.growth += more;
            // The connection's window remains large enough for all.
            self.receive_window.resize(more as i64);
        }
        write::window_update(&mut self.out, id, window.grant());
    }

    /// Opens the window of the connection if it is time.
    pub(super) fn grant_connection(&mut self) {
        // Any share: stalled streams may keep most of the window.
        if self.receive_window.is_due(i64::MAX) {
            let increment = self.receive_window.grant();
            write::window_update(&mut self.out, StreamId::CONNECTION, increment);
        }
    }

    /// Removes a stream, which the caller no longer reads.
    pub(super) fn forget(&mut self, id: StreamId) {
        self.changes.retain(|(of, _)| *of != id);
        if let Some(stream) = self.streams.remove(&id) {
            self.receive_window.take(stream.receive.unread());
            self.growth -= u64::from(stream.growth);
            self.receive_window.resize(-i64::from(stream.growth));
            self.grant_connection();
        }
    }
}
