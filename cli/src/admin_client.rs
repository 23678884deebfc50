//! HTTP client for the admin endpoints of agents and proxies.

use std::net::SocketAddr;
use std::time::Duration;

use agent_status::NodeStatus;
use anyhow::{Context, anyhow};
use error_code::cli as codes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::time::timeout;

use crate::failure::failure;

/// Timeout of a request. Only a verification takes time, and it times out earlier.
const DEADLINE: Duration = Duration::from_secs(10);

/// A response: its status and its whole body.
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    body: Bytes,
}

impl Response {
    /// The body as text, without surrounding white space.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }

    /// Decodes the body.
    ///
    /// # Errors
    /// [`codes::UNEXPECTED_ANSWER`]
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        let parsed = self.parse();
        parsed.map_err(|detail| failure(&codes::UNEXPECTED_ANSWER, detail))
    }

    /// Like [`Response::decode`], with the bare reason as the error.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, String> {
        if self.status != StatusCode::OK {
            return Err(format!("{}: {}", self.status, self.text()));
        }
        serde_json::from_slice(&self.body).map_err(|e| e.to_string())
    }
}

/// Runs a future to completion on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the async runtime")?;
    runtime.block_on(future)
}

/// Sends a request without a body, in the network namespace of the calling thread.
///
/// # Errors
/// [`codes::NO_ANSWER`]
pub(crate) fn request(method: Method, address: SocketAddr, path: &str) -> anyhow::Result<Response> {
    let exchange = async {
        let stream = TcpStream::connect(address).await?;
        request_over(stream, method, &address.to_string(), path).await
    };
    let response = block_on(async {
        let response = timeout(DEADLINE, exchange).await;
        response.map_err(|_| anyhow!("no response within {} s", DEADLINE.as_secs()))?
    });
    response.map_err(|e| failure(&codes::NO_ANSWER, format!("{address}: {e:#}")))
}

/// Sends a request without a body over a connection and closes it.
pub(crate) async fn request_over<I>(
    stream: I,
    method: Method,
    host: &str,
    path: &str,
) -> anyhow::Result<Response>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, host)
        .body(Empty::<Bytes>::new())?;
    let response = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let (status, body) = (head.status, body.collect().await?.to_bytes());
        anyhow::Ok(Response { status, body })
    };
    tokio::pin!(response);
    tokio::select! {
        response = &mut response => response,
        // The connection can close first, when the whole response has been received.
        closed = connection => { closed?; response.await }
    }
}

/// Queries the agent's status, in the network namespace of the calling thread.
///
/// # Errors
/// [`codes::NO_ANSWER`], [`codes::UNEXPECTED_ANSWER`]
pub(crate) fn node_status(agent: SocketAddr) -> anyhow::Result<NodeStatus> {
    request(Method::GET, agent, "/status")?.decode()
}
