//! The opening end of a tunnel.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use h2::Reason;
use http::{HeaderMap, StatusCode};

use crate::pool::PooledTunnel;
use crate::request::ConnectRequest;
use crate::settings::Http2;
use crate::stream::{self, HboneStream};
use crate::{h2_engine, own_engine};

/// How long the peer may take to answer a CONNECT. It meanwhile connects to the application, for up
/// to 10 s.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// A stream whose destination is connected.
pub struct EstablishedStream {
    /// The stream.
    pub stream: HboneStream,
    /// The response headers.
    pub headers: HeaderMap,
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The peer rejected the request.
    #[error("http status: {0}")]
    Rejected(StatusCode),
    /// The peer did not answer in time.
    #[error("no answer to CONNECT within {} s", ANSWER_DEADLINE.as_secs())]
    TimedOut,
    /// The peer sends nothing at all, not even the answer to a ping. Likely cause: its node is
    /// down.
    #[error("the tunnel is silent: the peer did not answer a ping")]
    Silent,
    /// The peer reset the stream instead of answering. The tunnel is intact.
    #[error("the peer reset the stream: {0}")]
    Reset(Reason),
    /// The tunnel closed before the peer answered; the request may be retried on another one.
    #[error("the tunnel closed: {0}")]
    Closed(String),
}

/// An open tunnel. Clones share it.
#[derive(Clone)]
pub struct Tunnel {
    engine: Engine,
    streams: Rc<Cell<usize>>,
    max_streams: usize,
    opened: Instant,
}

/// What a tunnel is made of.
#[derive(Clone)]
pub(crate) enum Engine {
    H2(h2_engine::Client),
    Own(own_engine::Client),
}

impl Tunnel {
    pub(crate) fn new(engine: Engine, http2: Http2) -> Self {
        Self {
            engine,
            streams: Rc::default(),
            max_streams: http2.streams as usize,
            opened: Instant::now(),
        }
    }

    /// When the tunnel was opened.
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// Opens a stream. Returns when the peer has connected to the destination. A tunnel that was
    /// open before is not trusted, `is_pooled`: its peer may have disappeared.
    ///
    /// # Errors
    /// Why the peer did not open it.
    pub async fn open(
        &self,
        request: &ConnectRequest,
        is_pooled: bool,
    ) -> Result<EstablishedStream, OpenError> {
        let guard = StreamGuard::count(&self.streams);
        let (engine, headers) = match &self.engine {
            Engine::H2(client) => {
                let (stream, headers) = client.open(request, is_pooled).await?;
                (stream::Engine::H2(stream), headers)
            }
            Engine::Own(client) => {
                let (stream, headers) = client.open(request, is_pooled).await?;
                (stream::Engine::Own(stream), headers)
            }
        };
        let stream = HboneStream::new(engine, Some(guard));
        Ok(EstablishedStream { stream, headers })
    }
}

impl PooledTunnel for Tunnel {
    fn has_room(&self) -> bool {
        let limit = match &self.engine {
            Engine::H2(client) => client.max_streams(),
            Engine::Own(client) => client.max_streams(),
        };
        self.streams.get() < self.max_streams.min(limit)
    }

    fn streams(&self) -> usize {
        self.streams.get()
    }

    fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.streams, &other.streams)
    }
}

/// Counts a stream as open for as long as it lives.
pub(crate) struct StreamGuard(Rc<Cell<usize>>);

impl StreamGuard {
    fn count(streams: &Rc<Cell<usize>>) -> Self {
        streams.set(streams.get() + 1);
        Self(streams.clone())
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
