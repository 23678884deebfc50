//! `istio.v1.auth`: certificates for workloads.

use crate::protobuf::Struct;

/// Path of the method.
pub const CREATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The metadata key for the identity that a node proxy requests a certificate for.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// A request for a certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateRequest {
    /// A PKCS #10 request in PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Requested lifetime of the certificate, in seconds.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// See [`IMPERSONATED_IDENTITY`].
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// An issued certificate.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CertificateResponse {
    /// The chain in PEM: the leaf, then intermediates, and last one text with all roots.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}
