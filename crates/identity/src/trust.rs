//! What all certificates of this proxy have in common.

use std::sync::Arc;

use mesh::TrustDomains;

use crate::revocation::Revocations;
use crate::tls::TlsPolicy;

/// Trust settings that apply to all certificates of this proxy.
#[derive(Debug)]
pub struct Trust {
    /// TLS parameters of tunnels.
    pub tls: TlsPolicy,
    /// The trust domain of the mesh and its aliases.
    pub domains: Arc<TrustDomains>,
    /// Revoked certificates.
    pub revocations: Arc<Revocations>,
}
