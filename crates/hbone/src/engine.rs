//! The choice of an engine.

use rustls::crypto::CryptoProvider;

use crate::own_engine;

/// What tunnels are made of. Peers notice no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TunnelEngine {
    /// The crate h2 over tokio-rustls.
    #[default]
    H2,
    /// The crate `tunnel`, which sends what all streams have sent in as few TLS records and system
    /// calls as possible. Only with TLS 1.3: configurations that allow TLS 1.2 use h2.
    Own,
}

impl TunnelEngine {
    /// The engine for connections that may negotiate whatever this cryptography has.
    pub(crate) fn for_provider(self, provider: &CryptoProvider) -> Self {
        match self {
            Self::Own if own_engine::supports(provider) => Self::Own,
            _ => Self::H2,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::{cipher_suite as suite, default_provider};

    use super::*;

    #[test]
    fn other_suites_than_those_of_tls13_with_aes_gcm_use_h2() {
        let aes = [
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
        ];
        let other = [
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        ];
        let mut provider = default_provider();
        provider.cipher_suites = aes.to_vec();
        assert_eq!(TunnelEngine::Own.for_provider(&provider), TunnelEngine::Own);
        assert_eq!(TunnelEngine::H2.for_provider(&provider), TunnelEngine::H2);
        for suite in other {
            provider.cipher_suites = aes.into_iter().chain([suite]).collect();
            assert_eq!(TunnelEngine::Own.for_provider(&provider), TunnelEngine::H2);
        }
    }
}
