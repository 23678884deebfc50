//! Connecting, and relaying bytes in both directions until both sides have finished, either side
//! ends, or the connection must be closed.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use byte_relay::{LastAnswer, Server, StreamEnd};
use hbone::IncomingRequest;
use mesh::Workload;
use mesh::baggage::Baggage;
use netns::sockopt::reset_on_close;
use telemetry::ConnectionEvent;
use tokio::net::TcpStream;

use super::budget::Account;
use super::connection::{silence_after_answer, until_closed_as_idle};
use super::error::ConnectionError;
use super::join::Acceptance;
use super::policy_enforcer::Permit;
use super::upstream::Upstream;
use super::worker::Worker;
use crate::inpod::Pod;

/// The side that opened a connection.
pub(super) trait Downstream {
    /// What it can be relayed to.
    type Upstream;

    /// Completes when the side has reset the connection, before it is relayed.
    async fn left(&mut self);

    /// Refuses the connection.
    fn refuse(self, error: &ConnectionError);

    /// Accepts the connection and relays it to a connected destination until `last` ends it or
    /// `closed` completes. The destination is side B.
    async fn relay(
        self,
        upstream: Self::Upstream,
        event: &ConnectionEvent,
        last: LastAnswer<'_>,
        closed: impl Future<Output = ConnectionError>,
    ) -> Result<(), ConnectionError>;
}

/// The only way to relay a connection: with a permit, connects with `connect` and relays until
/// either side ends, both have finished, the permit is withdrawn, or `terminated` completes. An
/// event that is not open yet is opened when the destination is connected or has failed.
pub(super) async fn connect_and_relay<P, D, E>(
    worker: &Worker,
    pod: &Pod,
    permit: Result<P, ConnectionError>,
    mut downstream: D,
    mut event: E,
    terminated: impl Future<Output = ConnectionError>,
    connect: impl AsyncFnOnce(&P, &mut E) -> Result<D::Upstream, ConnectionError>,
) where
    P: Permit,
    D: Downstream,
    E: Into<ConnectionEvent>,
{
    let permit = match permit {
        Ok(permit) => permit,
        Err(error) => {
            let event = event.into();
            downstream.refuse(&error);
            return event.finish(&Err(error));
        }
    };
    let closed = async {
        tokio::select! {
            reason = permit.withdrawn() => reason,
            reason = terminated => reason,
        }
    };
    tokio::pin!(closed);
    let connected = tokio::select! {
        connected = connect(&permit, &mut event) => connected,
        reason = &mut closed => Err(reason),
        () = downstream.left() => {
            let error = "the client closed the connection before it was connected";
            Err(io::Error::new(io::ErrorKind::ConnectionReset, error).into())
        }
    };
    let event = event.into();
    let outcome = match connected {
        Ok(upstream) => {
            let silence = silence_after_answer(worker);
            let mut idle = pin!(until_closed_as_idle(worker, &event));
            let last = LastAnswer {
                server: Server::B,
                silence: &silence,
                idle: idle.as_mut(),
            };
            let relayed = pin!(downstream.relay(upstream, &event, last, closed));
            pod.budget.turns.take(worker.index, relayed).await
        }
        Err(error) => {
            downstream.refuse(&error);
            Err(error)
        }
    };
    event.finish(&outcome);
}

/// A connection of an application.
impl Downstream for TcpStream {
    type Upstream = Upstream;

    async fn left(&mut self) {
        byte_relay::until_reset(self).await;
    }

    fn refuse(self, _: &ConnectionError) {
        let _ = reset_on_close(&self); // already closed
    }

    async fn relay(
        self,
        upstream: Upstream,
        event: &ConnectionEvent,
        last: LastAnswer<'_>,
        closed: impl Future<Output = ConnectionError>,
    ) -> Result<(), ConnectionError> {
        let (received, sent) = (|n| event.received(n), |n| event.sent(n));
        outcome(match upstream {
            Upstream::Tunnel(stream, account) => {
                let closed = within_budget(&account, closed);
                let held = account.clone();
                let server = Server::A;
                let last = LastAnswer { server, ..last };
                stream.relay(self, held, sent, received, last, closed).await
            }
            Upstream::Joined(stream, joined) => {
                joined.relay(self, stream, event, last, closed).await
            }
            Upstream::Plain(tcp) => {
                byte_relay::relay_tcp(self, tcp, received, sent, last, closed).await
            }
        })
    }
}

/// A request on a tunnel.
pub(super) struct TunnelRequest {
    pub(super) incoming: IncomingRequest,
    /// The workload that the response describes as baggage, if it does.
    pub(super) baggage_of: Option<Arc<Workload>>,
    /// The account of the bytes that wait in the stream.
    pub(super) account: Rc<Account>,
    /// The offer of the client's end, if it is in this process as well.
    pub(super) join: Option<Acceptance>,
}

impl Downstream for TunnelRequest {
    type Upstream = TcpStream;

    async fn left(&mut self) {
        self.incoming.left().await;
    }

    fn refuse(self, error: &ConnectionError) {
        self.incoming.reject(error.status());
    }

    async fn relay(
        self,
        upstream: TcpStream,
        event: &ConnectionEvent,
        last: LastAnswer<'_>,
        closed: impl Future<Output = ConnectionError>,
    ) -> Result<(), ConnectionError> {
        // Before the response, so that the client's end has the socket when that arrives.
        let joined = match self.join {
            Some(join) => join.hand_over(upstream)?,
            None => Err(upstream),
        };
        let baggage = self.baggage_of.map(|w| Baggage::from(&*w).encode());
        let downstream = self.incoming.accept(baggage.as_deref())?;
        let upstream = match joined {
            Ok(leash) => return leash.hold(downstream, event, closed).await,
            Err(upstream) => upstream,
        };
        let (received, sent) = (|n| event.received(n), |n| event.sent(n));
        let (closed, held) = (within_budget(&self.account, closed), self.account.clone());
        let relayed = downstream.relay(upstream, held, received, sent, last, closed);
        outcome(relayed.await)
    }
}

/// Completes with `closed`, or when the stream must end because too many bytes wait.
async fn within_budget(
    account: &Account,
    closed: impl Future<Output = ConnectionError>,
) -> ConnectionError {
    tokio::select! {
        reason = closed => reason,
        reason = account.until_over_budget() => reason,
    }
}

fn outcome(relayed: Result<Option<StreamEnd>, ConnectionError>) -> Result<(), ConnectionError> {
    match relayed? {
        None | Some(StreamEnd::Finished) => Ok(()),
        Some(StreamEnd::Reset(e)) => Err(e.into()),
    }
}
