//! Asks an agent or a proxy of this node over HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use error_code::cli as codes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::failure::failure;

/// Answers come from memory; only a verification looks first, and gives up long before this.
const DEADLINE: Duration = Duration::from_secs(10);

/// Sends a request without a body in the network namespace of the calling thread; status and body.
///
/// # Errors
/// [`codes::NO_ANSWER`]
pub(crate) fn ask(method: Method, address: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let answered = runtime.block_on(async { timeout(DEADLINE, exchange(method, address, path)).await });
    let answered = answered.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", DEADLINE.as_secs())));
    answered.map_err(|e| failure(&codes::NO_ANSWER, format!("{address}: {e:#}")))
}

async fn exchange(method: Method, address: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    over(TcpStream::connect(address).await?, method, &address.to_string(), path).await
}

/// Sends a request without a body over a connection, which is closed afterwards; status and body.
pub(crate) async fn over<I>(stream: I, method: Method, host: &str, path: &str) -> anyhow::Result<(StatusCode, Bytes)>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let request =
        Request::builder().method(method).uri(path).header(http::header::HOST, host).body(Empty::<Bytes>::new())?;
    let answered = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        anyhow::Ok((head.status, body.collect().await?.to_bytes()))
    };
    tokio::pin!(answered);
    tokio::select! {
        answer = &mut answered => answer,
        // The connection may end first, once the whole answer has been read from it.
        ended = connection => { ended?; answered.await }
    }
}

/// Reads an answer.
///
/// # Errors
/// [`codes::STRANGE_ANSWER`]
pub(crate) fn read<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> anyhow::Result<T> {
    if status != StatusCode::OK {
        let said = String::from_utf8_lossy(body);
        return Err(failure(&codes::STRANGE_ANSWER, format!("{status}: {}", said.trim())));
    }
    serde_json::from_slice(body).map_err(|e| failure(&codes::STRANGE_ANSWER, e))
}
