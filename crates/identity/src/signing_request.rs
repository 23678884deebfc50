//! A request for a certificate, with its private key.

use mesh::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::PrivateKeyDer;

use crate::issuer::IssueError;

/// A certificate signing request (CSR) for an identity, with a fresh P-256 key.
#[derive(Debug)]
pub struct SigningRequest {
    /// The request in PEM. Its subject is empty, which makes the SAN critical.
    pub pem: String,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
}

impl SigningRequest {
    /// Generates a key and creates a request for it.
    ///
    /// # Errors
    /// [`IssueError::SigningRequest`], for example if the identity is not ASCII.
    pub fn new(identity: &Identity) -> Result<Self, IssueError> {
        create(identity).map_err(|source| IssueError::SigningRequest {
            identity: identity.clone(),
            source,
        })
    }
}

fn create(identity: &Identity) -> Result<SigningRequest, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    Ok(SigningRequest {
        pem: params.serialize_request(&key)?.pem()?,
        key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::extensions::{GeneralName, ParsedExtension};
    use x509_parser::prelude::FromDer;

    #[test]
    fn a_request_has_no_subject_and_a_critical_identity() {
        let identity: Identity = "spiffe://td/ns/default/sa/client".parse().unwrap();
        let pem = SigningRequest::new(&identity).unwrap().pem;
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, request) = X509CertificationRequest::from_der(&block.contents).unwrap();
        assert_eq!(request.certification_request_info.subject.iter().count(), 0);
        let key = request
            .certification_request_info
            .subject_pki
            .parsed()
            .unwrap();
        assert_eq!(key.key_size(), 256);
        let [attribute] = request.certification_request_info.attributes() else {
            panic!("one attribute")
        };
        let x509_parser::cri_attributes::ParsedCriAttribute::ExtensionRequest(extensions) =
            attribute.parsed_attribute()
        else {
            panic!("extensions are requested")
        };
        let san = extensions
            .extensions
            .iter()
            .find_map(|e| match e.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => {
                    Some((e.critical, san.general_names.clone()))
                }
                _ => None,
            });
        assert_eq!(
            san,
            Some((
                true,
                vec![GeneralName::URI("spiffe://td/ns/default/sa/client")]
            ))
        );
    }

    #[test]
    fn a_request_that_cannot_be_created_is_not_reported_as_refused() {
        let identity = Identity {
            trust_domain: "td".into(),
            namespace: "default".into(),
            service_account: "clïent".into(),
        };
        let error = SigningRequest::new(&identity).unwrap_err();
        assert!(
            matches!(error, IssueError::SigningRequest { .. }),
            "{error:?}"
        );
        let text = error.to_string();
        let expected = "UP-CONTROL-012: spiffe://td/ns/default/sa/clïent: ";
        assert!(text.starts_with(expected), "{text}");
    }
}
