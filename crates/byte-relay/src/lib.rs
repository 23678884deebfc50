//! Copies bytes between the two sides of a connection, in both directions, until both have
//! finished or one side ends as a whole. What a side sent before its end is delivered to the other
//! side, and then the end as what it is: an orderly one or a reset. A side is a socket of an
//! application, or anything else that implements [`Source`] and [`Sink`]. Bulk data between two
//! sockets is moved by splice(2) instead of copied.

#![forbid(unsafe_code)]

mod chunks;
mod copy;
mod last_answer;
mod splice;
mod tcp_side;
mod turn;

use std::future::Future;
use std::io;

use tokio::net::TcpStream;

pub use chunks::Chunks;
pub use copy::{STALLED, Side, Sink, Source, relay};
pub use last_answer::{LastAnswer, Server};
pub use splice::close_spare_pipes;
pub use tcp_side::until_reset;

/// How one side of a connection ended as a whole, both directions at once.
#[derive(Debug)]
pub enum StreamEnd {
    /// It has sent everything and reads no more.
    Finished,
    /// It was reset, or broke.
    Reset(io::Error),
}

/// Relays between a side and a socket of an application, as [`relay`].
///
/// # Errors
/// That of `closed`.
pub async fn relay_to_tcp<E>(
    side: &mut Side<impl Source, impl Sink>,
    mut tcp: TcpStream,
    record_from_side: impl Fn(usize),
    record_from_tcp: impl Fn(usize),
    last: LastAnswer<'_>,
    closed: impl Future<Output = E>,
) -> Result<Option<StreamEnd>, E> {
    relay(
        side,
        &mut Side::of(&mut tcp),
        record_from_side,
        record_from_tcp,
        last,
        closed,
    )
    .await
}

/// Relays between two sockets of applications, as [`relay`].
///
/// # Errors
/// That of `closed`.
pub async fn relay_tcp<E>(
    mut downstream: TcpStream,
    upstream: TcpStream,
    record_received: impl Fn(usize),
    record_sent: impl Fn(usize),
    last: LastAnswer<'_>,
    closed: impl Future<Output = E>,
) -> Result<Option<StreamEnd>, E> {
    let mut downstream = Side::of(&mut downstream);
    relay_to_tcp(
        &mut downstream,
        upstream,
        record_received,
        record_sent,
        last,
        closed,
    )
    .await
}
