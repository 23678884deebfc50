//! One direction of a connection: its secret, the keys derived from it, and the sequence number.

use aws_lc_rs::aead::{LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::secret::TrafficSecret;
use crate::state::Direction;
use crate::suite::Suite;

/// The keys of one direction. The sequence number counts the records under the current keys.
pub(crate) struct Keys {
    suite: Suite,
    secret: TrafficSecret,
    pub(crate) aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
    pub(crate) sequence: u64,
}

impl Keys {
    /// The secret must have the suite's length.
    pub(crate) fn new(suite: Suite, Direction { secret, sequence }: Direction) -> Self {
        let key = secret.expand(suite, b"key", suite.aead().key_len());
        let mut iv = [0; NONCE_LEN];
        iv.copy_from_slice(&secret.expand(suite, b"iv", NONCE_LEN));
        let key = UnboundKey::new(suite.aead(), &key).expect("the key has the suite's length");
        Self {
            suite,
            secret,
            aead: LessSafeKey::new(key),
            iv,
            sequence,
        }
    }

    /// Replaces the keys by those of the next generation.
    pub(crate) fn update(&mut self) {
        let secret = self.secret.next(self.suite);
        *self = Self::new(self.suite, Direction::new(secret, 0));
    }

    /// The nonce of the current sequence number (RFC 8446, section 5.3).
    pub(crate) fn nonce(&self) -> Nonce {
        let mut nonce = self.iv;
        let sequence = self.sequence.to_be_bytes();
        for (byte, other) in nonce[NONCE_LEN - sequence.len()..].iter_mut().zip(sequence) {
            *byte ^= other;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    pub(crate) fn into_direction(self) -> Direction {
        Direction::new(self.secret, self.sequence)
    }
}
