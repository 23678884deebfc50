//! The supported cipher suites.

use aws_lc_rs::{aead, hkdf};
use rustls::{CipherSuite, SupportedCipherSuite};
use serde::{Deserialize, Serialize};

/// A cipher suite of TLS 1.3 (RFC 8446, appendix B.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Suite {
    /// `TLS_AES_128_GCM_SHA256`
    Aes128GcmSha256,
    /// `TLS_AES_256_GCM_SHA384`
    Aes256GcmSha384,
}

impl Suite {
    /// Returns the suite that a rustls connection has negotiated, unless it is not supported.
    pub fn of(negotiated: SupportedCipherSuite) -> Option<Self> {
        match negotiated.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => Some(Self::Aes128GcmSha256),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => Some(Self::Aes256GcmSha384),
            _ => None,
        }
    }

    /// Length of a traffic secret in bytes: that of the suite's hash.
    pub fn secret_len(self) -> usize {
        match self {
            Self::Aes128GcmSha256 => 32,
            Self::Aes256GcmSha384 => 48,
        }
    }

    pub(crate) fn aead(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128GcmSha256 => &aead::AES_128_GCM,
            Self::Aes256GcmSha384 => &aead::AES_256_GCM,
        }
    }

    pub(crate) fn hkdf(self) -> hkdf::Algorithm {
        match self {
            Self::Aes128GcmSha256 => hkdf::HKDF_SHA256,
            Self::Aes256GcmSha384 => hkdf::HKDF_SHA384,
        }
    }
}
