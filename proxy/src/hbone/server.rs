//! The end of a tunnel that accepts it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::keepalive;
use super::settings::{self, Http2};
use super::stream::HboneStream;

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// A peer asks to be connected to something.
pub(crate) struct Incoming {
    request: Request<h2::RecvStream>,
    respond: SendResponse<Bytes>,
}

impl Incoming {
    /// Where to: an address or a host name, and a port; `None` when the request is no CONNECT with both.
    pub(crate) fn authority(&self) -> Option<(&str, u16)> {
        let authority: &Authority = self.request.uri().authority()?;
        let connect = self.request.method() == Method::CONNECT;
        connect.then_some(())?;
        Some((authority.host(), authority.port_u16()?))
    }

    /// What else the peer says.
    pub(crate) fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    /// The destination is connected: bytes may flow.
    pub(crate) fn accept(mut self, baggage: Option<&str>) -> io::Result<HboneStream> {
        let mut response = Response::new(());
        if let Some(Ok(value)) = baggage.map(str::parse) {
            response.headers_mut().insert("baggage", value);
        }
        let send = self.respond.send_response(response, false).map_err(io::Error::other)?;
        Ok(HboneStream::new(send, self.request.into_body()))
    }

    /// No.
    pub(crate) fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        let _ = self.respond.send_response(response, true); // the peer has gone
    }
}

/// Serves one connection of `peer`: calls `handle` with each request, and returns when the connection has ended. When `drain`
/// completes, the peer is told to open no more streams. `InvalidData` is what a peer does that no good one would.
pub(crate) async fn serve<I>(
    io: I,
    peer: SocketAddr,
    http2: Http2,
    drain: impl Future<Output = ()>,
    mut handle: impl FnMut(Incoming),
) -> io::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(http2.stream_window)
        .initial_connection_window_size(http2.connection_window)
        .max_frame_size(http2.frame)
        .max_header_list_size(settings::MAX_REQUEST_HEADERS)
        .max_concurrent_streams(settings::MAX_STREAMS_ACCEPTED)
        .max_send_buffer_size(settings::SEND_BUFFER)
        .data_frame_budget(http2.small_frame_budget());
    let mut connection = timeout(HANDSHAKE_DEADLINE, builder.handshake(io))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the HTTP/2 handshake took too long"))?
        .map_err(io::Error::other)?;
    let pings = connection.ping_pong();
    let silent = keepalive::until_silent(pings, peer);
    tokio::pin!(silent, drain);
    let mut draining = false;
    loop {
        tokio::select! {
            request = connection.accept() => match request {
                Some(Ok((request, respond))) => handle(Incoming { request, respond }),
                // We have had enough of it, and have said so.
                Some(Err(e)) if e.is_library() => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
                Some(Err(e)) => return Err(io::Error::other(e)),
                None => return Ok(()),
            },
            () = &mut drain, if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = &mut silent => return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer is gone")),
        }
    }
}
