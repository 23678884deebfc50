//! Forwarding of queries to name servers, from within the pod.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use pod_socket::PodNetwork;
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::answer_cache::{Upstreams, max_negative};
use crate::known_answer::UpstreamAnswer;
use crate::message::{is_complete, response_code};
use crate::query::Query;
use crate::{Client, DEADLINE};

/// Maximum size of a UDP datagram.
const MAX_DATAGRAM: usize = 65_535;

/// Why a query fails that arrives although DNS is disabled.
const NOT_SERVED: &str = "DNS is not served";
/// Time until a query over UDP without an answer is sent again; doubled each time. Equal queries of
/// clients share one, so the packets that clients repeat do not replace a lost one.
const RETRANSMIT: Duration = Duration::from_secs(1);

/// Queries the name servers of a pod over UDP, until the pod leaves.
pub(super) async fn look_up<C: Client>(
    pod: C,
    query: Query,
    upstreams: Upstreams,
) -> Result<UpstreamAnswer, String> {
    let settings = pod.settings().ok_or(NOT_SERVED)?;
    let addresses = upstreams.addresses(settings);
    let (bytes, from) = tokio::select! {
        answered = query_udp(pod.network(), &query, addresses) => answered?,
        reason = pod.until_terminated() => return Err(reason),
    };
    let max_negative = max_negative(&query, settings);
    Ok(UpstreamAnswer::new(&query, bytes, from, max_negative))
}

/// Queries name servers over UDP, one after the other, until one answers; they share the deadline
/// equally. An answer that reports a failure of the name server is used only if no other one is
/// better. Each query has its own source port and a random id, which makes answers hard to forge.
async fn query_udp(
    pod: &impl PodNetwork,
    query: &Query,
    upstreams: &[SocketAddr],
) -> Result<(Vec<u8>, SocketAddr), String> {
    let share = DEADLINE / u32::try_from(upstreams.len().max(1)).unwrap_or(u32::MAX);
    let mut reason = "no name server is configured".to_owned();
    let mut failure = None;
    for upstream in upstreams {
        match timeout(share, exchange(pod, query, *upstream)).await {
            Ok(Ok(answer)) if is_failure(&answer) => {
                failure.get_or_insert((answer, *upstream));
            }
            Ok(Ok(answer)) => return Ok((answer, *upstream)),
            Ok(Err(e)) => reason = format!("{upstream}: {e}"),
            Err(_) => reason = format!("{upstream}: no answer within {share:?}"),
        }
    }
    failure.ok_or(reason)
}

/// Whether another name server may have an answer, as libraries of applications decide.
fn is_failure(answer: &[u8]) -> bool {
    use ResponseCode::{NotImp, Refused, ServFail};
    matches!(response_code(answer), ServFail | Refused | NotImp)
}

/// Queries one name server over UDP.
pub(super) async fn exchange(
    pod: &impl PodNetwork,
    query: &Query,
    upstream: SocketAddr,
) -> io::Result<Vec<u8>> {
    let socket = pod.netns().run(|| -> io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(upstream),
            Type::DGRAM.nonblocking().cloexec(),
            None,
        )?;
        socket.set_mark(istio::mark::PROXY)?;
        // Connected, so that only datagrams and ICMP errors of the name server are received.
        socket.connect(&upstream.into())?;
        Ok(socket)
    });
    let socket = UdpSocket::from_std(socket.map_err(io::Error::other)??.into())?;
    let id = rand::random();
    let mut wait = RETRANSMIT;
    loop {
        socket.send(&query.with_id(id)).await?;
        match timeout(wait, receive(&socket, query, id)).await {
            Ok(received) => return received,
            Err(_) => wait *= 2,
        }
    }
}

/// Receives the answer to the query that was sent with this id.
async fn receive(socket: &UdpSocket, query: &Query, id: u16) -> io::Result<Vec<u8>> {
    loop {
        socket.readable().await?;
        // Allocated only now, so that pending queries use little memory.
        let mut answer = Vec::with_capacity(MAX_DATAGRAM);
        match socket.try_recv_buf(&mut answer) {
            Ok(_) if query.is_answered_by(&answer, id) && is_complete(&answer) => {
                query.adopt(&mut answer);
                answer.shrink_to_fit();
                return Ok(answer);
            }
            Ok(_) => {} // forged, damaged, or a late answer
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

/// Connects to the first of these name servers that accepts the connection.
pub(super) async fn connect<C: Client>(
    pod: &C,
    client: SocketAddr,
    upstreams: Upstreams,
) -> Result<(C::Stream, SocketAddr), String> {
    let settings = pod.settings().ok_or(NOT_SERVED)?;
    let mut reason = "no name server is configured".to_owned();
    for upstream in upstreams.addresses(settings) {
        let connecting = pod.connect(client, *upstream);
        match with_deadline(async { connecting.await.map_err(io::Error::other) }).await {
            Ok(stream) => return Ok((stream, *upstream)),
            Err(e) => reason = format!("{upstream}: {e}"),
        }
    }
    Err(reason)
}

/// Runs `work` with the deadline of a name server.
pub(super) async fn with_deadline<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let timed_out = |_| {
        let message = format!("timed out after {} s", DEADLINE.as_secs());
        io::Error::new(io::ErrorKind::TimedOut, message)
    };
    timeout(DEADLINE, work).await.map_err(timed_out)?
}
