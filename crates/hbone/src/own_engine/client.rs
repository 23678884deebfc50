//! The opening end of a tunnel.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;

use h2::Reason;
use http::{HeaderMap, StatusCode};
use mesh::TunnelAddr;
use tokio::time::timeout;
use tunnel::{Change, ResponseHead};

use super::connection::{Connection, End, StreamHandle};
use super::handshake::Established;
use super::stream::{Stream, reason};
use crate::handshake::TunnelTask;
use crate::request::ConnectRequest;
use crate::settings::{self, Http2};
use crate::silence::until_silent;
use crate::stream_end::Resets;
use crate::tunnel::{ANSWER_DEADLINE, OpenError};

/// An open tunnel. Clones share it.
#[derive(Clone)]
pub(crate) struct Client {
    users: Rc<Users>,
    /// The number of bytes that fill a packet.
    write_size: usize,
    /// When the peer was last heard before the tunnel was found to be silent.
    silent_since: Rc<Cell<Option<u64>>>,
}

/// Those who may open streams on a tunnel. Without them, it closes after its last stream.
struct Users(Rc<Connection>);

impl Client {
    /// Starts HTTP/2 with `peer`. The task drives the tunnel until it closes, its last clone is
    /// dropped, or `cancel` completes.
    pub(crate) fn start(
        established: Established,
        peer: TunnelAddr,
        http2: Http2,
        write_size: usize,
        cancel: impl Future<Output = ()> + 'static,
    ) -> io::Result<(Self, TunnelTask)> {
        let config = super::config(&http2, http2.streams, settings::MAX_RESPONSE_HEADERS);
        let (driver, connection) = established.start(config, http2.growth)?;
        let task: TunnelTask = Box::pin(async move {
            tokio::select! {
                result = driver.run(peer, |_| {}) => if let Err(e) = result {
                    tracing::debug!(%peer, "tunnel closed: {e}");
                },
                () = cancel => {}
            }
        });
        let client = Self {
            users: Rc::new(Users(connection)),
            write_size,
            silent_since: Rc::default(),
        };
        Ok((client, task))
    }

    #[cfg(test)]
    pub(super) fn connection(&self) -> Rc<Connection> {
        self.users.0.clone()
    }

    fn heard_ms(&self) -> u64 {
        self.users.0.drive(|state| state.tunnel.heard_ms())
    }

    /// Whether the peer has sent nothing since the tunnel was found to be silent.
    fn is_silent(&self) -> bool {
        self.silent_since.get() == Some(self.heard_ms())
    }

    /// The number of streams that may be open; none once the tunnel has closed or is silent.
    pub(crate) fn max_streams(&self) -> usize {
        if self.is_silent() {
            return 0;
        }
        self.users.0.drive(|state| state.tunnel.max_streams())
    }

    /// Opens a stream, as [`crate::Tunnel::open`]. Returns the response headers as well.
    pub(crate) async fn open(
        &self,
        request: &ConnectRequest,
        is_pooled: bool,
    ) -> Result<(Stream, HeaderMap), OpenError> {
        let (authority, headers) = (request.authority.to_string(), request.headers());
        let opened = poll_fn(|cx| self.users.0.poll_open(cx, &authority, &headers)).await;
        let handle = opened.map_err(|error| self.not_opened(error))?;
        let answer = poll_fn(|cx| {
            handle.poll(cx, |stream| match stream.response.take() {
                Some(head) => Some(Ok(head)),
                None => stream.end.clone().map(Err),
            })
        });
        let answer = tokio::select! {
            answer = timeout(ANSWER_DEADLINE, answer) => answer,
            () = self.until_silent(), if is_pooled => {
                self.silent_since.set(Some(self.heard_ms()));
                return Err(OpenError::Silent);
            }
        };
        match answer {
            Ok(Ok(head)) => self.established(handle, head),
            Ok(Err(end)) => Err(self.not_answered(end)),
            Err(_) => Err(OpenError::TimedOut),
        }
    }

    fn established(
        &self,
        handle: StreamHandle,
        head: ResponseHead,
    ) -> Result<(Stream, HeaderMap), OpenError> {
        if head.status != StatusCode::OK {
            return Err(OpenError::Rejected(head.status));
        }
        let resets = Resets::of_peer(&head.headers);
        let stream = Stream::new(handle, resets, self.write_size);
        Ok((stream, head.headers))
    }

    async fn until_silent(&self) {
        let connection = &self.users.0;
        let ping = || {
            let now_ms = connection.now_ms();
            connection.update(|state| state.tunnel.ping(now_ms));
        };
        until_silent(|| self.heard_ms(), ping).await;
    }

    /// Why no stream was opened.
    fn not_opened(&self, error: tunnel::OpenError) -> OpenError {
        match error {
            tunnel::OpenError::HeadTooLarge => {
                OpenError::Rejected(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
            }
            error => {
                let ended = self.users.0.drive(|state| state.ended.clone());
                let text = ended.map_or_else(|| error.to_string(), |e| e.to_string());
                OpenError::Closed(text)
            }
        }
    }

    /// Why a stream ended before the response.
    fn not_answered(&self, end: End) -> OpenError {
        let is_closing = self.users.0.drive(|state| state.tunnel.max_streams() == 0);
        match end {
            End::Stream(Change::Refused) if !is_closing => OpenError::Reset(Reason::REFUSED_STREAM),
            End::Stream(Change::Reset { code, .. }) => OpenError::Reset(reason(code)),
            End::Stream(Change::Finished { code }) => OpenError::Reset(reason(code)),
            End::Stream(Change::Failed(violation)) => OpenError::Closed(violation.to_string()),
            End::Stream(_) => OpenError::Closed("the tunnel accepts no more streams".to_owned()),
            End::Tunnel(ended) => OpenError::Closed(ended.to_string()),
        }
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        self.0.update(|state| state.tunnel.drain());
    }
}
