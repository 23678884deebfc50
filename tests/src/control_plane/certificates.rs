//! `CreateCertificate`, and every way in which it can go wrong.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use api::certificate::{CertificateRequest, CertificateResponse, IMPERSONATED_IDENTITY};
use api::protobuf::Kind;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use rcgen::KeyPair;

use super::Head;
use super::authority::{Authority, Validity};
use super::grpc::{Incoming, Outgoing};

/// What is wrong with the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaFault {
    /// There is none.
    Silent,
    /// It is a status of gRPC.
    Refuse(u32, &'static str),
    /// The certificate is for this identity.
    WrongIdentity(&'static str),
    /// It is for another key.
    WrongKey,
    /// It has expired.
    Expired,
    /// The roots are another's.
    ForeignRoot,
    /// No root comes with it.
    NoRoot,
    /// It is no certificate.
    Garbage,
    /// It is no message.
    NoMessage,
}

/// The authority of a mesh.
#[derive(Debug)]
pub struct Certificates {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    authority: Authority,
    /// Roots of authorities before this one, which are still told.
    earlier: Vec<String>,
    fault: Option<CaFault>,
    validity: Duration,
    asked: Vec<(Head, CertificateRequest)>,
    times: Vec<Instant>,
}

impl Certificates {
    pub(super) fn new(authority: Authority) -> Self {
        let inner = Inner {
            authority,
            earlier: Vec::new(),
            fault: None,
            validity: Duration::from_secs(24 * 3600),
            asked: Vec::new(),
            times: Vec::new(),
        };
        Self { inner: Mutex::new(inner) }
    }

    /// From now on answers are wrong, or right again.
    pub fn misbehave(&self, fault: Option<CaFault>) {
        self.inner.lock().unwrap().fault = fault;
    }

    /// How long certificates are valid from now on, whatever is asked for.
    pub fn set_validity(&self, validity: Duration) {
        self.inner.lock().unwrap().validity = validity;
    }

    /// Another root. That of before is still told, as istiod does while it rotates.
    pub fn rotate(&self) {
        let mut inner = self.inner.lock().unwrap();
        let before = std::mem::replace(&mut inner.authority, Authority::new("the mesh, next"));
        inner.earlier.push(before.root_pem());
    }

    /// What was asked, from the beginning.
    pub fn asked(&self) -> Vec<(Head, CertificateRequest)> {
        self.inner.lock().unwrap().asked.clone()
    }

    /// For whom, from the beginning.
    pub fn identities(&self) -> Vec<String> {
        self.asked().iter().map(|(_, request)| identity(request)).collect()
    }

    /// When it was asked for this identity, from the beginning.
    pub fn times(&self, of: &str) -> Vec<Instant> {
        let inner = self.inner.lock().unwrap();
        let all = inner.asked.iter().zip(&inner.times);
        all.filter(|((_, request), _)| identity(request) == of).map(|(_, time)| *time).collect()
    }

    /// Uses the authority.
    pub fn with_authority<T>(&self, use_it: impl FnOnce(&Authority) -> T) -> T {
        use_it(&self.inner.lock().unwrap().authority)
    }

    pub(super) async fn serve(&self, head: Head, body: RecvStream, respond: SendResponse<Bytes>) {
        let mut outgoing = Outgoing::new(respond);
        let Some(request) = Incoming::new(body).next::<CertificateRequest>().await else { return };
        let answer = {
            let mut inner = self.inner.lock().unwrap();
            inner.asked.push((head, request.clone()));
            inner.times.push(Instant::now());
            inner.answer(&request)
        };
        match answer {
            Ok(Some(answer)) => {
                outgoing.send(&answer);
                outgoing.end(0, "");
            }
            Ok(None) => {
                outgoing.send_framed(4, Bytes::from_static(b"\xff\xff\xff\xff"));
                outgoing.end(0, "");
            }
            Err(None) => std::future::pending().await,
            Err(Some((code, message))) => outgoing.end(code, message),
        }
    }
}

impl Inner {
    /// `Ok(None)` is no message, `Err(None)` no answer.
    fn answer(&self, request: &CertificateRequest) -> Result<Option<CertificateResponse>, Option<(u32, &'static str)>> {
        let asked = identity(request);
        let mut validity = Validity::of(self.validity);
        if self.validity < Duration::from_secs(60) {
            validity.since = Duration::ZERO;
        }
        let sign = |identity: &str, validity| self.authority.sign(&request.csr, identity, validity);
        let mut roots = self.authority.root_pem();
        self.earlier.iter().for_each(|root| roots.push_str(root));
        let leaf = match &self.fault {
            Some(CaFault::Silent) => return Err(None),
            Some(CaFault::Refuse(code, why)) => return Err(Some((*code, *why))),
            Some(CaFault::NoMessage) => return Ok(None),
            Some(CaFault::Garbage) => "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
            Some(CaFault::WrongIdentity(other)) => sign(other, validity),
            Some(CaFault::WrongKey) => {
                let csr = rcgen::CertificateParams::default().serialize_request(&KeyPair::generate().unwrap());
                self.authority.sign(&csr.unwrap().pem().unwrap(), &asked, validity)
            }
            Some(CaFault::Expired) => {
                let hour = Duration::from_secs(3600);
                sign(&asked, Validity { since: 2 * hour, until: Err(hour) })
            }
            Some(CaFault::ForeignRoot) => {
                roots = Authority::new("somebody else").root_pem();
                sign(&asked, validity)
            }
            Some(CaFault::NoRoot) => {
                return Ok(Some(CertificateResponse { cert_chain: vec![sign(&asked, validity)] }));
            }
            None => sign(&asked, validity),
        };
        Ok(Some(CertificateResponse { cert_chain: vec![leaf, roots] }))
    }
}

/// Whom a request is for.
fn identity(request: &CertificateRequest) -> String {
    let metadata = request.metadata.as_ref().and_then(|m| m.fields.get(IMPERSONATED_IDENTITY)?.kind.clone());
    match metadata {
        Some(Kind::Text(identity)) => identity,
        _ => "spiffe://cluster.local/ns/nobody/sa/nobody".to_owned(),
    }
}
