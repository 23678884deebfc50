//! `istio.v1.auth`: certificates for workloads.

use crate::protobuf::Struct;

/// Path of the method.
pub const CREATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The key of the metadata under which a node proxy names the workload that it asks for.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// Asks for a certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateRequest {
    /// A PKCS #10 request in PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// How long the certificate should be valid, in seconds.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// See [`IMPERSONATED_IDENTITY`].
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// The certificate.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CertificateResponse {
    /// In PEM: first the leaf, then intermediates, and last the roots, which may be several in one text.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}
