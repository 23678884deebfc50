//! A small HTTP/1.1 server for admin, metrics and readiness endpoints.
//!
//! Most handlers respond from memory, so they are plain functions; one that has to wait returns
//! [`Reply::Later`]. Connections are served on the caller's thread.

#![forbid(unsafe_code)]

mod access;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Display;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// A response with its complete body.
pub type HttpResponse = http::Response<Full<Bytes>>;

/// What a handler returns: a response, immediate or deferred.
pub enum Reply {
    /// An immediate response.
    Now(HttpResponse),
    /// A future that resolves to the response.
    Later(Pin<Box<dyn Future<Output = HttpResponse>>>),
}

impl From<HttpResponse> for Reply {
    fn from(response: HttpResponse) -> Self {
        Self::Now(response)
    }
}

impl Reply {
    /// Defers the response to a future.
    pub fn later(response: impl Future<Output = HttpResponse> + 'static) -> Self {
        Self::Later(Box::pin(response))
    }
}

/// A request. Request bodies are ignored.
#[derive(Debug)]
pub struct HttpRequest<'a> {
    /// Method, such as `GET` or `POST`.
    pub method: &'a Method,
    /// Path, such as `/metrics`.
    pub path: &'a str,
    /// Query string without the question mark; empty if there is none.
    pub query: &'a str,
}

/// Which names a client may use for a listener, in the `Host` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostNames {
    /// Only addresses and names without a dot, such as `localhost`. Otherwise a web page whose name
    /// resolves to this listener (DNS rebinding) could read and control the program through a
    /// browser.
    Local,
    /// Any, for listeners that scrapers use and that only report.
    Any,
}

/// Deadline for a client to send its request headers: clients on a loaded node may be suspended
/// for seconds after connecting.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Deadline for a client to read a response. Afterwards, the connection is closed.
const RESPONSE_DEADLINE: Duration = Duration::from_secs(10);
/// Maximum number of connections of a listener.
const MAX_CONNECTIONS: usize = 32;
/// Maximum length of the headers of a request.
const MAX_HEADERS: usize = 16 * 1024;

/// Serves `handler` on a listener until the task is dropped. Must run where local tasks can be
/// spawned. Beyond 32 connections, a new one replaces the oldest one of the client with most of
/// them, so that a client that keeps connections open excludes no other.
pub async fn serve<R: Into<Reply> + 'static>(
    listener: TcpListener,
    names: HostNames,
    handler: impl Fn(HttpRequest<'_>) -> R + 'static,
) {
    let handler = Rc::new(handler);
    let mut open = OpenConnections::default();
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!("failed to accept an admin connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let connection = serve_connection(stream, names, handler.clone());
        open.insert(
            client.ip(),
            tokio::task::spawn_local(connection).abort_handle(),
        );
    }
}

/// Serves one connection until it is closed or a response was not read in time.
async fn serve_connection<R: Into<Reply>>(
    stream: TcpStream,
    names: HostNames,
    handler: Rc<impl Fn(HttpRequest<'_>) -> R + 'static>,
) {
    // The deadline of the current response, if there is one.
    let responding = watch::Sender::new(None);
    let overdue = async {
        let mut deadline = responding.subscribe();
        loop {
            let at: Option<Instant> = *deadline.borrow_and_update();
            tokio::select! {
                () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => return,
                _ = deadline.changed() => {} // the sender is in this function
            }
        }
    };
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        responding.send_replace(None);
        let uri = request.uri();
        let reply = match access::check(names, request.headers()) {
            Ok(()) => handler(HttpRequest {
                method: request.method(),
                path: uri.path(),
                query: uri.query().unwrap_or_default(),
            })
            .into(),
            Err(refused) => text(StatusCode::FORBIDDEN, format!("{refused}\n")).into(),
        };
        let responding = &responding;
        async move {
            let response = match reply {
                Reply::Now(response) => response,
                Reply::Later(response) => response.await,
            };
            responding.send_replace(Some(Instant::now() + RESPONSE_DEADLINE));
            Ok::<_, Infallible>(response)
        }
    });
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(MAX_HEADERS);
    tokio::select! {
        served = server.serve_connection(TokioIo::new(stream), service) => {
            if let Err(e) = served {
                tracing::debug!("admin connection failed: {e}");
            }
        }
        () = overdue => {}
    }
}

