//! Handshake messages after the handshake (RFC 8446, section 4.6): key updates, and session
//! tickets, which are skipped. Both can be spread over several records.

use serde::{Deserialize, Serialize};

use crate::error::RecordError;
use crate::state::Role;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// Length of a key update: type, length, and whether an update is requested.
const KEY_UPDATE_LEN: usize = 5;
/// Maximum length of a session ticket in bytes; rustls and OpenSSL accept no longer ones.
const MAX_TICKET: u32 = u16::MAX as u32;

/// Announces that the sender has changed its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyUpdate {
    NotRequested,
    /// The sender demands that the receiver changes its own keys as well.
    Requested,
}

impl KeyUpdate {
    pub(crate) fn encode(self) -> [u8; KEY_UPDATE_LEN] {
        [KEY_UPDATE, 0, 0, 1, u8::from(self == Self::Requested)]
    }
}

/// An incomplete message.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct PostHandshake {
    /// The beginning of a message whose kind and length are not known yet, or of a key update.
    begun: Vec<u8>,
    /// Bytes of a session ticket that are still to come.
    ticket: u32,
}

impl PostHandshake {
    pub(crate) fn is_incomplete(&self) -> bool {
        !self.begun.is_empty() || self.ticket > 0
    }

    /// Length of what is kept of an incomplete message, if that is more than there can be.
    pub(crate) fn excess(&self) -> Option<usize> {
        (self.begun.len() >= KEY_UPDATE_LEN).then_some(self.begun.len())
    }

    /// Takes the content of a handshake record. At most one key update is in it, at its end.
    pub(crate) fn receive(
        &mut self,
        role: Role,
        mut content: &[u8],
    ) -> Result<Option<KeyUpdate>, RecordError> {
        if content.is_empty() {
            return Err(RecordError::EmptyRecord);
        }
        loop {
            let skipped = content.len().min(self.ticket as usize);
            self.ticket -= skipped as u32;
            let Some((first, rest)) = content[skipped..].split_first() else {
                return Ok(None);
            };
            content = rest;
            self.begun.push(*first);
            match *self.begun {
                [NEW_SESSION_TICKET, a, b, c] if role == Role::Client => {
                    self.ticket = u32::from_be_bytes([0, a, b, c]);
                    self.begun.clear();
                    if self.ticket > MAX_TICKET {
                        return Err(RecordError::TicketLength(self.ticket));
                    }
                }
                [KEY_UPDATE, a, b, c] if [a, b, c] != [0, 0, 1] => {
                    return Err(RecordError::KeyUpdateLength);
                }
                [KEY_UPDATE, _, _, _, request] => {
                    self.begun.clear();
                    if !content.is_empty() {
                        return Err(RecordError::KeyUpdateNotLast);
                    }
                    return match request {
                        0 => Ok(Some(KeyUpdate::NotRequested)),
                        1 => Ok(Some(KeyUpdate::Requested)),
                        other => Err(RecordError::KeyUpdateValue(other)),
                    };
                }
                [KEY_UPDATE, ..] => {}
                [NEW_SESSION_TICKET, ..] if role == Role::Client => {}
                _ => return Err(RecordError::UnexpectedMessage(self.begun[0])),
            }
        }
    }
}
