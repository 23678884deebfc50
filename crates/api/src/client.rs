//! The two calls, over an HTTP/2 connection whose transport is the caller's business.

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

/// The largest message that is taken. istiod sends all that it has in one.
pub const LARGEST_MESSAGE: usize = 200 * 1024 * 1024;

/// A large push should not wait for one window after the other.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// A server that is gone is found out by pings, while something is asked; servers of gRPC do not like them at other times.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_DEADLINE: Duration = Duration::from_secs(10);

/// What a discovery server says on a stream.
pub type Responses = tonic::codec::Streaming<DeltaResponse>;

/// An HTTP/2 connection to a control plane. Clones share it; it ends when there is none any more.
#[derive(Debug, Clone)]
pub struct Connection {
    requests: http2::SendRequest<Body>,
    origin: Uri,
}

impl Connection {
    /// Begins HTTP/2. `origin` is what requests are addressed to, such as `https://istiod.istio-system.svc:15012`. The
    /// connection is driven by a task of its own on the runtime of the caller.
    ///
    /// # Errors
    /// When the other end does not speak HTTP/2.
    pub async fn begin<I>(io: I, origin: Uri) -> Result<Self, hyper::Error>
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
        tokio::spawn(connection); // whoever waits for an answer is told when it ends
        Ok(Self { requests, origin })
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Opens a stream for delta discovery: what `requests` yields is sent, and what the server says comes back.
    ///
    /// # Errors
    /// The server's status, or one for a connection that has broken.
    pub async fn delta(
        &self,
        requests: Request<impl Stream<Item = DeltaRequest> + Send + 'static>,
    ) -> Result<Responses, Status> {
        let mut grpc = self.grpc().await?.max_decoding_message_size(LARGEST_MESSAGE);
        let codec = ProstCodec::<DeltaRequest, DeltaResponse>::default();
        let response = grpc.streaming(requests, PathAndQuery::from_static(DELTA), codec).await?;
        Ok(response.into_inner())
    }

    /// Asks for a certificate.
    ///
    /// # Errors
    /// The server's status, or one for a connection that has broken.
    pub async fn create_certificate(
        &self,
        request: Request<CertificateRequest>,
    ) -> Result<CertificateResponse, Status> {
        let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let response = self.grpc().await?.unary(request, PathAndQuery::from_static(CREATE), codec).await?;
        Ok(response.into_inner())
    }

    async fn grpc(&self) -> Result<Grpc<Self>, Status> {
        let mut grpc = Grpc::with_origin(self.clone(), self.origin.clone());
        grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(grpc)
    }
}

impl GrpcService<Body> for Connection {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}
