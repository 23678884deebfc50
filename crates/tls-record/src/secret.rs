//! Traffic secrets, from which the keys of each direction are derived.

use std::fmt;

use aws_lc_rs::hkdf;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::suite::Suite;

/// An application traffic secret (RFC 8446, section 7.1). It is erased when it is dropped, and its
/// debug output does not contain it.
#[derive(Serialize, Deserialize)]
pub struct TrafficSecret(Zeroizing<Vec<u8>>);

impl TrafficSecret {
    /// Copies a secret. Its length must be [`Suite::secret_len`] of the suite that it is used with.
    pub fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// Returns the secret of the next generation (RFC 8446, section 7.2).
    pub(crate) fn next(&self, suite: Suite) -> Self {
        Self(self.expand(suite, b"traffic upd", suite.secret_len()))
    }

    pub(crate) fn has_length_for(&self, suite: Suite) -> bool {
        self.0.len() == suite.secret_len()
    }

    /// HKDF-Expand-Label with an empty context (RFC 8446, section 7.1).
    pub(crate) fn expand(&self, suite: Suite, label: &[u8], length: usize) -> Zeroizing<Vec<u8>> {
        const PREFIX: &[u8] = b"tls13 ";
        let mut output = Zeroizing::new(vec![0; length]);
        let info: [&[u8]; 5] = [
            &(length as u16).to_be_bytes(),
            &[(PREFIX.len() + label.len()) as u8],
            PREFIX,
            label,
            &[0],
        ];
        hkdf::Prk::new_less_safe(suite.hkdf(), &self.0)
            .expand(&info, Length(length))
            .and_then(|okm| okm.fill(&mut output))
            .expect("a key is shorter than 255 hashes, and the output has its length");
        output
    }
}

impl fmt::Debug for TrafficSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrafficSecret(..)")
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}
