//! What of TLS is spoken: versions, cipher suites, key exchanges.

use std::sync::Arc;

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite as suite, kx_group};
use rustls::version::{TLS12, TLS13};

const TLS13_ONLY: &[&SupportedProtocolVersion] = &[&TLS13];
const TLS13_AND_12: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// What of TLS is spoken, the same with peers and with the control plane.
#[derive(Debug, Clone)]
pub(crate) struct TlsPolicy {
    provider: Arc<CryptoProvider>,
    versions: &'static [&'static SupportedProtocolVersion],
}

impl TlsPolicy {
    /// TLS 1.3 with AES-GCM, as Istio's data planes; AES-128 first, which costs a little less. The key exchange that a
    /// quantum computer does not break comes first, and with `only_post_quantum` it is the only one. With `tls12`, also
    /// TLS 1.2 with the suites that have forward secrecy.
    pub(crate) fn new(only_post_quantum: bool, tls12: bool) -> Self {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![suite::TLS13_AES_128_GCM_SHA256, suite::TLS13_AES_256_GCM_SHA384];
        if tls12 {
            provider.cipher_suites.extend([
                suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            ]);
        }
        provider.kx_groups = vec![kx_group::X25519MLKEM768];
        if !only_post_quantum {
            provider.kx_groups.extend([kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1]);
        }
        Self { provider: Arc::new(provider), versions: if tls12 { TLS13_AND_12 } else { TLS13_ONLY } }
    }

    pub(crate) fn provider(&self) -> Arc<CryptoProvider> {
        self.provider.clone()
    }

    pub(crate) fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        self.versions
    }
}
