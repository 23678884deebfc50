//! What can go wrong with a connection.

use serde::{Deserialize, Serialize};

use crate::alert::Alert;

/// Why nothing more is received on a connection. All but [`Truncated`](Self::Truncated) are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum RecordError {
    /// The peer closed the connection because of an error.
    #[error("the peer sent the alert {0}")]
    PeerAlert(Alert),
    /// The byte stream ended without `close_notify`: the peer crashed, or the connection was cut.
    #[error("the connection ended without close_notify")]
    Truncated,
    /// A `change_cipher_spec` record, which is only allowed during the handshake.
    #[error("received change_cipher_spec after the handshake")]
    ChangeCipherSpec,
    /// A record that is not encrypted. Likely cause: the stream is not TLS, or is out of step.
    #[error("received an unencrypted record of type {0}")]
    Unencrypted(u8),
    /// A record longer than 2^14 bytes of content, or than 256 bytes more when encrypted.
    #[error("received a record that is too long")]
    RecordOverflow,
    /// A record that was changed on its way, or whose sender has other keys.
    #[error("received a record that cannot be decrypted")]
    BadRecordMac,
    /// A record that consists of padding only.
    #[error("received a record without a content type")]
    NoContentType,
    /// A record of a type that TLS 1.3 does not encrypt, such as `change_cipher_spec`.
    #[error("received an encrypted record of type {0}")]
    ContentType(u8),
    /// An alert or handshake record without content.
    #[error("received an empty alert or handshake record")]
    EmptyRecord,
    /// An alert that is not two bytes long.
    #[error("received an alert record of {0} bytes")]
    AlertLength(usize),
    /// Too many records in a row without application data.
    #[error("received too many records without data")]
    TooManyWithoutData,
    /// Another record within a handshake message.
    #[error("received another record within a handshake message")]
    InterleavedHandshake,
    /// A handshake message that is not allowed after the handshake, or not from this peer.
    #[error("received handshake message {0} after the handshake")]
    UnexpectedMessage(u8),
    /// A session ticket that is longer than accepted.
    #[error("received a session ticket of {0} bytes")]
    TicketLength(u32),
    /// A key update that is not one byte long.
    #[error("received a key update with a wrong length")]
    KeyUpdateLength,
    /// A key update that neither requests an update nor does not request one.
    #[error("received a key update with value {0}")]
    KeyUpdateValue(u8),
    /// A key update with more behind it in its record, which would be under the previous keys.
    #[error("received a key update that does not end its record")]
    KeyUpdateNotLast,
    /// The peer has used all sequence numbers of its keys.
    #[error("the peer did not update its keys in time")]
    SequenceOverflow,
}

impl RecordError {
    /// The alert that reports this error to the peer, if one does.
    pub fn alert(self) -> Option<Alert> {
        match self {
            Self::PeerAlert(_) | Self::Truncated => None,
            Self::ChangeCipherSpec
            | Self::Unencrypted(_)
            | Self::NoContentType
            | Self::ContentType(_)
            | Self::EmptyRecord
            | Self::TooManyWithoutData
            | Self::InterleavedHandshake
            | Self::UnexpectedMessage(_)
            | Self::KeyUpdateNotLast => Some(Alert::UNEXPECTED_MESSAGE),
            Self::RecordOverflow => Some(Alert::RECORD_OVERFLOW),
            Self::BadRecordMac => Some(Alert::BAD_RECORD_MAC),
            Self::AlertLength(_) | Self::KeyUpdateLength | Self::TicketLength(_) => {
                Some(Alert::DECODE_ERROR)
            }
            Self::KeyUpdateValue(_) => Some(Alert::ILLEGAL_PARAMETER),
            Self::SequenceOverflow => Some(Alert::INTERNAL_ERROR),
        }
    }
}

/// Why a record is not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum SealError {
    /// `close_notify` or a fatal alert was sent or received.
    #[error("the connection is closed for sending")]
    Closed,
    /// The content of one record is longer than [`MAX_FRAGMENT`](crate::MAX_FRAGMENT).
    #[error("a record cannot contain {0} bytes")]
    TooLong(usize),
    /// The keys have encrypted as many records as AES-GCM allows, and were not updated.
    #[error("the keys have encrypted too many records")]
    KeysExhausted,
}

/// A [`RecordState`](crate::RecordState) that no connection can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidState {
    /// A traffic secret has not the length that the cipher suite needs.
    #[error("a traffic secret does not match the cipher suite")]
    SecretLength,
    /// The sending keys have encrypted too many records.
    #[error("the sending keys have encrypted {0} records")]
    KeysExhausted(u64),
    /// An incomplete handshake message is longer than one can be.
    #[error("an incomplete handshake message has {0} bytes")]
    PartialMessage(usize),
}
