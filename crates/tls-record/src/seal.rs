//! Seals records.

use aws_lc_rs::aead::Aad;

use crate::alert::Alert;
use crate::deframe::{APPLICATION_DATA, HEADER};
use crate::error::SealError;
use crate::keys::Keys;
use crate::outgoing::Outgoing;
use crate::post_handshake::KeyUpdate;
use crate::state::Direction;
use crate::suite::Suite;

/// Maximum length of a record's content in bytes (RFC 8446, section 5.1).
pub const MAX_FRAGMENT: usize = 1 << 14;
/// Maximum number of records under the same keys. RFC 8446, section 5.5 allows about 2^24.5.
pub(crate) const MAX_RECORDS: u64 = 1 << 24;
/// After this number of records, the keys are updated before more data is sealed.
pub(crate) const UPDATE_AFTER: u64 = 1 << 23;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const TAG: usize = 16;

/// Seals the records of one direction, in order, without padding. [`RecordLayer`] seals what a
/// correct peer sends; use this type to play any other peer in a test.
///
/// [`RecordLayer`]: crate::RecordLayer
pub struct Sealer(Keys);

impl Sealer {
    /// Seals with the keys that follow from a secret of the suite's length.
    pub fn new(suite: Suite, direction: Direction) -> Self {
        Self(Keys::new(suite, direction))
    }

    /// Seals one record of any content type.
    ///
    /// # Errors
    /// Returns [`SealError::TooLong`] or [`SealError::KeysExhausted`], and seals nothing then.
    pub fn record(
        &mut self,
        content_type: u8,
        content: &[u8],
        output: &mut Outgoing,
    ) -> Result<(), SealError> {
        let (header, record) = self.begin(content.len(), output)?;
        let (ciphertext, tail) = record.split_at_mut(content.len());
        self.0
            .aead
            .seal_out_of_place_scatter(
                self.0.nonce(),
                Aad::from(header),
                content,
                ciphertext,
                &[content_type],
                tail,
            )
            .expect("the lengths match, and are far below the limit of AES-GCM");
        self.0.sequence += 1;
        Ok(())
    }

    /// Seals one record of application data that lies in several parts. Unlike by
    /// [`record`](Self::record), each byte is copied first.
    fn gathered_record(
        &mut self,
        length: usize,
        parts: &mut Parts<'_>,
        output: &mut Outgoing,
    ) -> Result<(), SealError> {
        let (header, record) = self.begin(length, output)?;
        let (plaintext, tag) = record.split_at_mut(length + 1);
        let mut at = 0;
        while at < length {
            let part = parts.take(length - at);
            plaintext[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        plaintext[length] = APPLICATION_DATA;
        let sealed = self
            .0
            .aead
            .seal_in_place_separate_tag(self.0.nonce(), Aad::from(header), plaintext)
            .expect("the length is far below the limit of AES-GCM");
        tag.copy_from_slice(sealed.as_ref());
        self.0.sequence += 1;
        Ok(())
    }

    /// Writes the header of a record with `length` bytes of content. Returns it, and the room for
    /// content, content type and tag.
    fn begin<'o>(
        &mut self,
        length: usize,
        output: &'o mut Outgoing,
    ) -> Result<([u8; HEADER], &'o mut [u8]), SealError> {
        if length > MAX_FRAGMENT {
            return Err(SealError::TooLong(length));
        }
        if self.0.sequence >= MAX_RECORDS {
            return Err(SealError::KeysExhausted);
        }
        let length = length + 1 + TAG;
        let [high, low] = (length as u16).to_be_bytes();
        // TLS 1.2 for middleboxes (RFC 8446, section 5.2).
        let header = [APPLICATION_DATA, 3, 3, high, low];
        let record = output.extend(HEADER + length);
        record[..HEADER].copy_from_slice(&header);
        Ok((header, &mut record[HEADER..]))
    }

    /// Seals application data that lies in several parts, in as few records as possible. Updates
    /// the keys when it is time.
    pub(crate) fn data(&mut self, parts: &[&[u8]], output: &mut Outgoing) -> Result<(), SealError> {
        let mut parts = Parts::new(parts);
        while parts.length > 0 {
            if self.0.sequence >= UPDATE_AFTER {
                self.update(KeyUpdate::NotRequested, output)?;
            }
            let length = parts.length.min(MAX_FRAGMENT);
            if parts.first().len() >= length {
                self.record(APPLICATION_DATA, parts.take(length), output)?;
            } else {
                self.gathered_record(length, &mut parts, output)?;
            }
        }
        Ok(())
    }

    /// Announces the next keys, and switches to them (RFC 8446, section 4.6.3).
    pub(crate) fn update(
        &mut self,
        update: KeyUpdate,
        output: &mut Outgoing,
    ) -> Result<(), SealError> {
        self.record(HANDSHAKE, &update.encode(), output)?;
        self.next_keys();
        Ok(())
    }

    /// Switches to the next keys, as the sender of a key update does after it.
    pub fn next_keys(&mut self) {
        self.0.update();
    }

    pub(crate) fn alert(&mut self, alert: Alert, output: &mut Outgoing) -> Result<(), SealError> {
        self.record(ALERT, &alert.encode(), output)
    }

    pub(crate) fn into_direction(self) -> Direction {
        self.0.into_direction()
    }
}

/// What is left of several parts, which are sealed one behind the other.
struct Parts<'a> {
    parts: &'a [&'a [u8]],
    /// Number of bytes of the first part that were taken.
    taken: usize,
    /// Number of bytes of all parts that were not.
    length: usize,
}

impl<'a> Parts<'a> {
    fn new(parts: &'a [&'a [u8]]) -> Self {
        let mut parts = Self {
            parts,
            taken: 0,
            length: parts.iter().map(|part| part.len()).sum(),
        };
        parts.skip_empty();
        parts
    }

    /// The rest of the first part, empty only if nothing is left.
    fn first(&self) -> &'a [u8] {
        match self.parts {
            [first, ..] => &first[self.taken..],
            [] => &[],
        }
    }

    /// Removes the next bytes that lie in one part, at most `most`.
    fn take(&mut self, most: usize) -> &'a [u8] {
        let first = self.first();
        let first = &first[..first.len().min(most)];
        self.taken += first.len();
        self.length -= first.len();
        self.skip_empty();
        first
    }

    fn skip_empty(&mut self) {
        while let [first, rest @ ..] = self.parts
            && self.taken == first.len()
        {
            (self.parts, self.taken) = (rest, 0);
        }
    }
}
