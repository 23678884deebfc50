//! The accepting end of a tunnel.

use std::future::{Future, poll_fn};
use std::io;

use bytes::Bytes;
use h2::server::SendResponse;
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use mesh::ClientAddr;
use mesh::admit::host_and_port;
use tokio::io::{AsyncRead, AsyncWrite};

use super::configure;
use super::heard::HeardIo;
use super::keepalive::Liveness;
use super::stream::Stream;
use crate::request::{self, IncomingRequest as AnyRequest};
use crate::settings::{self, Http2};
use crate::stream_end::Resets;

/// A request of a peer, as [`crate::IncomingRequest`].
pub(crate) struct IncomingRequest {
    request: Request<h2::RecvStream>,
    respond: SendResponse<Bytes>,
    /// The number of bytes that fill a packet of the tunnel.
    write_size: usize,
}

impl IncomingRequest {
    /// The requested host, an address or a name, and port; `None` unless this is a CONNECT with
    /// both.
    pub(crate) fn authority(&self) -> Option<(&str, u16)> {
        let authority: &Authority = self.request.uri().authority()?;
        if self.request.method() != Method::CONNECT {
            return None;
        }
        host_and_port(authority.as_str())
    }

    /// The request headers.
    pub(crate) fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    /// Accepts the request, once the destination is connected.
    pub(crate) fn accept(mut self, baggage: Option<&str>) -> io::Result<Stream> {
        let mut response = Response::new(());
        *response.headers_mut() = Resets::response_headers(baggage);
        let send = self
            .respond
            .send_response(response, false)
            .map_err(io::Error::other)?;
        let resets = Resets::of_peer(self.request.headers());
        let body = self.request.into_body();
        Ok(Stream::new(send, body, resets, self.write_size))
    }

    /// Completes when the peer has reset the stream, or the tunnel has ended.
    pub(crate) async fn left(&mut self) {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }

    /// Rejects the request with this status.
    pub(crate) fn reject(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        let _ = self.respond.send_response(response, true); // the peer may have disconnected
    }
}

/// Serves one connection of `peer`, as [`crate::Accepted::serve`].
pub(crate) async fn serve<I>(
    io: I,
    peer: ClientAddr,
    http2: Http2,
    write_size: usize,
    drain: impl Future<Output = ()>,
    mut handle: impl FnMut(AnyRequest),
) -> io::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = h2::server::Builder::new();
    configure!(builder, http2, max_headers: settings::MAX_REQUEST_HEADERS)
        .max_concurrent_streams(settings::MAX_STREAMS_ACCEPTED);
    let liveness = Liveness::default();
    let heard = liveness.heard.clone();
    let io = HeardIo::new(io, heard);
    let mut connection = super::handshake(builder.handshake(io)).await?;
    let pings = connection.ping_pong();
    let unresponsive = liveness.until_unresponsive(pings, peer);
    tokio::pin!(unresponsive, drain);
    let mut draining = false;
    loop {
        tokio::select! {
            request = connection.accept() => match request {
                Some(Ok((request, respond))) => {
                    let request = IncomingRequest {
                        request,
                        respond,
                        write_size,
                    };
                    handle(AnyRequest(request::Engine::H2(request)));
                }
                // h2 detected a protocol violation and has sent a GOAWAY.
                Some(Err(e)) if e.is_library() => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, e));
                }
                Some(Err(e)) => return Err(io::Error::other(e)),
                None => return Ok(()),
            },
            () = &mut drain, if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = &mut unresponsive => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer is unresponsive"));
            }
        }
    }
}