/// The connections of a listener, oldest first.
#[derive(Default)]
struct OpenConnections(VecDeque<(IpAddr, AbortHandle)>);

impl OpenConnections {
    /// Adds a connection, and closes another one if there are too many.
    fn insert(&mut self, client: IpAddr, connection: AbortHandle) {
        self.0.retain(|(_, open)| !open.is_finished());
        self.0.push_back((client, connection));
        if self.0.len() <= MAX_CONNECTIONS {
            return;
        }
        let count = |ip: IpAddr| self.0.iter().filter(|(other, _)| *other == ip).count();
        // Of several clients with as many connections, the one with the oldest connection.
        let greedy = (0..self.0.len()).rev().max_by_key(|i| count(self.0[*i].0));
        if let Some((_, excess)) = greedy.and_then(|i| self.0.remove(i)) {
            excess.abort();
        }
    }
}

impl Drop for OpenConnections {
    fn drop(&mut self) {
        self.0.iter().for_each(|(_, connection)| connection.abort());
    }
}

/// Builds a plain text response.
pub fn text(status: StatusCode, body: impl Into<String>) -> HttpResponse {
    response(status, "text/plain; charset=utf-8", body.into())
}

/// Builds a response of indented JSON.
pub fn json(value: &impl serde::Serialize) -> HttpResponse {
    match serde_json::to_string_pretty(value) {
        Ok(body) => response(StatusCode::OK, "application/json", body + "\n"),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}

/// Builds a response of metrics in the OpenMetrics text format.
pub fn metrics(body: String) -> HttpResponse {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response(StatusCode::OK, content_type, body)
}

/// Builds a binary response.
pub fn bytes(content_type: &'static str, body: Vec<u8>) -> HttpResponse {
    response(StatusCode::OK, content_type, body)
}

/// Builds the response to a request whose parameters are invalid for `reason`.
pub fn bad_request(reason: impl Display) -> HttpResponse {
    text(StatusCode::BAD_REQUEST, format!("{reason}\n"))
}

/// Builds the response to a request with an unexpected method; `usage` is the expected request.
pub fn method_not_allowed(usage: &str) -> HttpResponse {
    let body = format!("method not allowed: use {usage}\n");
    text(StatusCode::METHOD_NOT_ALLOWED, body)
}

/// Builds the response for an unknown path; it lists `paths`, the ones that exist.
pub fn not_found(paths: &[&str]) -> HttpResponse {
    text(
        StatusCode::NOT_FOUND,
        format!("not found; available paths: {}\n", paths.join(" ")),
    )
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> HttpResponse {
    let mut response = HttpResponse::new(Full::new(body.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_client_with_most_connections_loses_its_oldest() {
        let mut open = OpenConnections::default();
        let pending = || tokio::spawn(std::future::pending::<()>());
        let [greedy, kubelet] = [1, 2].map(|i| IpAddr::from([10, 0, 0, i]));
        let first = pending();
        open.insert(kubelet, first.abort_handle());
        let tasks: Vec<_> = (0..100).map(|_| pending()).collect();
        for task in &tasks {
            open.insert(greedy, task.abort_handle());
            tokio::task::yield_now().await;
        }
        assert!(!first.is_finished());
        let remaining = tasks.iter().filter(|t| !t.is_finished()).count();
        assert_eq!(remaining, MAX_CONNECTIONS - 1);
        assert!(tasks[0].is_finished() && !tasks[99].is_finished());
    }
}
