//! Opens received records where they are.

use std::ops::Range;

use aws_lc_rs::aead::Aad;

use crate::deframe::HEADER;
use crate::error::RecordError;
use crate::keys::Keys;
use crate::seal::MAX_FRAGMENT;
use crate::state::Direction;
use crate::suite::Suite;

/// What an encrypted record contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Alert,
    Handshake,
    Data,
}

/// Opens the records of one direction, in order.
pub(crate) struct Opener(Keys);

impl Opener {
    pub(crate) fn new(suite: Suite, direction: Direction) -> Self {
        Self(Keys::new(suite, direction))
    }

    /// Decrypts a whole record in place. Returns what it contains, and where, without padding.
    pub(crate) fn open(
        &mut self,
        record: &mut [u8],
    ) -> Result<(Content, Range<usize>), RecordError> {
        let next = self.0.sequence.checked_add(1);
        let next = next.ok_or(RecordError::SequenceOverflow)?;
        let Some((header, ciphertext)) = record.split_first_chunk_mut::<HEADER>() else {
            return Err(RecordError::BadRecordMac);
        };
        let nonce = self.0.nonce();
        let plaintext = self
            .0
            .aead
            .open_in_place(nonce, Aad::from(&*header), ciphertext)
            .map_err(|_| RecordError::BadRecordMac)?;
        self.0.sequence = next;
        // Padding counts as well (RFC 8446, section 5.4).
        if plaintext.len() > MAX_FRAGMENT + 1 {
            return Err(RecordError::RecordOverflow);
        }
        let end = plaintext.iter().rposition(|byte| *byte != 0);
        let end = end.ok_or(RecordError::NoContentType)?;
        let content = match plaintext[end] {
            21 => Content::Alert,
            22 => Content::Handshake,
            23 => Content::Data,
            other => return Err(RecordError::ContentType(other)),
        };
        Ok((content, HEADER..HEADER + end))
    }

    /// Switches to the peer's next keys.
    pub(crate) fn update(&mut self) {
        self.0.update();
    }

    pub(crate) fn into_direction(self) -> Direction {
        self.0.into_direction()
    }
}
