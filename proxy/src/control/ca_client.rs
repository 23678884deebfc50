//! Asks a control plane for certificates, in the name of the pods of this node.

use std::time::{Duration, Instant};

use api::Connection;
use api::certificate::{CertificateRequest, IMPERSONATED_IDENTITY};
use api::protobuf::Struct;
use mesh::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::server::{Address, ConnectError, Server};
use crate::identity::{IssueError, Issued};

/// From the request to its answer.
const RPC_DEADLINE: Duration = Duration::from_secs(10);

/// A connection that was idle for so long may be gone without our knowing.
const IDLE: Duration = Duration::from_secs(60);

/// A client of `istio.v1.auth.IstioCertificateService`.
pub(crate) struct CaClient {
    server: Server,
    validity: Duration,
    connection: Mutex<Option<Open>>,
}

struct Open {
    connection: Connection,
    /// By which the server was verified.
    roots: String,
    used: Instant,
}

impl CaClient {
    /// Certificates are asked for with this validity.
    pub(crate) fn new(server: Server, validity: Duration) -> Self {
        Self { server, validity, connection: Mutex::default() }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.server.address
    }

    /// Makes a key and has it certified.
    pub(crate) async fn create(&self, identity: &Identity) -> Result<Issued, IssueError> {
        let refused = |e: rcgen::Error| IssueError::Refused(format!("the request cannot be made: {e}"));
        let key = KeyPair::generate().map_err(refused)?; // P-256
        let message = CertificateRequest {
            csr: signing_request(identity, &key).map_err(refused)?,
            validity_duration: i64::try_from(self.validity.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct::from_iter([(IMPERSONATED_IDENTITY, identity.to_string().as_str().into())])),
        };
        let connection = self.connection().await?;
        let mut request = tonic::Request::new(message);
        self.server.authorize(request.metadata_mut())?;
        let refused = |why: String| IssueError::Refused(format!("{} for {identity}: {why}", self.address()));
        let answer = timeout(RPC_DEADLINE, connection.create_certificate(request)).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => return Err(refused(format!("{:?}: {}", status.code(), status.message()))),
            Err(_) => {
                self.connection.lock().await.take(); // perhaps it is that
                return Err(refused(format!("no answer within {} s", RPC_DEADLINE.as_secs())));
            }
        };
        let wrong = |why: String| IssueError::Answer(format!("{} for {identity}: {why}", self.address()));
        let (chain, roots) = certificates(&answer.cert_chain).map_err(wrong)?;
        Ok(Issued { chain, key: PrivateKeyDer::Pkcs8(key.serialize_der().into()), roots })
    }

    /// The connection that is open, unless the root has been rotated since: then another one.
    async fn connection(&self) -> Result<Connection, ConnectError> {
        let mut open = self.connection.lock().await;
        if let Some(open) = &mut *open
            && !open.connection.is_closed()
            && open.used.elapsed() < IDLE
            && self.server.roots.read().is_ok_and(|now| now == open.roots)
        {
            open.used = Instant::now();
            return Ok(open.connection.clone());
        }
        let (connection, roots) = self.server.connect().await?;
        *open = Some(Open { connection: connection.clone(), roots, used: Instant::now() });
        Ok(connection)
    }
}

/// With an empty subject, so that the SAN is critical.
fn signing_request(identity: &Identity, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.serialize_request(key)?.pem()
}

type Chain = Vec<CertificateDer<'static>>;

/// The first text is the leaf, the last one the roots, and what is between are intermediates. All in one text are the same,
/// with one root.
fn certificates(texts: &[String]) -> Result<(Chain, Chain), String> {
    let parse = |text: &String| -> Result<Chain, String> {
        let parsed: Result<Chain, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        parsed.map_err(|e| format!("it is no certificate in PEM: {e}"))
    };
    let (chain, roots) = match texts {
        [] => return Err("it is empty".to_owned()),
        [one] => {
            let mut all = parse(one)?;
            let root = all.pop();
            (all, root.into_iter().collect())
        }
        [chain @ .., roots] => {
            let chain: Vec<Chain> = chain.iter().map(parse).collect::<Result<_, _>>()?;
            (chain.concat(), parse(roots)?)
        }
    };
    // Peers have the roots; to send one would only be longer.
    let chain: Chain = chain.into_iter().filter(|c| !roots.contains(c)).collect();
    match (chain.is_empty(), roots.is_empty()) {
        (true, _) => Err("there is no certificate besides the root".to_owned()),
        (_, true) => Err("no root came with it".to_owned()),
        _ => Ok((chain, roots)),
    }
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
        let pem = signing_request(&identity, &KeyPair::generate().unwrap()).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, request) = X509CertificationRequest::from_der(&block.contents).unwrap();
        assert_eq!(request.certification_request_info.subject.iter().count(), 0);
        let key = request.certification_request_info.subject_pki.parsed().unwrap();
        assert_eq!(key.key_size(), 256);
        let [attribute] = request.certification_request_info.attributes() else { panic!("one attribute") };
        let x509_parser::cri_attributes::ParsedCriAttribute::ExtensionRequest(extensions) =
            attribute.parsed_attribute()
        else {
            panic!("extensions are asked for")
        };
        let san = extensions.extensions.iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(san) => Some((e.critical, san.general_names.clone())),
            _ => None,
        });
        assert_eq!(san, Some((true, vec![GeneralName::URI("spiffe://td/ns/default/sa/client")])));
    }

    #[test]
    fn an_answer_without_a_root_or_a_leaf_is_refused() {
        let root = rcgen::generate_simple_self_signed(vec![]).unwrap().cert.pem();
        let leaf = rcgen::generate_simple_self_signed(vec![]).unwrap().cert.pem();
        let answer = |texts: &[&str]| certificates(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        let sizes = |texts: &[&str]| answer(texts).map(|(chain, roots)| (chain.len(), roots.len()));
        assert_eq!(sizes(&[&leaf, &root]), Ok((1, 1)));
        assert_eq!(sizes(&[&leaf, &root, &root]), Ok((1, 1)), "the root is not sent");
        assert_eq!(sizes(&[&format!("{leaf}{root}")]), Ok((1, 1)));
        for bad in
            [vec![], vec![""], vec![leaf.as_str()], vec!["x", "y"], vec![leaf.as_str(), ""], vec!["", root.as_str()]]
        {
            assert!(answer(&bad).is_err(), "{bad:?}");
        }
    }
}
