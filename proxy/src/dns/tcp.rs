//! Queries over TCP. What is forwarded on a connection has one connection to the name server, so that every message
//! of it comes back, also those of a zone transfer.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use netns::sockopt::reset_on_close;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use super::answer::{self, Asker, Outcome};
use super::observe::{Asked, Protocol};
use super::query::{Malformed, Query, encode, name_exists};
use super::{DEADLINE, forward};
use crate::data::{Accepted, Phase, cut_short, sockets};
use crate::inpod::PORTS;

/// How long a connection may be open and say nothing; as ztunnel's.
const IDLE: Duration = Duration::from_secs(5);
/// Queries of one connection that wait for the name server; then no more are read.
const WAITING: usize = 64;

/// From the accepted connection to its end.
pub(crate) async fn serve(accepted: Accepted) {
    let limit = accepted.pod.dns.connections.clone().try_acquire_owned();
    let orig_dst = sockets::orig_dst(&accepted.stream, PORTS.dns).ok().map(|d| d.0);
    let upstreams = match (orig_dst, &accepted.worker.node.dns, &limit) {
        // Nothing was captured: the pod itself has connected to this port.
        (Some(to), Some(settings), Ok(_)) if to.port() == PORTS.dns && to.ip().is_loopback() => {
            settings.upstreams.clone()
        }
        (Some(to), Some(_), Ok(_)) if to.port() != PORTS.dns => vec![to],
        // Somebody outside knows the port, or there are too many.
        _ => {
            let _ = reset_on_close(&accepted.stream); // closed already
            return;
        }
    };
    let (worker, pod) = (accepted.worker.clone(), accepted.pod.clone());
    let connection = Connection::new(accepted, upstreams);
    tokio::select! {
        _ = connection.run() => {} // an error is the client's own end of the connection
        _ = cut_short(&worker, &pod) => {}
    }
}

struct Connection {
    accepted: Parts,
    upstreams: Vec<SocketAddr>,
    client: Messages,
    to_client: OwnedWriteHalf,
    upstream: Option<Upstream>,
    waiting: Vec<Waiting>,
}

/// What is left of an accepted connection without its stream.
struct Parts {
    worker: std::rc::Rc<crate::data::Worker>,
    pod: Arc<crate::inpod::Pod>,
    peer: SocketAddr,
}

struct Upstream {
    address: SocketAddr,
    messages: Messages,
    writer: OwnedWriteHalf,
}

/// A query that was forwarded and not answered yet.
struct Waiting {
    query: Query,
    asked: Asked,
    known: bool,
    until: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(accepted: Accepted, upstreams: Vec<SocketAddr>) -> Self {
        let Accepted { worker, pod, stream, peer, .. } = accepted;
        let (reader, to_client) = stream.into_split();
        let accepted = Parts { worker, pod, peer };
        Self { accepted, upstreams, client: Messages::new(reader), to_client, upstream: None, waiting: Vec::new() }
    }

    async fn run(mut self) -> io::Result<()> {
        let mut phase = self.accepted.worker.node.phase.clone();
        let mut client_writes = true;
        let mut quiet_since = Instant::now();
        loop {
            let idle = self.waiting.is_empty();
            if idle && !client_writes {
                return Ok(());
            }
            // Nobody's time runs out before that of the first that waits.
            let limit = self.waiting.first().map_or(quiet_since + IDLE, |w| w.until);
            tokio::select! {
                message = self.client.next(), if client_writes && self.waiting.len() < WAITING => match message? {
                    Some(message) => self.take(&message).await?,
                    None => client_writes = false,
                },
                message = Upstream::next(&mut self.upstream) => match message {
                    Ok(Some(message)) => self.give(message).await?,
                    Ok(None) => self.give_up("the name server closed the connection").await?,
                    Err(e) => self.give_up(&e.to_string()).await?,
                },
                () = sleep_until(limit) => match idle {
                    true => return Ok(()),
                    false => self.give_up_first().await?,
                },
                _ = phase.wait_for(|p| *p != Phase::Serving), if idle => return Ok(()),
            }
            quiet_since = Instant::now();
        }
    }

