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
        if content.len() > MAX_FRAGMENT {
            return Err(SealError::TooLong(content.len()));
        }
        if self.0.sequence >= MAX_RECORDS {
            return Err(SealError::KeysExhausted);
        }
        let length = content.len() + 1 + TAG;
        let [high, low] = (length as u16).to_be_bytes();
        // TLS 1.2 for middleboxes (RFC 8446, section 5.2).
        let header = [APPLICATION_DATA, 3, 3, high, low];
        let record = output.extend(HEADER + length);
        record[..HEADER].copy_from_slice(&header);
        let (ciphertext, tail) = record[HEADER..].split_at_mut(content.len());
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

    /// Seals application data, in as many records as it needs. Updates the keys when it is time.
    pub(crate) fn data(&mut self, data: &[u8], output: &mut Outgoing) -> Result<(), SealError> {
        for fragment in data.chunks(MAX_FRAGMENT) {
            if self.0.sequence >= UPDATE_AFTER {
                self.update(KeyUpdate::NotRequested, output)?;
            }
            self.record(APPLICATION_DATA, fragment, output)?;
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
