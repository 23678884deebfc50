//! Queries over TCP. Each client connection has at most one connection to a name server. Equal
//! queries of all connections share an answer; messages that belong to no query, as those of a
//! zone transfer, are relayed.

use std::net::SocketAddr;
use std::time::Duration;

use istio::port;
use netns::sockopt::reset_on_close;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::answer_cache::{Upstreams, max_negative};
use crate::exchange::{Action, ForwardedQuery};
use crate::framing::{MessageReader, Outgoing};
use crate::known_answer::UpstreamAnswer;
use crate::message::is_complete;
use crate::query::{Query, QueryError};
use crate::query_event::Protocol;
use crate::upstream::{Upstream, UpstreamEvent};
use crate::{Client, DEADLINE, exchange};

/// Idle timeout of a connection; the same as ztunnel's.
const IDLE: Duration = Duration::from_secs(5);
/// Maximum number of pending queries of one connection; no more are read until some are answered.
const MAX_PENDING: usize = 64;
/// Maximum number of bytes that wait for a client before more of its queries are read.
const MAX_UNREAD: usize = 64 << 10;

/// Serves an accepted connection until it ends.
pub async fn serve(pod: impl Client, stream: TcpStream, peer: SocketAddr) {
    let permit = pod.limits().connections.clone().try_acquire_owned();
    let orig_dst = pod_socket::orig_dst(&stream, port::DNS).ok().map(|d| d.0);
    let (upstreams, permit) = match (orig_dst, permit) {
        // Not captured: the pod itself has connected to this port.
        (Some(to), Ok(permit)) if to.port() == port::DNS && to.ip().is_loopback() => {
            (Upstreams::Configured, permit)
        }
        (Some(to), Ok(permit)) if to.port() != port::DNS => (Upstreams::Queried(to), permit),
        // A client outside the pod, or too many connections.
        _ => {
            let _ = reset_on_close(&stream); // fails only if it is closed already
            return;
        }
    };
    let (reader, writer) = stream.into_split();
    let (lookups, wanted) = unbounded_channel();
    let connection = ClientConnection {
        pod: pod.clone(),
        peer,
        upstreams,
        client: Some(ClientEnd {
            queries: Some(MessageReader::new(reader)),
            answers: Outgoing::new(writer),
            _permit: permit,
        }),
        waiting: JoinSet::new(),
        lookups,
        wanted,
        upstream: Upstream::Closed,
        pending: Vec::new(),
        has_own_query: false,
    };
    tokio::select! {
        () = connection.run() => {}
        _ = pod.until_terminated() => {}
    }
}

struct ClientConnection<C: Client> {
    pod: C,
    peer: SocketAddr,
    upstreams: Upstreams,
    /// `None` once it has left; lookups that others may share continue.
    client: Option<ClientEnd>,
    /// The answers that the client waits for and that others may share.
    waiting: JoinSet<Vec<u8>>,
    lookups: UnboundedSender<PendingQuery>,
    /// Lookups that have begun and were not sent yet.
    wanted: UnboundedReceiver<PendingQuery>,
    upstream: Upstream<C::Stream>,
    /// What the name server has been asked, oldest first.
    pending: Vec<PendingQuery>,
    /// Whether it was asked anything whose answers are only the client's.
    has_own_query: bool,
}

/// The connection of the client.
struct ClientEnd {
    /// `None` once the client has sent its last query.
    queries: Option<MessageReader<OwnedReadHalf>>,
    answers: Outgoing<OwnedWriteHalf>,
    _permit: OwnedSemaphorePermit,
}

/// A query to the name server without an answer yet.
struct PendingQuery {
    query: Query,
    asker: Asker,
    /// Whether it was sent again, after the name server had closed the connection.
    is_repeated: bool,
    deadline: Instant,
}

/// Who gets the answer.
enum Asker {
    /// All that share the lookup.
    Lookup(oneshot::Sender<Result<UpstreamAnswer, String>>),
    /// The client alone.
    Client(Box<ForwardedQuery>),
}

impl PendingQuery {
    fn new(query: Query, asker: Asker) -> Self {
        Self {
            query,
            asker,
            is_repeated: false,
            deadline: Instant::now() + DEADLINE,
        }
    }
}

