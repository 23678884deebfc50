//! Alerts (RFC 8446, section 6).

use std::fmt;

use rustls::AlertDescription;
use serde::{Deserialize, Serialize};

use crate::error::RecordError;

const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// The description of an alert, a number that IANA registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert(pub u8);

impl Alert {
    /// The sender will send nothing more.
    pub const CLOSE_NOTIFY: Self = Self(0);
    /// A message that is not allowed here.
    pub const UNEXPECTED_MESSAGE: Self = Self(10);
    /// A record that does not open.
    pub const BAD_RECORD_MAC: Self = Self(20);
    /// A record that is too long.
    pub const RECORD_OVERFLOW: Self = Self(22);
    /// A field with a value that is not allowed.
    pub const ILLEGAL_PARAMETER: Self = Self(47);
    /// A message with a wrong length.
    pub const DECODE_ERROR: Self = Self(50);
    /// A limit of the sender, not an error of the receiver.
    pub const INTERNAL_ERROR: Self = Self(80);
    /// The sender cancels the handshake. It precedes `close_notify`, and is ignored.
    pub const USER_CANCELED: Self = Self(90);

    /// The content of an alert record.
    pub(crate) fn encode(self) -> [u8; 2] {
        match self {
            Self::CLOSE_NOTIFY | Self::USER_CANCELED => [WARNING, self.0],
            _ => [FATAL, self.0],
        }
    }

    /// Decodes the content of an alert record. The level is implicit in TLS 1.3 and is ignored.
    pub(crate) fn decode(content: &[u8]) -> Result<Self, RecordError> {
        match *content {
            [] => Err(RecordError::EmptyRecord),
            [_, description] => Ok(Self(description)),
            _ => Err(RecordError::AlertLength(content.len())),
        }
    }
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", AlertDescription::from(self.0))
    }
}
