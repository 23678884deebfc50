//! Who our pods are, and who the peers are: certificates, where they come from, and their verification.

mod certificates;
mod credentials;
mod decode;
mod dump;
mod handle;
mod issued;
mod local_ca;
mod revocation;
mod schedule;
mod source;
mod tls;
mod trust_domains;
mod verify;

pub(crate) use certificates::{Certificates, Claim};
pub(crate) use credentials::{Credentials, Trust};
pub(crate) use dump::Dump;
pub(crate) use handle::{Handle, Held, NoCredentials};
pub(crate) use issued::Issued;
pub(crate) use local_ca::LocalCa;
pub(crate) use revocation::Revocations;
pub(crate) use source::{IssueError, Source};
pub(crate) use tls::TlsPolicy;
pub(crate) use trust_domains::TrustDomains;
pub(crate) use verify::{explain, is_revoked, peer_identity};