/// What happens to the connection of the client.
enum ClientEvent {
    /// The client has sent a message.
    Message(Vec<u8>),
    /// The client sends no more messages.
    End,
    /// The client has accepted bytes of answers.
    Written,
    /// The connection is broken.
    Left,
}

impl ClientEnd {
    /// Waits for the next event; no messages are read while this many queries are `pending`, or
    /// the client does not read its answers. Cancel safe.
    async fn next(this: &mut Option<Self>, pending: usize) -> ClientEvent {
        let Some(client) = this else {
            return std::future::pending().await;
        };
        let reads = pending < MAX_PENDING && client.answers.len() < MAX_UNREAD;
        let queries = client.queries.as_mut().filter(|_| reads);
        let message = async {
            match queries {
                Some(queries) => queries.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = message => match message {
                Ok(Some(message)) => ClientEvent::Message(message),
                Ok(None) => ClientEvent::End,
                Err(_) => ClientEvent::Left,
            },
            written = client.answers.write() => match written {
                Ok(()) => ClientEvent::Written,
                Err(_) => ClientEvent::Left,
            },
        }
    }
}

impl<C: Client> ClientConnection<C> {
    async fn run(mut self) {
        let mut idle_since = Instant::now();
        loop {
            let is_idle = self.is_idle();
            let has_more = self.client.as_ref().is_some_and(|c| c.queries.is_some());
            if is_idle && !has_more {
                return;
            }
            let limit = self.deadline().unwrap_or(idle_since + IDLE);
            let pending = self.waiting.len().max(self.pending.len());
            tokio::select! {
                event = ClientEnd::next(&mut self.client, pending) => self.client_changed(event),
                Some(answer) = self.waiting.join_next() => if let Ok(answer) = answer {
                    self.answer(&answer);
                },
                Some(lookup) = self.wanted.recv() => self.ask(lookup),
                event = self.upstream.next() => self.upstream_changed(event),
                () = sleep_until(limit) => {
                    if is_idle {
                        return;
                    }
                    self.expire(limit);
                }
                () = self.pod.until_draining(), if is_idle => return,
            }
            idle_since = Instant::now();
        }
    }

    fn is_idle(&self) -> bool {
        let unread = self.client.as_ref().map_or(0, |c| c.answers.len());
        unread == 0 && self.waiting.is_empty() && self.wanted.is_empty() && self.pending.is_empty()
    }

    /// When something has to be done without an event.
    fn deadline(&self) -> Option<Instant> {
        let of_client = self.client.as_ref().and_then(|c| c.answers.deadline());
        let of_queries = self.pending.iter().map(|p| p.deadline);
        of_queries.chain(of_client).min()
    }

    fn client_changed(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Message(message) => match Query::parse(&message) {
                Ok(query) => self.received(query),
                Err(QueryError::Refuse(refusal)) => self.answer(&refusal),
                Err(QueryError::Ignore) => self.client_left(),
            },
            ClientEvent::End => {
                if let Some(client) = &mut self.client {
                    client.queries = None;
                }
            }
            ClientEvent::Written => {}
            ClientEvent::Left => self.client_left(),
        }
    }

    /// Answers or forwards a query of the client.
    fn received(&mut self, query: Query) {
        match exchange::handle(&self.pod, &query, Protocol::Tcp, self.peer, self.upstreams) {
            Some(Action::Answer(bytes)) => self.answer(&bytes),
            Some(Action::Forward(forwarded)) if forwarded.key.is_some() => {
                self.share(query, *forwarded);
            }
            Some(Action::Forward(forwarded)) => {
                forwarded.record_forwarded();
                self.has_own_query = true;
                self.ask(PendingQuery::new(query, Asker::Client(forwarded)));
            }
            None => {}
        }
    }

    /// Waits for an answer that others may share. If there is none, and no equal query is pending
    /// on any connection, this one asks the name server.
    fn share(&mut self, query: Query, forwarded: ForwardedQuery) {
        let (pod, lookups) = (self.pod.clone(), self.lookups.clone());
        self.waiting.spawn_local(async move {
            let look_up = || {
                let (answered, answer) = oneshot::channel();
                let lookup = PendingQuery::new(query.clone(), Asker::Lookup(answered));
                let _ = lookups.send(lookup); // the connection outlives this task
                async move {
                    let ended = |_| Err("the client's connection ended".to_owned());
                    answer.await.unwrap_or_else(ended)
                }
            };
            exchange::forward(&pod, &query, forwarded, look_up).await
        });
    }

