//! Asking a name server, from within the pod, as the pod would have.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::DEADLINE;
use super::query::Query;
use crate::data::sockets::{self, MARK};
use crate::inpod::Pod;

/// As long as a datagram can be.
const LONGEST: usize = 65_535;

/// Asks each of these over UDP until one answers; each has its share of the time. Every query goes from a port of its own
/// under an id of its own, so that nobody can guess both.
pub(super) async fn ask(pod: &Pod, query: &Query, upstreams: &[SocketAddr]) -> Result<(Vec<u8>, SocketAddr), String> {
    let share = DEADLINE / u32::try_from(upstreams.len().max(1)).unwrap_or(u32::MAX);
    let mut why = "no name server is known".to_owned();
    for upstream in upstreams {
        match timeout(share, exchange(pod, query, *upstream)).await {
            Ok(Ok(answer)) => return Ok((answer, *upstream)),
            Ok(Err(e)) => why = format!("{upstream}: {e}"),
            Err(_) => why = format!("{upstream}: no answer within {share:?}"),
        }
    }
    Err(why)
}

async fn exchange(pod: &Pod, query: &Query, upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let socket = pod.netns.run(|| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(upstream), Type::DGRAM.nonblocking().cloexec(), None)?;
        socket.set_mark(MARK)?;
        // Connected, so that only the name server is heard, and that its refusal is.
        socket.connect(&upstream.into())?;
        Ok(socket)
    });
    let socket = UdpSocket::from_std(socket.map_err(io::Error::other)??.into())?;
    let id = rand::random();
    socket.send(&query.with_id(id)).await?;
    loop {
        socket.readable().await?;
        // Only now, so that a query that waits takes no more than itself.
        let mut answer = Vec::with_capacity(LONGEST);
        match socket.try_recv_buf(&mut answer) {
            Ok(_) if query.is_answered_by(&answer, id) => {
                answer[..2].copy_from_slice(&query.id().to_be_bytes());
                answer.shrink_to_fit();
                return Ok(answer);
            }
            Ok(_) => {} // somebody guesses, or an answer of before
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

/// Connects to the first of these that takes the connection.
pub(super) async fn connect(pod: &Pod, upstreams: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), String> {
    let mut why = "no name server is known".to_owned();
    for upstream in upstreams {
        match limited(sockets::connect(pod, *upstream, None)).await {
            Ok(stream) => return Ok((stream, *upstream)),
            Err(e) => why = format!("{upstream}: {e}"),
        }
    }
    Err(why)
}

/// The same, or an error when it takes longer than a name server may.
pub(super) async fn limited<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("not within {} s", Duration::as_secs(&DEADLINE)));
    timeout(DEADLINE, work).await.map_err(late)?
}
