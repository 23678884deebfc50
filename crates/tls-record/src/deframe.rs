//! Finds the ends of records in a stream of bytes.

use crate::error::RecordError;

/// Length of a record's header in bytes: type, version, length.
pub(crate) const HEADER: usize = 5;
/// Maximum length of an encrypted record without its header (RFC 8446, section 5.2).
const MAX_CIPHERTEXT: usize = (1 << 14) + 256;
/// Maximum length of a record in bytes.
pub const MAX_RECORD: usize = HEADER + MAX_CIPHERTEXT;

const CHANGE_CIPHER_SPEC: u8 = 20;
/// Every encrypted record has this type on the outside.
pub(crate) const APPLICATION_DATA: u8 = 23;

/// Returns the length of the record that `input` begins with, header included, or `None` while it
/// is incomplete.
///
/// The version in the header is ignored, as RFC 8446, section 5.1 demands.
pub(crate) fn record_length(input: &[u8]) -> Result<Option<usize>, RecordError> {
    let [kind, _, _, high, low, rest @ ..] = input else {
        return Ok(None);
    };
    match *kind {
        APPLICATION_DATA => {}
        CHANGE_CIPHER_SPEC => return Err(RecordError::ChangeCipherSpec),
        other => return Err(RecordError::Unencrypted(other)),
    }
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length > MAX_CIPHERTEXT {
        return Err(RecordError::RecordOverflow);
    }
    Ok((rest.len() >= length).then_some(HEADER + length))
}