    /// Sends a query to the name server, once it is connected.
    fn ask(&mut self, pending: PendingQuery) {
        let (pod, peer, upstreams) = (&self.pod, self.peer, self.upstreams);
        self.upstream.send(pending.query.bytes(), || {
            let pod = pod.clone();
            async move { crate::forward::connect(&pod, peer, upstreams).await }
        });
        self.pending.push(pending);
    }

    fn upstream_changed(&mut self, event: UpstreamEvent<C::Stream>) {
        match event {
            UpstreamEvent::Connected(stream, address) => {
                let queries = self.pending.iter().map(|p| p.query.bytes());
                self.upstream = Upstream::open(stream, address, queries);
            }
            UpstreamEvent::Message(message, from) => self.relay(message, from),
            UpstreamEvent::Unreachable(reason) => self.fail_all(&reason),
            UpstreamEvent::Closed(reason) => {
                // It may have closed an idle connection just then (RFC 7766 section 6.2.4).
                self.upstream = Upstream::Closed;
                for mut pending in std::mem::take(&mut self.pending) {
                    let is_lookup = matches!(pending.asker, Asker::Lookup(_));
                    if is_lookup && !std::mem::replace(&mut pending.is_repeated, true) {
                        self.ask(pending);
                    } else {
                        self.finish(pending, Err(reason.clone()));
                    }
                }
            }
        }
    }

    /// Handles one message of the name server.
    fn relay(&mut self, message: Vec<u8>, from: SocketAddr) {
        let mut pending = self.pending.iter();
        let answered = pending.position(|p| p.query.is_answered_by(&message, p.query.id()));
        let Some(position) = answered else {
            if self.has_own_query {
                self.answer(&message); // more of a zone transfer
            }
            return;
        };
        let pending = self.pending.remove(position);
        let answer = match self.pod.settings() {
            Some(settings) if is_complete(&message) => {
                let max_negative = max_negative(&pending.query, settings);
                Ok(UpstreamAnswer::new(
                    &pending.query,
                    message,
                    from,
                    max_negative,
                ))
            }
            _ => Err("the answer of the name server is damaged".to_owned()),
        };
        self.finish(pending, answer);
    }

    /// Passes the result of a query on.
    fn finish(&mut self, pending: PendingQuery, answer: Result<UpstreamAnswer, String>) {
        match pending.asker {
            Asker::Lookup(lookup) => {
                let _ = lookup.send(answer); // no one waits for it if the pod has left
            }
            Asker::Client(forwarded) => {
                let bytes = forwarded.answered_alone(&pending.query, answer);
                self.answer(&bytes);
            }
        }
    }

    /// Sends the client a message, unless it has left.
    fn answer(&mut self, message: &[u8]) {
        if let Some(client) = &mut self.client {
            client.answers.push(message);
        }
    }

    /// Ends what is overdue; other queries may still be answered.
    fn expire(&mut self, now: Instant) {
        let unread = self.client.as_ref().and_then(|c| c.answers.deadline());
        if unread.is_some_and(|at| at <= now) {
            self.client_left();
        }
        let all = std::mem::take(&mut self.pending).into_iter();
        let (due, pending): (Vec<_>, Vec<_>) = all.partition(|p| p.deadline <= now);
        self.pending = pending;
        if self.pending.is_empty() {
            self.upstream = Upstream::Closed;
        }
        for expired in due {
            let reason = "no answer from the name server";
            self.finish(expired, Err(reason.to_owned()));
        }
    }

    /// Closes the client's connection. Lookups continue, because others may share them.
    fn client_left(&mut self) {
        self.client = None;
        self.waiting.abort_all();
        self.pending.retain(|p| matches!(p.asker, Asker::Lookup(_)));
    }

    /// Fails all pending queries; the next one connects again.
    fn fail_all(&mut self, reason: &str) {
        self.upstream = Upstream::Closed;
        for pending in std::mem::take(&mut self.pending) {
            self.finish(pending, Err(reason.to_owned()));
        }
    }
}
