//! Unary gRPC over a unix socket: HTTP/2, a length before each message, a status in the trailers.

use std::path::Path;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;

/// The status of a failed call.
#[derive(Debug)]
pub struct Status {
    /// The number: 4 is `DEADLINE_EXCEEDED`, 5 `NOT_FOUND`, 14 `UNAVAILABLE`, also without a
    /// response.
    pub code: u32,
    /// The server's message.
    pub message: String,
}

/// Calls `/service/method` and waits for the response.
///
/// # Errors
/// The server's status. The deadline is sent in the request; the server enforces it.
pub fn call<Q: Message, A: Message + Default>(
    socket: &Path,
    method: &str,
    message: &Q,
    deadline: Duration,
) -> Result<A, Status> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        // Twice the deadline is for a server that does not enforce it.
        let answer = tokio::time::timeout(
            deadline * 2,
            exchange(socket, method, message.encode_to_vec(), deadline),
        );
        let (body, trailers) = match answer.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => {
                return Err(Status {
                    code: 14,
                    message: why.to_string(),
                });
            }
            Err(_) => {
                return Err(Status {
                    code: 14,
                    message: format!("{method}: no response within twice the deadline"),
                });
            }
        };
        let field = |name: &str| {
            trailers
                .get(name)
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default()
        };
        match field("grpc-status").parse() {
            Ok(0) => Ok(A::decode(&body[5..]).unwrap()),
            Ok(code) => Err(Status {
                code,
                message: unescape(field("grpc-message")),
            }),
            Err(_) => Err(Status {
                code: 14,
                message: format!("{method}: the response has no status"),
            }),
        }
    })
}

type Exchanged = Result<(Bytes, HeaderMap), Box<dyn std::error::Error>>;

async fn exchange(socket: &Path, method: &str, message: Vec<u8>, deadline: Duration) -> Exchanged {
    let stream = UnixStream::connect(socket).await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let request = Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", format!("{}m", deadline.as_millis()))
        .body(())?;
    let (response, mut stream) = sender.ready().await?.send_request(request, false)?;
    let mut framed = BytesMut::new();
    framed.put_u8(0); // not compressed
    framed.put_u32(u32::try_from(message.len())?);
    framed.put_slice(&message);
    stream.send_data(framed.freeze(), true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut bytes = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    // A call that fails immediately has its status in the head.
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    Ok((bytes.freeze(), trailers))
}

/// Decodes a message: gRPC escapes `%` and bytes outside of ASCII.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
