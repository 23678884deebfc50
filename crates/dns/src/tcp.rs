//! Queries over TCP. Each client connection has at most one connection to a name server, and all
//! messages are relayed back, including those of a zone transfer.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use istio::port;
use netns::sockopt::reset_on_close;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep_until};

use crate::answer_cache::{AnswerCache, AnswerKey, Upstreams, max_negative};
use crate::exchange::{Action, ForwardedQuery};
use crate::known_answer::{Reply, UpstreamAnswer};
use crate::lookup_cache::Origin;
use crate::message::is_complete;
use crate::query::{Query, QueryError};
use crate::query_event::Protocol;
use crate::validity::STALE_ANSWER_DELAY;
use crate::{Client, DEADLINE, exchange, forward};

/// Idle timeout of a connection; the same as ztunnel's.
const IDLE: Duration = Duration::from_secs(5);
/// Maximum number of pending queries of one connection; no more are read until some are answered.
const MAX_PENDING: usize = 64;

/// Serves an accepted connection until it ends.
pub async fn serve(pod: impl Client, stream: TcpStream, peer: SocketAddr) {
    let permit = pod.limits().connections.clone().try_acquire_owned();
    let orig_dst = pod_socket::orig_dst(&stream, port::DNS).ok().map(|d| d.0);
    let upstreams = match (orig_dst, &permit) {
        // Not captured: the pod itself has connected to this port.
        (Some(to), Ok(_)) if to.port() == port::DNS && to.ip().is_loopback() => {
            Upstreams::Configured
        }
        (Some(to), Ok(_)) if to.port() != port::DNS => Upstreams::Queried(to),
        // A client outside the pod, or too many connections.
        _ => {
            let _ = reset_on_close(&stream); // fails only if it is closed already
            return;
        }
    };
    let (reader, to_client) = stream.into_split();
    let connection = ClientConnection {
        pod: pod.clone(),
        peer,
        upstreams,
        client: MessageReader::new(reader),
        to_client,
        upstream: None,
        pending: Vec::new(),
    };
    tokio::select! {
        _ = connection.run() => {} // errors are those of the client's connection
        _ = pod.until_terminated() => {}
    }
}

struct ClientConnection<C: Client> {
    pod: C,
    peer: SocketAddr,
    upstreams: Upstreams,
    client: MessageReader<OwnedReadHalf>,
    to_client: OwnedWriteHalf,
    upstream: Option<UpstreamConnection<C::Stream>>,
    /// Pending queries, oldest first.
    pending: Vec<PendingQuery>,
}

/// A connection to a name server.
struct UpstreamConnection<S> {
    address: SocketAddr,
    messages: MessageReader<ReadHalf<S>>,
    writer: WriteHalf<S>,
}

/// A forwarded query without an answer of the name server yet.
struct PendingQuery {
    query: Query,
    key: Option<AnswerKey>,
    /// `None` once the client has an expired answer.
    forwarded: Option<ForwardedQuery>,
    /// When the client gets an expired answer, if there is one.
    stale_at: Option<Instant>,
    deadline: Instant,
}

impl PendingQuery {
    fn new(query: Query, forwarded: ForwardedQuery, cache: &AnswerCache) -> Self {
        let now = Instant::now();
        let key = forwarded.key.clone();
        let stale = key.as_ref().and_then(|key| cache.0.stale(key));
        Self {
            query,
            key,
            forwarded: Some(forwarded),
            stale_at: stale.map(|_| now + STALE_ANSWER_DELAY),
            deadline: now + DEADLINE,
        }
    }

    /// When something has to be done about it without an answer.
    fn next_step(&self) -> Instant {
        self.stale_at.unwrap_or(self.deadline)
    }
}

impl<C: Client> ClientConnection<C> {
    async fn run(mut self) -> io::Result<()> {
        let mut client_is_open = true;
        let mut idle_since = Instant::now();
        loop {
            let idle = self.pending.is_empty();
            if idle && !client_is_open {
                return Ok(());
            }
            let limit = self.pending.iter().map(PendingQuery::next_step).min();
            let limit = limit.unwrap_or(idle_since + IDLE);
            tokio::select! {
                message = self.client.next(),
                    if client_is_open && self.pending.len() < MAX_PENDING => match message? {
                    Some(message) => self.handle(&message).await?,
                    None => client_is_open = false,
                },
                message = UpstreamConnection::next(&mut self.upstream) => match message {
                    Ok(Some(message)) => self.relay_answer(message).await?,
                    Ok(None) => self.fail_all("name server closed the connection").await?,
                    Err(e) => self.fail_all(&e.to_string()).await?,
                },
                () = sleep_until(limit) => {
                    if idle {
                        return Ok(());
                    }
                    self.step(limit).await?;
                }
                () = self.pod.until_draining(), if idle => return Ok(()),
            }
            idle_since = Instant::now();
        }
    }

    /// Answers or forwards one message of the client.
    async fn handle(&mut self, bytes: &[u8]) -> io::Result<()> {
        let query = match Query::parse(bytes) {
            Ok(query) => query,
            Err(QueryError::Refuse(refusal)) => return write(&mut self.to_client, &refusal).await,
            Err(QueryError::Ignore) => return Err(io::ErrorKind::InvalidData.into()),
        };
        match exchange::handle(&self.pod, &query, Protocol::Tcp, self.peer, self.upstreams) {
            Some(Action::Answer(bytes)) => write(&mut self.to_client, &bytes).await,
            Some(Action::Forward(forwarded)) => self.forward(query, *forwarded).await,
            None => Ok(()),
        }
    }

