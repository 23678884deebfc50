//! Received bytes become events.

use super::core::Core;
use crate::error::{ProtocolError, Violation};
use crate::event::Event;
use crate::frame::{Frame, FrameHead, Kind, Part};

impl Core {
    /// As [`crate::Connection::receive`].
    pub(super) fn receive(
        &mut self,
        input: &[u8],
        at: &mut usize,
        now_ms: u64,
    ) -> Result<Option<Event>, Violation> {
        if *at < input.len() {
            self.liveness.hear(now_ms);
        }
        loop {
            if let Some((id, change)) = self.changes.pop_front() {
                return Ok(Some(Event::Stream { id, change }));
            }
            if let Some(failure) = self.failure {
                return Err(failure);
            }
            let handled = match self.reader.read(input, at) {
                Ok(None) => return Ok(None),
                Ok(Some(part)) => self.handle(part, now_ms),
                Err(violation) => Err(violation.into()),
            };
            match handled {
                Ok(None) => {}
                Ok(Some(event)) => return Ok(Some(event)),
                Err(error) => self.handle_error(error, now_ms),
            }
        }
    }

    fn handle(&mut self, part: Part<'_>, now_ms: u64) -> Result<Option<Event>, ProtocolError> {
        match part {
            Part::Frame(head, payload) => {
                self.check_order(Some(head))?;
                self.handle_frame(Frame::parse(head, &payload)?, now_ms)
            }
            Part::DataHead { stream, length } => {
                self.check_order(None)?;
                self.begin_data(stream, length)?;
                Ok(None)
            }
            Part::Data(stream, range) => Ok(self.receive_data(stream, range)),
            Part::DataEnd { stream, end_stream } => {
                self.end_data(stream, end_stream, now_ms)?;
                Ok(None)
            }
            Part::Ignored => {
                self.check_order(None)?;
                self.patience.spend(now_ms)?;
                Ok(None)
            }
        }
    }

    /// Checks that SETTINGS come first, and that nothing interrupts a header block.
    fn check_order(&self, head: Option<FrameHead>) -> Result<(), Violation> {
        let kind = head.map(|head| head.kind);
        if !self.has_peer_settings && kind != Some(Kind::Settings) {
            return Err(Violation::NoSettings);
        }
        if self.block.is_some() && kind != Some(Kind::Continuation) {
            return Err(Violation::InterruptedHeaders);
        }
        Ok(())
    }

    fn handle_frame(
        &mut self,
        frame: Frame<'_>,
        now_ms: u64,
    ) -> Result<Option<Event>, ProtocolError> {
        match frame {
            Frame::Headers {
                stream,
                end_stream,
                end_headers,
                fragment,
            } => self.begin_headers(stream, end_stream, end_headers, fragment, now_ms),
            Frame::Continuation {
                stream,
                end_headers,
                fragment,
            } => self.continue_headers(stream, end_headers, fragment, now_ms),
            Frame::Reset { stream, code } => {
                self.receive_reset(stream, code, now_ms)?;
                Ok(None)
            }
            Frame::Settings(payload) => {
                self.patience.spend(now_ms)?;
                self.receive_settings(payload)?;
                Ok(Some(Event::Settings))
            }
            Frame::SettingsAck => {
                self.receive_settings_ack(now_ms)?;
                Ok(None)
            }
            Frame::Ping(payload) => {
                self.patience.spend(now_ms)?;
                self.answer_ping(payload);
                Ok(None)
            }
            Frame::Pong(payload) => {
                self.patience.spend(now_ms)?;
                self.receive_pong(payload, now_ms);
                Ok(None)
            }
            Frame::GoAway { last, code } => {
                self.patience.spend(now_ms)?;
                self.receive_go_away(last)?;
                Ok(Some(Event::GoAway { last, code }))
            }
            Frame::WindowUpdate { stream, increment } => {
                self.patience.spend(now_ms)?;
                self.receive_window_update(stream, increment)?;
                Ok(None)
            }
            Frame::Ignored => {
                self.patience.spend(now_ms)?;
                Ok(None)
            }
        }
    }
}
