//! The source of certificates.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;

use mesh::Identity;

use crate::ca_error::CaError;
use crate::issued::{IssuedCertificate, UnusableCertificate};

/// A source of certificates, such as [`LocalCa`](crate::LocalCa) or the client of a control plane.
pub trait Issuer {
    /// Generates a key and has a certificate issued for it. The result is not checked yet.
    fn issue<'a>(&'a self, identity: &'a Identity) -> Issuing<'a>;

    /// Describes the source for logs and `/status`.
    fn describe(&self) -> String;
}

/// A certificate that is being issued.
pub type Issuing<'a> = Pin<Box<dyn Future<Output = Result<IssuedCertificate, IssueError>> + 'a>>;

/// Any other error, whose type the source of certificates defines.
type BoxError = Box<dyn Error + Send + Sync>;

/// A certificate was not issued, or is not usable.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The local authority failed.
    #[error(transparent)]
    Local(#[from] CaError),
    /// A private key or a signing request cannot be created on this node.
    #[error("{code}: {identity}: {source}", code = error_code::control::SIGNING_REQUEST)]
    SigningRequest {
        /// The identity that the request is for.
        identity: Identity,
        /// Why it cannot be created.
        source: rcgen::Error,
    },
    /// The request cannot be sent: the authority cannot be reached, or the token for it cannot be
    /// read. The cause has its own error code.
    #[error(transparent)]
    Unsent(BoxError),
    /// The authority rejected the request or did not answer.
    #[error("{code}: {authority} for {identity}: {source}", code = error_code::control::CA_REFUSED)]
    Refused {
        /// Describes the authority.
        authority: String,
        /// The requested identity.
        identity: Identity,
        /// The authority's reason.
        source: BoxError,
    },
    /// The authority issued a certificate that does not match the request.
    #[error("{code}: {authority} for {identity}: {source}", code = error_code::control::CA_ANSWER)]
    Answer {
        /// Describes the authority.
        authority: String,
        /// The requested identity.
        identity: Identity,
        /// What is wrong with the certificate.
        source: Box<UnusableCertificate>,
    },
}