    /// Takes one message of the client: answers it, or forwards it.
    async fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let query = match Query::parse(bytes) {
            Ok(query) => query,
            Err(Malformed::Refused(refusal)) => return write(&mut self.to_client, &refusal).await,
            Err(Malformed::Ignored) => return Err(io::ErrorKind::InvalidData.into()),
        };
        let node = self.accepted.worker.node.clone();
        let Some(settings) = &node.dns else { return Ok(()) };
        let (asked, outcome) = {
            let mesh = node.mesh.load();
            let workload = self.accepted.pod.workload(&mesh);
            let asked = Asked::begin(&node.metrics, &workload, &query, Protocol::Tcp, self.accepted.peer);
            let asker = Asker { mesh: &mesh, workload: &workload, cluster_domain: &settings.cluster_domain };
            (asked, answer::decide(&query, &asker))
        };
        match outcome {
            Outcome::Mesh { service, addresses } => {
                let message = answer::message(&query, addresses, rand::random_range(0..=usize::MAX));
                let bytes = encode(&message, usize::from(u16::MAX)).unwrap_or_else(|| query.failure());
                asked.answered(&query, &service.hostname, &bytes);
                write(&mut self.to_client, &bytes).await
            }
            Outcome::Forward { known } => self.forward(query, asked, known).await,
        }
    }

    async fn forward(&mut self, query: Query, asked: Asked, known: bool) -> io::Result<()> {
        let Ok(permit) = self.accepted.pod.dns.forwarded.clone().try_acquire_owned() else {
            asked.failed(&query, "too many queries wait already");
            return write(&mut self.to_client, &query.failure()).await;
        };
        asked.forwarded();
        let until = Instant::now() + DEADLINE;
        if self.upstream.is_none() {
            match forward::connect(&self.accepted.pod, &self.upstreams).await {
                Ok((stream, address)) => self.upstream = Some(Upstream::new(stream, address)),
                Err(why) => {
                    asked.failed(&query, &why);
                    return write(&mut self.to_client, &query.failure()).await;
                }
            }
        }
        let sent = match &mut self.upstream {
            Some(upstream) => write(&mut upstream.writer, query.bytes()).await,
            None => Ok(()), // it has just been made
        };
        self.waiting.push(Waiting { query, asked, known, until, _permit: permit });
        match sent {
            Ok(()) => Ok(()),
            Err(e) => self.give_up(&e.to_string()).await,
        }
    }

    /// Gives the client one message of the name server.
    async fn give(&mut self, mut message: Vec<u8>) -> io::Result<()> {
        let answered = self.waiting.iter().position(|w| w.query.is_answered_by(&message, w.query.id()));
        if let (Some(position), Some(upstream)) = (answered, &self.upstream) {
            let Waiting { query, asked, known, .. } = self.waiting.remove(position);
            if known {
                name_exists(&mut message);
            }
            asked.answered_by(&query, upstream.address, &message);
        }
        write(&mut self.to_client, &message).await
    }

    /// The name server does not answer the query that has waited longest; it may yet answer others.
    async fn give_up_first(&mut self) -> io::Result<()> {
        let first = self.waiting.remove(0);
        if self.waiting.is_empty() {
            self.upstream = None;
        }
        first.asked.failed(&first.query, "the name server does not answer");
        write(&mut self.to_client, &first.query.failure()).await
    }

    /// The name server is not to be had: whoever waits is told, and the next query has a new connection.
    async fn give_up(&mut self, why: &str) -> io::Result<()> {
        self.upstream = None;
        for waiting in self.waiting.drain(..) {
            let failure = waiting.query.failure();
            waiting.asked.failed(&waiting.query, why);
            write(&mut self.to_client, &failure).await?;
        }
        Ok(())
    }
}

impl Upstream {
    fn new(stream: TcpStream, address: SocketAddr) -> Self {
        let (reader, writer) = stream.into_split();
        Self { address, messages: Messages::new(reader), writer }
    }

    /// The next message; never, without a connection.
    async fn next(this: &mut Option<Self>) -> io::Result<Option<Vec<u8>>> {
        match this {
            Some(upstream) => upstream.messages.next().await,
            None => std::future::pending().await,
        }
    }
}

/// Messages, each with its length before it (RFC 1035 section 4.2.2).
struct Messages {
    reader: OwnedReadHalf,
    buffer: BytesMut,
}

impl Messages {
    fn new(reader: OwnedReadHalf) -> Self {
        Self { reader, buffer: BytesMut::new() }
    }

    /// The next message, or `None` at the end. Nothing is lost when this is dropped half-way.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(length) = self.buffer.first_chunk().map(|l| usize::from(u16::from_be_bytes(*l)))
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

async fn write(to: &mut OwnedWriteHalf, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    // In one piece: some clients expect that.
    let bytes = [&length.to_be_bytes(), message].concat();
    forward::limited(to.write_all(&bytes)).await
}
