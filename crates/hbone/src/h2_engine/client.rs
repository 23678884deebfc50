//! The opening end of a tunnel.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode, Version};
use mesh::TunnelAddr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

use super::configure;
use super::heard::HeardIo;
use super::keepalive::Liveness;
use super::stream::Stream;
use crate::handshake::TunnelTask;
use crate::request::ConnectRequest;
use crate::settings::{self, Http2};
use crate::stream_end::Resets;
use crate::tunnel::{ANSWER_DEADLINE, OpenError};

/// An open tunnel. Clones share it.
#[derive(Clone)]
pub(crate) struct Client {
    requests: SendRequest<Bytes>,
    liveness: Liveness,
    /// The number of bytes that fill a packet.
    write_size: usize,
    /// What had been heard of the peer when the tunnel was found to be silent.
    silent_since: Rc<Cell<Option<u64>>>,
    /// True once the connection has closed.
    closed: watch::Receiver<bool>,
}

impl Client {
    /// Starts HTTP/2 on a connection to `peer`. The task drives it until it closes, the last clone
    /// of the tunnel is dropped, or `cancel` completes.
    pub(crate) async fn start<I>(
        io: I,
        peer: TunnelAddr,
        http2: Http2,
        write_size: usize,
        cancel: impl Future<Output = ()> + 'static,
    ) -> io::Result<(Self, TunnelTask)>
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let mut builder = h2::client::Builder::new();
        configure!(builder, http2, max_headers: settings::MAX_RESPONSE_HEADERS)
            .initial_max_send_streams(http2.streams as usize)
            .enable_push(false);
        let liveness = Liveness::default();
        let heard = liveness.heard.clone();
        let io = HeardIo::new(io, heard);
        let (requests, mut connection) = super::handshake(builder.handshake(io)).await?;
        let keepalive = liveness.clone();
        let (close, closed) = watch::channel(false);
        let pings = connection.ping_pong();
        let task: TunnelTask = Box::pin(async move {
            tokio::select! {
                result = connection => if let Err(e) = result {
                    tracing::debug!(%peer, "tunnel closed: {e}");
                },
                () = keepalive.until_unresponsive(pings, peer) => {}
                () = cancel => {}
            }
            let _ = close.send(true); // the tunnel may have been dropped
        });
        let client = Self {
            requests,
            liveness,
            write_size,
            silent_since: Rc::default(),
            closed,
        };
        Ok((client, task))
    }

    /// Whether the peer has sent nothing since the tunnel was found to be silent.
    fn is_silent(&self) -> bool {
        self.silent_since.get() == Some(self.liveness.heard.count())
    }

    /// The number of streams that may be open; none once the tunnel has closed or is silent.
    pub(crate) fn max_streams(&self) -> usize {
        if *self.closed.borrow() || self.is_silent() {
            return 0;
        }
        self.requests.current_max_send_streams()
    }

    /// Opens a stream, as [`crate::Tunnel::open`]. Returns the response headers as well.
    pub(crate) async fn open(
        &self,
        request: &ConnectRequest,
        is_pooled: bool,
    ) -> Result<(Stream, HeaderMap), OpenError> {
        let failed = |e: h2::Error| match e.reason() {
            Some(reason) if e.is_reset() && e.is_remote() => OpenError::Reset(reason),
            _ => OpenError::Closed(e.to_string()),
        };
        let mut requests = self.requests.clone().ready().await.map_err(failed)?;
        let (response, send) = requests
            .send_request(encode(request), false)
            .map_err(failed)?;
        let answer = timeout(ANSWER_DEADLINE, response);
        let response = tokio::select! {
            response = answer => response,
            () = self.liveness.until_silent(), if is_pooled => {
                self.silent_since.set(Some(self.liveness.heard.count()));
                return Err(OpenError::Silent);
            }
        };
        let response = response.map_err(|_| OpenError::TimedOut)?.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(OpenError::Rejected(response.status()));
        }
        let (head, body) = response.into_parts();
        let resets = Resets::of_peer(&head.headers);
        let stream = Stream::new(send, body, resets, self.write_size);
        Ok((stream, head.headers))
    }
}

fn encode(connect: &ConnectRequest) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    if let Ok(uri) = connect.authority.to_string().parse() {
        *request.uri_mut() = uri; // otherwise the peer rejects the request
    }
    *request.headers_mut() = connect.headers();
    request
}
