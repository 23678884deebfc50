//! The accepting end of a tunnel.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;

use http::{HeaderMap, Method, StatusCode};
use mesh::ClientAddr;
use mesh::admit::host_and_port;
use tunnel::RequestHead;

use super::connection::{Request, StreamHandle};
use super::handshake::Established;
use super::stream::Stream;
use crate::request::{self, IncomingRequest as AnyRequest};
use crate::settings::{self, Http2};
use crate::stream_end::Resets;

/// A request of a peer, as [`crate::IncomingRequest`].
pub(crate) struct IncomingRequest {
    handle: StreamHandle,
    head: RequestHead,
    /// The number of bytes that fill a packet of the tunnel.
    write_size: usize,
}

impl IncomingRequest {
    /// The requested host, an address or a name, and port; `None` unless this is a CONNECT with
    /// both.
    pub(crate) fn authority(&self) -> Option<(&str, u16)> {
        if self.head.method != Method::CONNECT {
            return None;
        }
        host_and_port(&self.head.authority)
    }

    /// The request headers.
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// Accepts the request, once the destination is connected.
    pub(crate) fn accept(self, baggage: Option<&str>) -> io::Result<Stream> {
        let headers = Resets::response_headers(baggage);
        let id = self.handle.id();
        let answered = self
            .handle
            .update(|tunnel| tunnel.respond(id, StatusCode::OK, &headers, false));
        answered.map_err(io::Error::other)?;
        let resets = Resets::of_peer(&self.head.headers);
        Ok(Stream::new(self.handle, resets, self.write_size))
    }

    /// Completes when the peer has reset the stream, or the tunnel has ended.
    pub(crate) async fn left(&mut self) {
        poll_fn(|cx| self.handle.poll_end(cx)).await;
    }

    /// Rejects the request with this status.
    pub(crate) fn reject(self, status: StatusCode) {
        let id = self.handle.id();
        self.handle.update(|tunnel| tunnel.reject(id, status));
    }
}

/// Serves one connection of `peer`, as [`crate::Accepted::serve`].
pub(crate) async fn serve(
    established: Established,
    peer: ClientAddr,
    http2: Http2,
    write_size: usize,
    drain: impl Future<Output = ()>,
    mut handle: impl FnMut(AnyRequest),
) -> io::Result<()> {
    let (streams, headers) = (
        settings::MAX_STREAMS_ACCEPTED,
        settings::MAX_REQUEST_HEADERS,
    );
    let config = super::config(&http2, streams, headers);
    let (driver, connection) = established.start(config, http2.growth)?;
    let handle = |Request {
                      handle: stream,
                      head,
                  }| {
        handle(AnyRequest(request::Engine::Own(IncomingRequest {
            handle: stream,
            head,
            write_size,
        })));
    };
    let mut running = pin!(driver.run(peer, handle));
    tokio::select! {
        result = &mut running => return result,
        () = drain => {}
    }
    connection.update(|state| state.tunnel.drain());
    running.await
}
