//! `CreateCertificate`, with injectable faults.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use api::certificate::{CertificateRequest, CertificateResponse, IMPERSONATED_IDENTITY};
use api::protobuf::Kind;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use rcgen::KeyPair;

use super::RequestHead;
use super::authority::{Authority, Validity};
use super::grpc::{Incoming, Outgoing};

/// A fault of the responses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaFault {
    /// There is no response.
    Silent,
    /// The response is a gRPC status.
    Refuse(u32, &'static str),
    /// The certificate is for this identity instead.
    WrongIdentity(&'static str),
    /// The certificate is for another key.
    WrongKey,
    /// The certificate has expired.
    Expired,
    /// The roots are those of another authority.
    ForeignRoot,
    /// The response has no root.
    NoRoot,
    /// Some roots beside the right one cannot be read.
    UnreadableRoots,
    /// The certificate cannot be parsed.
    Garbage,
    /// The response is not a valid message.
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
    /// The roots of earlier authorities, which are still sent.
    earlier: Vec<String>,
    fault: Option<CaFault>,
    validity: Duration,
    requests: Vec<(RequestHead, CertificateRequest)>,
    times: Vec<Instant>,
}

impl Certificates {
    pub(super) fn new(authority: Authority) -> Self {
        let inner = Inner {
            authority,
            earlier: Vec::new(),
            fault: None,
            validity: Duration::from_secs(24 * 3600),
            requests: Vec::new(),
            times: Vec::new(),
        };
        Self {
            inner: Mutex::new(inner),
        }
    }

    /// Injects a fault into all responses from now on, or none.
    pub fn set_fault(&self, fault: Option<CaFault>) {
        self.inner.lock().unwrap().fault = fault;
    }

    /// Sets the validity of certificates from now on, whatever is requested.
    pub fn set_validity(&self, validity: Duration) {
        self.inner.lock().unwrap().validity = validity;
    }

    /// Signs with a new root. The earlier one is still sent, as by istiod during a rotation.
    pub fn rotate(&self) {
        let mut inner = self.inner.lock().unwrap();
        let before =
            std::mem::replace(&mut inner.authority, Authority::new("the mesh's next root"));
        inner.earlier.push(before.root_pem());
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<(RequestHead, CertificateRequest)> {
        self.inner.lock().unwrap().requests.clone()
    }

    /// The identities of all requests so far.
    pub fn identities(&self) -> Vec<String> {
        self.requests()
            .iter()
            .map(|(_, request)| identity(request))
            .collect()
    }

    /// The times of all requests for an identity so far.
    pub fn request_times(&self, wanted: &str) -> Vec<Instant> {
        let inner = self.inner.lock().unwrap();
        let all = inner.requests.iter().zip(&inner.times);
        all.filter(|((_, request), _)| identity(request) == wanted)
            .map(|(_, time)| *time)
            .collect()
    }

    /// Calls a function with the current authority.
    pub fn with_authority<T>(&self, call: impl FnOnce(&Authority) -> T) -> T {
        call(&self.inner.lock().unwrap().authority)
    }

    pub(super) async fn serve(
        &self,
        head: RequestHead,
        body: RecvStream,
        respond: SendResponse<Bytes>,
    ) {
        let mut outgoing = Outgoing::new(respond);
        let Some(request) = Incoming::new(body).next::<CertificateRequest>().await else {
            return;
        };
        let answer = {
            let mut inner = self.inner.lock().unwrap();
            inner.requests.push((head, request.clone()));
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
    /// `Ok(None)` is an invalid message, `Err(None)` no response.
    fn answer(
        &self,
        request: &CertificateRequest,
    ) -> Result<Option<CertificateResponse>, Option<(u32, &'static str)>> {
        let requested = identity(request);
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
            Some(CaFault::Garbage) => {
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned()
            }
            Some(CaFault::WrongIdentity(other)) => sign(other, validity),
            Some(CaFault::WrongKey) => {
                let csr = rcgen::CertificateParams::default()
                    .serialize_request(&KeyPair::generate().unwrap());
                self.authority
                    .sign(&csr.unwrap().pem().unwrap(), &requested, validity)
            }
            Some(CaFault::Expired) => {
                let hour = Duration::from_secs(3600);
                sign(
                    &requested,
                    Validity {
                        since: 2 * hour,
                        until: Err(hour),
                    },
                )
            }
            Some(CaFault::ForeignRoot) => {
                roots = Authority::new("a foreign root").root_pem();
                sign(&requested, validity)
            }
            Some(CaFault::UnreadableRoots) => {
                let bad = |content: &str| {
                    format!("-----BEGIN CERTIFICATE-----\n{content}\n-----END CERTIFICATE-----\n")
                };
                roots = format!("{}{}{roots}", bad("AAAA"), bad("*"));
                sign(&requested, validity)
            }
            Some(CaFault::NoRoot) => {
                return Ok(Some(CertificateResponse {
                    cert_chain: vec![sign(&requested, validity)],
                }));
            }
            None => sign(&requested, validity),
        };
        Ok(Some(CertificateResponse {
            cert_chain: vec![leaf, roots],
        }))
    }
}

/// The identity that a request is for.
fn identity(request: &CertificateRequest) -> String {
    let metadata = request
        .metadata
        .as_ref()
        .and_then(|m| m.fields.get(IMPERSONATED_IDENTITY)?.kind.clone());
    match metadata {
        Some(Kind::Text(identity)) => identity,
        _ => "spiffe://cluster.local/ns/unknown/sa/unknown".to_owned(),
    }
}
