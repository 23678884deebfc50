//! The end of a tunnel that opens it.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode, Version};
use mesh::{HostPort, Text};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

use super::keepalive;
use super::settings::{self, Http2};
use super::stream::HboneStream;

/// How long the peer may take for the answer to CONNECT; it connects to the application meanwhile, for 10 s at most.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
/// Which network a request comes from.
pub(crate) const FORWARDED_NETWORK: &str = "x-forwarded-network";
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// What a CONNECT says besides where to.
pub(crate) struct Opening {
    pub(crate) authority: HostPort,
    /// Who the client is, for telemetry.
    pub(crate) baggage: String,
    /// RFC 7239.
    pub(crate) forwarded: String,
    /// The network that the client is in, where the tunnel leads to another one.
    pub(crate) network: Option<Text>,
}

/// A stream whose other end is connected.
pub(crate) struct Opened {
    pub(crate) stream: HboneStream,
    pub(crate) count: StreamCount,
    /// What else the peer has said.
    pub(crate) headers: HeaderMap,
}

/// Why there is no stream.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum OpenError {
    /// The peer said no.
    #[error("http status: {0}")]
    Refused(StatusCode),
    /// The peer said nothing.
    #[error("no answer to CONNECT within {} s", ANSWER_DEADLINE.as_secs())]
    Silent,
    /// The tunnel ended before the peer answered; another one may do.
    #[error("the tunnel ended: {0}")]
    Ended(String),
}

/// An open tunnel. Clones share it.
#[derive(Clone)]
pub(crate) struct Tunnel {
    requests: SendRequest<Bytes>,
    streams: Rc<Cell<usize>>,
    /// How many there may be.
    most: usize,
    /// True when the connection has ended.
    ended: watch::Receiver<bool>,
}

impl Tunnel {
    /// Begins HTTP/2 on a connection to `peer`. A task of its own drives it until it ends, nobody has it any more, or `cut` completes.
    pub(crate) async fn start<I>(
        io: I,
        peer: SocketAddr,
        http2: Http2,
        cut: impl Future<Output = ()> + 'static,
    ) -> io::Result<Self>
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(http2.stream_window)
            .initial_connection_window_size(http2.connection_window)
            .max_frame_size(http2.frame)
            .max_header_list_size(settings::MAX_RESPONSE_HEADERS)
            .max_send_buffer_size(settings::SEND_BUFFER)
            .data_frame_budget(http2.small_frame_budget())
            .initial_max_send_streams(http2.streams as usize)
            .enable_push(false);
        let (requests, mut connection) = timeout(HANDSHAKE_DEADLINE, builder.handshake(io))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the HTTP/2 handshake took too long"))?
            .map_err(io::Error::other)?;
        let (end, ended) = watch::channel(false);
        let pings = connection.ping_pong();
        tokio::task::spawn_local(async move {
            tokio::select! {
                over = connection => if let Err(e) = over {
                    tracing::debug!(%peer, "a tunnel ended: {e}");
                },
                () = keepalive::until_silent(pings, peer) => {}
                () = cut => {}
            }
            let _ = end.send(true); // nobody waits for it
        });
        Ok(Self { requests, streams: Rc::default(), most: http2.streams as usize, ended })
    }

    /// Whether another stream can be opened on it.
    pub(super) fn has_room(&self) -> bool {
        !*self.ended.borrow() && self.streams.get() < self.most.min(self.requests.current_max_send_streams())
    }

    /// Whether both are the same connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.streams, &other.streams)
    }

    /// How many streams are open.
    pub(super) fn streams(&self) -> usize {
        self.streams.get()
    }

    /// Opens a stream: returns when the peer has connected to the destination.
    pub(crate) async fn open(&self, opening: &Opening) -> Result<Opened, OpenError> {
        let count = StreamCount::new(&self.streams);
        let ended = |e: h2::Error| OpenError::Ended(e.to_string());
        let mut requests = self.requests.clone().ready().await.map_err(ended)?;
        let (response, send) = requests.send_request(request(opening), false).map_err(ended)?;
        let response = timeout(ANSWER_DEADLINE, response).await.map_err(|_| OpenError::Silent)?.map_err(ended)?;
        if response.status() != StatusCode::OK {
            return Err(OpenError::Refused(response.status()));
        }
        let (head, body) = response.into_parts();
        Ok(Opened { stream: HboneStream::new(send, body), count, headers: head.headers })
    }
}

/// Counts a stream as open for as long as it lives.
pub(crate) struct StreamCount(Rc<Cell<usize>>);

impl StreamCount {
    fn new(streams: &Rc<Cell<usize>>) -> Self {
        streams.set(streams.get() + 1);
        Self(streams.clone())
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn request(opening: &Opening) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    if let Ok(uri) = opening.authority.to_string().parse() {
        *request.uri_mut() = uri; // a name that is none is refused by the peer
    }
    let traceparent = format!("00-{:032x}-{:016x}-00", rand::random::<u128>(), rand::random::<u64>());
    let headers = [("baggage", &opening.baggage), ("forwarded", &opening.forwarded), ("traceparent", &traceparent)];
    for (name, value) in headers {
        // Names and labels of workloads may hold what a header cannot: then that header is left out.
        if let Ok(value) = HeaderValue::from_str(value) {
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    if let Some(value) = opening.network.as_deref().and_then(|n| HeaderValue::from_str(n).ok()) {
        request.headers_mut().insert(FORWARDED_NETWORK, value);
    }
    request
}
