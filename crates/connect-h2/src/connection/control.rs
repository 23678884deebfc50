//! SETTINGS, WINDOW_UPDATE and RST_STREAM of the peer.

use super::core::Core;
use crate::config::Role;
use crate::error::{ErrorCode, ProtocolError, StreamId, Violation};
use crate::event::Change;
use crate::frame::write;
use crate::settings::DEFAULT_WINDOW;
use crate::stream::Phase;
use crate::window::Overflow;

impl Core {
    pub(super) fn receive_settings(&mut self, payload: &[u8]) -> Result<(), Violation> {
        let before = self.peer.initial_window;
        self.peer.apply(payload)?;
        if self.role == Role::Client && self.peer.enable_push {
            return Err(Violation::InvalidSetting);
        }
        let change = i64::from(self.peer.initial_window) - i64::from(before);
        for stream in self.streams.values_mut() {
            let adjusted = stream.send.adjust(change);
            adjusted.map_err(|Overflow| Violation::SettingOverflowsWindow)?;
        }
        self.has_peer_settings = true;
        write::settings_ack(&mut self.out);
        self.report_credit();
        Ok(())
    }

    pub(super) fn receive_settings_ack(&mut self, now_ms: u64) -> Result<(), Violation> {
        if self.is_acknowledged {
            return Err(Violation::UnexpectedAcknowledgement);
        }
        self.is_acknowledged = true;
        self.liveness.receive_settings_ack(now_ms);
        self.decoder.set_max_table(self.config.header_table);
        let window = i64::from(self.config.stream_window);
        let change = window - window.max(DEFAULT_WINDOW.into());
        for stream in self.streams.values_mut() {
            stream.receive.adjust(change);
        }
        Ok(())
    }

    pub(super) fn receive_window_update(
        &mut self,
        id: StreamId,
        increment: u32,
    ) -> Result<(), ProtocolError> {
        if id.is_connection() {
            let opened = self.send_window.adjust(increment.into());
            opened.map_err(|Overflow| Violation::WindowOverflow)?;
            self.report_credit();
        } else if let Some(stream) = self.streams.get_mut(&id) {
            if stream.phase != Phase::Reset {
                let opened = stream.send.adjust(increment.into());
                opened.map_err(|Overflow| ProtocolError::Stream(id, Violation::WindowOverflow))?;
            }
            self.report_credit_of(id..=id);
        } else if self.is_idle(id) {
            return Err(Violation::UnexpectedStream.into());
        }
        Ok(())
    }

    pub(super) fn receive_reset(
        &mut self,
        id: StreamId,
        code: ErrorCode,
        now_ms: u64,
    ) -> Result<(), Violation> {
        if self.is_idle(id) {
            return Err(Violation::UnexpectedStream);
        }
        self.patience.spend(now_ms)?;
        let is_client = self.role == Role::Client;
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        if stream.is_closed() {
            return Ok(());
        }
        let has_ended = !stream.can_receive();
        let change = match code {
            ErrorCode::REFUSED_STREAM if is_client && !stream.is_answered => Change::Refused,
            ErrorCode::NO_ERROR => Change::Finished { code },
            ErrorCode::CANCEL if has_ended => Change::Finished { code },
            _ => Change::Reset {
                code,
                has_data: stream.has_data,
            },
        };
        stream.phase = Phase::Reset;
        self.report(id, change);
        Ok(())
    }
}
