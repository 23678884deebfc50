//! CONNECT requests, as they are sent and as they arrive.

use std::cell::Cell;
use std::io;

use http::{HeaderMap, HeaderValue, StatusCode};
use mesh::{HostPort, Text};

use crate::forwarded::FORWARDED;
use crate::stream::{self, HboneStream};
use crate::stream_end::Resets;
use crate::{h2_engine, own_engine};

/// The header with the network that a request comes from.
pub const FORWARDED_NETWORK: &str = "x-forwarded-network";

/// The header with the token of an offer to join both ends within a process.
pub const JOIN: &str = "x-underpass-join";

/// A token that is sent with the first request only. When a request is repeated, it is unknown
/// whether the first one was served.
pub struct JoinToken {
    token: String,
    requests: Cell<usize>,
}

impl JoinToken {
    /// A token that was not sent yet.
    pub fn new(token: String) -> Self {
        Self {
            token,
            requests: Cell::new(0),
        }
    }

    /// The token to send with the next request; `None` if one was sent before.
    pub fn for_request(&self) -> Option<&str> {
        let before = self.requests.replace(self.requests.get() + 1);
        (before == 0).then_some(self.token.as_str())
    }

    /// Whether a single request was sent, which had the token.
    pub fn was_sent_once(&self) -> bool {
        self.requests.get() == 1
    }
}

/// The contents of a CONNECT request.
pub struct ConnectRequest {
    /// The destination.
    pub authority: HostPort,
    /// Metadata of the client, for telemetry.
    pub baggage: String,
    /// The `forwarded` header (RFC 7239).
    pub forwarded: String,
    /// The client's network, if the tunnel leads to another one.
    pub network: Option<Text>,
    /// The client's offer to join both ends, if it makes one.
    pub join: Option<JoinToken>,
}

impl ConnectRequest {
    /// The headers that describe the client, with a random trace.
    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        Resets::declare(&mut headers);
        let traceparent = format!(
            "00-{:032x}-{:016x}-00",
            rand::random::<u128>(),
            rand::random::<u64>()
        );
        let values = [
            ("baggage", Some(self.baggage.as_str())),
            (FORWARDED, Some(&self.forwarded)),
            ("traceparent", Some(&traceparent)),
            (FORWARDED_NETWORK, self.network.as_deref()),
            (JOIN, self.join.as_ref().and_then(JoinToken::for_request)),
        ];
        for (name, value) in values {
            // Workload names and labels may contain characters that are invalid in a header, which
            // is then omitted.
            if let Some(Ok(value)) = value.map(HeaderValue::from_str) {
                headers.insert(name, value);
            }
        }
        headers
    }
}

/// A request of a peer to connect to a destination.
pub struct IncomingRequest(pub(crate) Engine);

/// What received a request.
pub(crate) enum Engine {
    H2(h2_engine::IncomingRequest),
    Own(own_engine::IncomingRequest),
}

impl IncomingRequest {
    /// The requested host, an address or a name, and port; `None` unless this is a CONNECT with
    /// both.
    pub fn authority(&self) -> Option<(&str, u16)> {
        match &self.0 {
            Engine::H2(request) => request.authority(),
            Engine::Own(request) => request.authority(),
        }
    }

    /// The request headers.
    pub fn headers(&self) -> &HeaderMap {
        match &self.0 {
            Engine::H2(request) => request.headers(),
            Engine::Own(request) => request.headers(),
        }
    }

    /// Accepts the request, once the destination is connected.
    ///
    /// # Errors
    /// If the stream has ended.
    pub fn accept(self, baggage: Option<&str>) -> io::Result<HboneStream> {
        let engine = match self.0 {
            Engine::H2(request) => stream::Engine::H2(request.accept(baggage)?),
            Engine::Own(request) => stream::Engine::Own(request.accept(baggage)?),
        };
        Ok(HboneStream::new(engine, None))
    }

    /// Completes when the peer has reset the stream, or the tunnel has ended.
    pub async fn left(&mut self) {
        match &mut self.0 {
            Engine::H2(request) => request.left().await,
            Engine::Own(request) => request.left().await,
        }
    }

    /// Rejects the request with this status.
    pub fn reject(self, status: StatusCode) {
        match self.0 {
            Engine::H2(request) => request.reject(status),
            Engine::Own(request) => request.reject(status),
        }
    }
}
