//! TLS versions, cipher suites and key exchange groups.

use std::sync::Arc;

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite as suite, kx_group};
use rustls::version::{TLS12, TLS13};

const TLS13_ONLY: &[&SupportedProtocolVersion] = &[&TLS13];
const TLS13_AND_12: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// TLS parameters for connections to peers and to the control plane.
#[derive(Debug, Clone)]
pub struct TlsPolicy {
    provider: Arc<CryptoProvider>,
    versions: &'static [&'static SupportedProtocolVersion],
}

impl TlsPolicy {
    /// TLS 1.3 with AES-GCM, like Istio's data planes; AES-128 is preferred because it is slightly
    /// cheaper. Post-quantum key exchange is preferred, and with `only_post_quantum` required.
    /// `tls12` also allows TLS 1.2 with forward-secret cipher suites.
    pub fn new(only_post_quantum: bool, tls12: bool) -> Self {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
        ];
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
            provider
                .kx_groups
                .extend([kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1]);
        }
        Self {
            provider: Arc::new(provider),
            versions: if tls12 { TLS13_AND_12 } else { TLS13_ONLY },
        }
    }

    /// The cryptography, restricted to the allowed cipher suites and key exchange groups.
    pub fn provider(&self) -> Arc<CryptoProvider> {
        self.provider.clone()
    }

    /// The allowed TLS versions.
    pub fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        self.versions
    }
}
