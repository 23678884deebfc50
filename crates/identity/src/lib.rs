//! Identities of pods and peers. [`Certificates`] keeps one certificate for each identity on the
//! node: a pure schedule decides when each is requested, an [`Issuer`] issues it, and it is
//! accepted only if it matches the request. A pod reads its certificate through a
//! [`CertificateHandle`], which gives any thread the TLS configurations built for it. Peers are
//! verified here as well: by roots, SPIFFE id and revocation lists. No other crate creates or
//! verifies certificates.

#![forbid(unsafe_code)]

mod ca_error;
mod certificates;
mod credentials;
pub mod decode;
mod dump;
mod handle;
mod issued;
mod issuer;
mod local_ca;
mod revocation;
mod schedule;
mod signing_request;
mod tls;
mod trust;
mod trust_report;
mod verify;
mod wall_clock;

pub use ca_error::CaError;
pub use certificates::{Certificates, Claim};
pub use credentials::Credentials;
pub use dump::CertificateDump;
pub use handle::{CertificateHandle, CertificateState, NoCredentials};
pub use issued::{IssuedCertificate, UnusableCertificate};
pub use issuer::{IssueError, Issuer, Issuing};
pub use local_ca::LocalCa;
pub use revocation::Revocations;
pub use schedule::Schedule;
pub use signing_request::SigningRequest;
pub use tls::TlsPolicy;
pub use trust::Trust;
pub use trust_report::TrustReport;
pub use verify::{explain, is_revoked, peer_identity};
pub use wall_clock::ClockShift;
pub use webpki::KeyUsage;
