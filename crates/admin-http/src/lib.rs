//! The small HTTP/1.1 server behind admin, metrics and readiness endpoints.
//!
//! Most handlers answer from memory, so they are plain functions; one that cannot returns a [`Reply`]. Connections run on the
//! caller's thread.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// An answer with its whole body.
pub type Answer = http::Response<Full<Bytes>>;

/// What a handler returns: an answer, or one that takes time.
pub enum Reply {
    /// From memory.
    Now(Answer),
    /// When this is done.
    Later(Pin<Box<dyn Future<Output = Answer>>>),
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self::Now(answer)
    }
}

impl Reply {
    /// The answer that this will come to.
    pub fn later(answer: impl Future<Output = Answer> + 'static) -> Self {
        Self::Later(Box::pin(answer))
    }
}

/// One request; bodies are not looked at.
#[derive(Debug)]
pub struct Asked<'a> {
    /// GET, POST …
    pub method: &'a Method,
    /// Such as `/metrics`.
    pub path: &'a str,
    /// What stands after the question mark.
    pub query: &'a str,
}

/// A client that sends its headers more slowly than this is cut off.
const HEADER_DEADLINE: Duration = Duration::from_secs(2);

/// Serves `handler` on a listener for as long as the task lives. Must run within a `LocalSet`.
pub async fn serve<R: Into<Reply>>(listener: TcpListener, handler: impl Fn(Asked<'_>) -> R + 'static) {
    let handler = Rc::new(handler);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!("cannot accept an admin connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handler = handler.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
                let uri = request.uri();
                let asked =
                    Asked { method: request.method(), path: uri.path(), query: uri.query().unwrap_or_default() };
                let reply = handler(asked).into();
                async move {
                    Ok::<_, Infallible>(match reply {
                        Reply::Now(answer) => answer,
                        Reply::Later(answer) => answer.await,
                    })
                }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE);
            if let Err(e) = server.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!("an admin connection ended: {e}");
            }
        });
    }
}

/// A plain text answer.
pub fn text(status: StatusCode, body: impl Into<String>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body.into())
}

/// A JSON answer, indented for people.
pub fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_string_pretty(value) {
        Ok(body) => answer(StatusCode::OK, "application/json", body + "\n"),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}

/// Metrics in the OpenMetrics text format.
pub fn metrics(body: String) -> Answer {
    answer(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body)
}

/// An answer of bytes that are no text.
pub fn bytes(content_type: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Answer::new(Full::new(Bytes::from(body)));
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    answer
}

/// The answer to a path that does not exist.
pub fn not_found(paths: &[&str]) -> Answer {
    text(StatusCode::NOT_FOUND, format!("not found; there is: {}\n", paths.join(" ")))
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Answer::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    answer
}
