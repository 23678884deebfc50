//! The connection of a client connection to its name server.

use std::net::SocketAddr;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};

use crate::framing::{MessageReader, Outgoing};

type Connecting<S> = Pin<Box<dyn Future<Output = Result<(S, SocketAddr), String>>>>;

/// A connection to a name server, which opens with the first query.
pub(super) enum Upstream<S> {
    /// It is not open.
    Closed,
    /// It is being opened.
    Connecting(Connecting<S>),
    /// It is open.
    Open(OpenUpstream<S>),
}

/// An open connection to a name server.
pub(super) struct OpenUpstream<S> {
    address: SocketAddr,
    messages: MessageReader<ReadHalf<S>>,
    queries: Outgoing<WriteHalf<S>>,
}

/// What happens to a connection to a name server.
pub(super) enum UpstreamEvent<S> {
    /// A name server has accepted the connection.
    Connected(S, SocketAddr),
    /// A name server has sent a message.
    Message(Vec<u8>, SocketAddr),
    /// No name server accepts a connection, for this reason.
    Unreachable(String),
    /// The connection has ended, for this reason.
    Closed(String),
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Upstream<S> {
    /// A connection that was accepted, to which these queries are sent.
    pub(super) fn open<'q>(
        stream: S,
        address: SocketAddr,
        queries: impl Iterator<Item = &'q [u8]>,
    ) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let mut outgoing = Outgoing::new(writer);
        queries.for_each(|query| outgoing.push(query));
        Self::Open(OpenUpstream {
            address,
            messages: MessageReader::new(reader),
            queries: outgoing,
        })
    }

    /// Sends a query if the connection is open, or begins to connect.
    pub(super) fn send<F>(&mut self, query: &[u8], connect: impl FnOnce() -> F)
    where
        F: Future<Output = Result<(S, SocketAddr), String>> + 'static,
    {
        match self {
            Self::Closed => *self = Self::Connecting(Box::pin(connect())),
            Self::Connecting(_) => {}
            Self::Open(open) => open.queries.push(query),
        }
    }

    /// Waits for the next event. Cancel safe; after [`UpstreamEvent::Connected`] the caller
    /// replaces this.
    pub(super) async fn next(&mut self) -> UpstreamEvent<S> {
        match self {
            Self::Closed => std::future::pending().await,
            Self::Connecting(connecting) => match connecting.as_mut().await {
                Ok((stream, address)) => UpstreamEvent::Connected(stream, address),
                Err(reason) => UpstreamEvent::Unreachable(reason),
            },
            Self::Open(open) => open.next().await,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> OpenUpstream<S> {
    async fn next<T>(&mut self) -> UpstreamEvent<T> {
        loop {
            tokio::select! {
                message = self.messages.next() => return match message {
                    Ok(Some(message)) => UpstreamEvent::Message(message, self.address),
                    Ok(None) => UpstreamEvent::Closed("name server closed the connection".into()),
                    Err(e) => UpstreamEvent::Closed(e.to_string()),
                },
                written = self.queries.write() => if let Err(e) = written {
                    return UpstreamEvent::Closed(e.to_string());
                },
            }
        }
    }
}
