//! The gRPC calls to a control plane, over an HTTP/2 connection on a transport of the caller.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::certificate::{CREATE, CertificateRequest, CertificateResponse};
use crate::discovery::{DELTA, DeltaRequest, DeltaResponse};

/// Maximum size of a received message, in bytes. istiod sends its whole state in one message.
pub const MAX_MESSAGE_SIZE: usize = 200 * 1024 * 1024;

// Flow-control windows in bytes, large enough that a big push does not stall on window updates.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
// Pings detect a dead server while a call is open. gRPC servers reject pings on idle connections.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_DEADLINE: Duration = Duration::from_secs(10);

/// The responses of a discovery stream.
pub type DeltaResponses = tonic::codec::Streaming<DeltaResponse>;

/// An HTTP/2 connection to a control plane. Clones share it; it closes when the last one is
/// dropped.
#[derive(Debug, Clone)]
pub struct GrpcConnection {
    requests: http2::SendRequest<Body>,
    origin: Uri,
}

impl GrpcConnection {
    /// Performs the HTTP/2 handshake. `origin` is the scheme and authority of requests, such as
    /// `https://istiod.istio-system.svc:15012`. A separate task on the caller's runtime drives the
    /// connection.
    ///
    /// # Errors
    /// Returns an error if the handshake fails.
    pub async fn handshake<I>(io: I, origin: Uri) -> Result<Self, hyper::Error>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_DEADLINE);
        let (requests, connection) = builder.handshake(TokioIo::new(io)).await?;
        tokio::spawn(connection); // its end also fails all pending calls
        Ok(Self { requests, origin })
    }

    /// Whether the connection is closed.
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Opens a delta discovery stream that sends the items of `requests`, and returns the
    /// responses.
    ///
    /// # Errors
    /// Returns the server's status, or a status for a broken connection.
    pub async fn delta(
        &self,
        requests: Request<impl Stream<Item = DeltaRequest> + Send + 'static>,
    ) -> Result<DeltaResponses, Status> {
        let mut grpc = self
            .grpc()
            .await?
            .max_decoding_message_size(MAX_MESSAGE_SIZE);
        let codec = ProstCodec::<DeltaRequest, DeltaResponse>::default();
        let response = grpc
            .streaming(requests, PathAndQuery::from_static(DELTA), codec)
            .await?;
        Ok(response.into_inner())
    }

    /// Requests a certificate.
    ///
    /// # Errors
    /// Returns the server's status, or a status for a broken connection.
    pub async fn create_certificate(
        &self,
        request: Request<CertificateRequest>,
    ) -> Result<CertificateResponse, Status> {
        let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let response = self
            .grpc()
            .await?
            .unary(request, PathAndQuery::from_static(CREATE), codec)
            .await?;
        Ok(response.into_inner())
    }

    async fn grpc(&self) -> Result<Grpc<Self>, Status> {
        let mut grpc = Grpc::with_origin(self.clone(), self.origin.clone());
        grpc.ready()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(grpc)
    }
}

impl GrpcService<Body> for GrpcConnection {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future =
        Pin<Box<dyn Future<Output = Result<http::Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}
