//! Requests certificates from the control plane on behalf of this node's pods.

use std::time::{Duration, Instant};

use api::GrpcConnection;
use api::certificate::{CertificateRequest, IMPERSONATED_IDENTITY};
use api::protobuf::Struct;
use identity::{IssueError, IssuedCertificate, Issuer, Issuing, SigningRequest};
use mesh::Identity;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::server::{ConnectError, Server};

/// Deadline of one certificate request.
const RPC_DEADLINE: Duration = Duration::from_secs(10);

/// Connections idle for longer may be broken without notice, so they are not reused.
const IDLE: Duration = Duration::from_secs(60);

/// A client of `istio.v1.auth.IstioCertificateService`.
pub struct CaClient {
    server: Server,
    validity: Duration,
    connection: Mutex<Connecting>,
}

/// The connection to the server, or why the last attempt to open one failed.
#[derive(Default)]
struct Connecting {
    open: Option<CachedConnection>,
    failed: Option<(Instant, ConnectError)>,
}

/// Why the control plane did not issue a certificate.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// The server answered with a gRPC status, or the connection broke.
    #[error("{:?}: {}", .0.code(), .0.message())]
    Status(api::grpc::Status),
    /// The server did not answer.
    #[error("no answer within {} s", RPC_DEADLINE.as_secs())]
    TimedOut,
}

struct CachedConnection {
    connection: GrpcConnection,
    /// PEM roots that the server was verified with.
    roots: String,
    last_used: Instant,
}

impl CaClient {
    /// Creates a client that requests certificates with this validity.
    pub fn new(server: Server, validity: Duration) -> Self {
        Self {
            server,
            validity,
            connection: Mutex::default(),
        }
    }

    async fn request(&self, identity: &Identity) -> Result<IssuedCertificate, IssueError> {
        let SigningRequest { pem, key } = SigningRequest::new(identity)?;
        let message = CertificateRequest {
            csr: pem,
            validity_duration: i64::try_from(self.validity.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct::from_iter([(
                IMPERSONATED_IDENTITY,
                identity.to_string().as_str().into(),
            )])),
        };
        let connection = self.connection().await.map_err(unsent)?;
        let mut request = api::grpc::Request::new(message);
        self.server
            .authorize(request.metadata_mut())
            .map_err(unsent)?;
        let refused = |refusal: Refusal| IssueError::Refused {
            authority: self.describe(),
            identity: identity.clone(),
            source: refusal.into(),
        };
        let answer = timeout(RPC_DEADLINE, connection.create_certificate(request)).await;
        let answer = match answer {
            Ok(answer) => answer.map_err(|status| refused(Refusal::Status(status)))?,
            Err(_) => {
                self.connection.lock().await.open = None; // the connection may be broken
                self.server.known.lock().record_unresponsive();
                return Err(refused(Refusal::TimedOut));
            }
        };
        let issued = IssuedCertificate::from_pem(&answer.cert_chain, key);
        issued.map_err(|unusable| IssueError::Answer {
            authority: self.describe(),
            identity: identity.clone(),
            source: Box::new(unusable),
        })
    }

    /// Returns the cached connection, or a new one if it is closed, idle or the root was rotated.
    /// Requests that wait for the same attempt share its failure, so that they are not delayed by
    /// one attempt each.
    async fn connection(&self) -> Result<GrpcConnection, ConnectError> {
        let requested = Instant::now();
        let mut connecting = self.connection.lock().await;
        if let Some(open) = &mut connecting.open
            && !open.connection.is_closed()
            && open.last_used.elapsed() < IDLE
            && self.server.roots.read().is_ok_and(|now| now == open.roots)
        {
            open.last_used = Instant::now();
            return Ok(open.connection.clone());
        }
        if let Some((at, error)) = &connecting.failed
            && *at > requested
        {
            return Err(error.clone());
        }
        let (connection, roots) = match self.server.connect().await {
            Ok(connected) => connected,
            Err(error) => {
                connecting.failed = Some((Instant::now(), error.clone()));
                return Err(error);
            }
        };
        connecting.open = Some(CachedConnection {
            connection: connection.clone(),
            roots,
            last_used: Instant::now(),
        });
        Ok(connection)
    }
}

impl Issuer for CaClient {
    fn issue<'a>(&'a self, identity: &'a Identity) -> Issuing<'a> {
        Box::pin(self.request(identity))
    }

    fn describe(&self) -> String {
        self.server.address.to_string()
    }
}

fn unsent(error: impl std::error::Error + Send + Sync + 'static) -> IssueError {
    IssueError::Unsent(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roots::RootSource;
    use crate::server::ServerAddress;
    use crate::token::Token;

    #[tokio::test]
    async fn a_request_that_cannot_be_created_is_not_a_refusal() {
        let address = ServerAddress::parse("https://127.0.0.1:1").unwrap();
        let server = Server {
            name: address.host.clone().try_into().unwrap(),
            address,
            roots: RootSource::Literal(String::new()),
            token: Token::None,
            headers: Vec::new(),
            tls: identity::TlsPolicy::new(false, false),
            known: Default::default(),
        };
        let client = CaClient::new(server, Duration::from_secs(3600));
        let mut identity: Identity = "spiffe://td/ns/default/sa/client".parse().unwrap();
        let error = client.issue(&identity).await.unwrap_err();
        assert!(matches!(error, IssueError::Unsent(_)), "{error}");
        assert!(error.to_string().starts_with("UP-CONTROL-002: "), "{error}");
        identity.service_account = "clïent".into();
        let error = client.issue(&identity).await.unwrap_err();
        assert!(error.to_string().starts_with("UP-CONTROL-012: "), "{error}");
    }
}