    async fn forward(&mut self, query: Query, forwarded: ForwardedQuery) -> io::Result<()> {
        forwarded.record_forwarded();
        let pending = PendingQuery::new(query, forwarded, self.pod.cache());
        if self.upstream.is_none() {
            match forward::connect(&self.pod, self.peer, self.upstreams).await {
                Ok((stream, address)) => {
                    self.upstream = Some(UpstreamConnection::new(stream, address))
                }
                Err(reason) => return self.finish(pending, Err(reason)).await,
            }
        }
        let sent = match &mut self.upstream {
            Some(upstream) => write(&mut upstream.writer, pending.query.bytes()).await,
            None => Ok(()), // unreachable: it was connected above
        };
        self.pending.push(pending);
        match sent {
            Ok(()) => Ok(()),
            Err(e) => self.fail_all(&e.to_string()).await,
        }
    }

    /// Relays one message of the name server to the client.
    async fn relay_answer(&mut self, message: Vec<u8>) -> io::Result<()> {
        let answered = self
            .pending
            .iter()
            .position(|p| p.query.is_answered_by(&message, p.query.id()));
        let (Some(position), Some(upstream)) = (answered, &self.upstream) else {
            return write(&mut self.to_client, &message).await; // more of a zone transfer
        };
        let from = upstream.address;
        let pending = self.pending.remove(position);
        let query = &pending.query;
        let answer = match self.pod.settings() {
            Some(settings) if is_complete(&message) => {
                let max_negative = max_negative(query, settings);
                Ok(UpstreamAnswer::new(query, message, from, max_negative))
            }
            _ => Err("the answer of the name server is damaged".to_owned()),
        };
        self.finish(pending, answer).await
    }

    /// Records the result of a query, and sends it to the client if that has none yet: the name
    /// server's answer, or an expired one if it has none.
    async fn finish(
        &mut self,
        pending: PendingQuery,
        answer: Result<UpstreamAnswer, String>,
    ) -> io::Result<()> {
        let result = match &pending.key {
            Some(key) => self.pod.cache().0.record(key, answer),
            None => answer.map(|answer| Reply::new(answer.into())),
        };
        let Some(forwarded) = pending.forwarded else {
            return Ok(());
        };
        let answer = forwarded.answered(&pending.query, result, Origin::OwnLookup);
        write(&mut self.to_client, &answer).await
    }

    /// Takes the next step for a query whose time has come; others may still be answered.
    async fn step(&mut self, now: Instant) -> io::Result<()> {
        let is_due = |p: &PendingQuery| p.next_step() <= now;
        let Some(due) = self.pending.iter().position(is_due) else {
            return Ok(());
        };
        if self.pending[due].stale_at.take().is_some() {
            return self.answer_stale(due).await;
        }
        let expired = self.pending.remove(due);
        if self.pending.is_empty() {
            self.upstream = None;
        }
        let reason = "no answer from the name server";
        self.finish(expired, Err(reason.to_owned())).await
    }

    /// Sends the client an expired answer. The name server's is still awaited, for the cache.
    async fn answer_stale(&mut self, position: usize) -> io::Result<()> {
        let pending = &mut self.pending[position];
        let stale = |key| self.pod.cache().0.stale(key);
        let Some(stale) = pending.key.as_ref().and_then(stale) else {
            return Ok(());
        };
        let Some(forwarded) = pending.forwarded.take() else {
            return Ok(());
        };
        let answer = forwarded.answered(&pending.query, stale, Origin::OwnLookup);
        write(&mut self.to_client, &answer).await
    }

    /// Fails all pending queries and drops the connection to the name server; the next query opens
    /// a new one.
    async fn fail_all(&mut self, reason: &str) -> io::Result<()> {
        self.upstream = None;
        for pending in std::mem::take(&mut self.pending) {
            self.finish(pending, Err(reason.to_owned())).await?;
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> UpstreamConnection<S> {
    fn new(stream: S, address: SocketAddr) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            address,
            messages: MessageReader::new(reader),
            writer,
        }
    }

    /// Reads the next message; pending forever without a connection.
    async fn next(this: &mut Option<Self>) -> io::Result<Option<Vec<u8>>> {
        match this {
            Some(upstream) => upstream.messages.next().await,
            None => std::future::pending().await,
        }
    }
}

/// Reads length-prefixed messages (RFC 1035 section 4.2.2).
pub(super) struct MessageReader<R> {
    reader: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: BytesMut::new(),
        }
    }

    /// Reads the next message; `None` at the end of the stream. Cancel safe.
    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(length) = self
                .buffer
                .first_chunk()
                .map(|l| usize::from(u16::from_be_bytes(*l)))
                && self.buffer.len() >= 2 + length
            {
                self.buffer.advance(2);
                return Ok(Some(self.buffer.split_to(length).to_vec()));
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Writes a length-prefixed message.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    // A single write, because some clients expect length and message in one segment.
    let bytes = [&length.to_be_bytes(), message].concat();
    forward::with_deadline(to.write_all(&bytes)).await
}
