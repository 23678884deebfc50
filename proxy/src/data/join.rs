//! Joining the two sockets of a connection within a node, if its both ends are served by this
//! process: the bytes then pass neither the tunnel nor any interface but `lo` of both pods.
//!
//! The client's end offers to join with a token in its CONNECT request. The request arrives by a
//! real tunnel, and everything is decided as for any other. Only then the destination's end hands
//! its socket to the client's end, which relays. The stream stays open without data: when either
//! end ends it, or its tunnel breaks, the connection ends. A request without an offer that this
//! process made is relayed through its stream.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use byte_relay::{LastAnswer, StreamEnd};
use hbone::{HboneStream, JoinToken};
use mesh::{Identity, TunnelAddr};
use netns::sockopt::reset_on_close;
use parking_lot::Mutex;
use telemetry::ConnectionEvent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::error::ConnectionError;

/// How long the destination's end waits until the client's end, which relays, has ended: it may
/// wait for a reset to be delivered.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// The offers of this process that are not accepted yet, by token.
#[derive(Default)]
pub(crate) struct Joins(Mutex<HashMap<u128, Pending>>);

struct Pending {
    /// Whose offer it is.
    client: Identity,
    /// The destination's end of the tunnel by which it is made.
    to: TunnelAddr,
    hand_over: oneshot::Sender<HandedOver>,
}

/// An offer of a client's end, until it is dropped.
pub(super) struct Offer {
    joins: Arc<Joins>,
    token: u128,
    handed_over: oneshot::Receiver<HandedOver>,
}

/// An offer that the destination's end can accept.
pub(super) struct Acceptance(oneshot::Sender<HandedOver>);

/// What the destination's end hands to the client's end.
pub(super) struct HandedOver {
    application: Unclaimed,
    moved: Arc<Moved>,
    /// Completes when the destination's end ends the connection.
    ended: oneshot::Receiver<()>,
    /// Reports how the connection has ended.
    outcome: oneshot::Sender<Outcome>,
}

/// A socket that is reset unless it is claimed.
struct Unclaimed(Option<std::net::TcpStream>);

/// How many bytes were relayed.
#[derive(Default)]
struct Moved {
    from_client: AtomicU64,
    to_client: AtomicU64,
}

/// How the client's end has ended; an error with its text.
type Outcome = Result<(), (io::ErrorKind, String)>;

impl Joins {
    /// Takes the offer with this token, if `client` made it on a tunnel to `to`.
    pub(super) fn take(
        &self,
        token: &str,
        client: &Identity,
        to: TunnelAddr,
    ) -> Option<Acceptance> {
        let token = u128::from_str_radix(token, 16).ok()?;
        let mut offers = self.0.lock();
        let is_meant = |offer: &Pending| offer.client == *client && offer.to == to;
        offers.get(&token).filter(|offer| is_meant(offer))?;
        offers
            .remove(&token)
            .map(|offer| Acceptance(offer.hand_over))
    }
}

impl Offer {
    pub(super) fn new(joins: &Arc<Joins>, client: Identity, to: TunnelAddr) -> Self {
        let (hand_over, handed_over) = oneshot::channel();
        let token = rand::random();
        let offer = Pending {
            client,
            to,
            hand_over,
        };
        joins.0.lock().insert(token, offer);
        Self {
            joins: joins.clone(),
            token,
            handed_over,
        }
    }

    pub(super) fn token(&self) -> JoinToken {
        JoinToken::new(format!("{:032x}", self.token))
    }

    /// What was handed over, if the offer was accepted. It is before the response is sent.
    pub(super) fn accepted(mut self) -> Option<HandedOver> {
        self.handed_over.try_recv().ok()
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.joins.0.lock().remove(&self.token);
    }
}

impl Acceptance {
    /// Hands over the socket of the application, and returns the destination's end; or the socket,
    /// if the client's end has left.
    pub(super) fn hand_over(self, application: TcpStream) -> io::Result<Result<Leash, TcpStream>> {
        let moved = Arc::<Moved>::default();
        let (end, ended) = oneshot::channel();
        let (outcome, result) = oneshot::channel();
        let handed_over = HandedOver {
            application: Unclaimed(Some(application.into_std()?)),
            moved: moved.clone(),
            ended,
            outcome,
        };
        let leash = Leash {
            moved,
            _end: end,
            result,
        };
        Ok(match self.0.send(handed_over) {
            Ok(()) => Ok(leash),
            Err(returned) => Err(returned.application.claim()?),
        })
    }
}

/// The destination's end of a joined connection.
pub(super) struct Leash {
    moved: Arc<Moved>,
    /// Ends the connection when it is dropped.
    _end: oneshot::Sender<()>,
    result: oneshot::Receiver<Outcome>,
}

impl Leash {
    /// Waits until the client's end has ended, or ends it when `closed` completes or the stream
    /// ends.
    pub(super) async fn hold(
        self,
        stream: HboneStream,
        event: &ConnectionEvent,
        closed: impl Future<Output = ConnectionError>,
    ) -> Result<(), ConnectionError> {
        event.joined();
        let mut stream = stream.into_io();
        let Self {
            moved,
            _end: end,
            mut result,
        } = self;
        let closed = tokio::select! {
            biased;
            result = &mut result => Ok(result),
            reason = closed => Err(Some(reason)),
            // Nothing is sent on it.
            _ = stream.read_u8() => Err(None),
        };
        let (reason, result) = match closed {
            Ok(result) => (None, Some(result)),
            Err(reason) => {
                drop(end);
                // Nothing is relayed any more once it has ended.
                (reason, timeout(END_DEADLINE, result).await.ok())
            }
        };
        event.received(bytes(&moved.from_client));
        event.sent(bytes(&moved.to_client));
        let _ = stream.shutdown().await; // the tunnel may have closed
        match (reason, result) {
            (Some(reason), _) => Err(reason),
            (None, Some(Ok(outcome))) => {
                outcome.map_err(|(kind, text)| io::Error::new(kind, text).into())
            }
            (None, _) => Err(ended("the client's end of the joined connection has ended").into()),
        }
    }
}

impl HandedOver {
    /// Relays between both applications until both have finished, one has ended, `last` ends the
    /// connection, `closed` completes, or the destination's end has ended.
    pub(super) async fn relay(
        self,
        client: TcpStream,
        stream: HboneStream,
        event: &ConnectionEvent,
        last: LastAnswer<'_>,
        closed: impl Future<Output = ConnectionError>,
    ) -> Result<Option<StreamEnd>, ConnectionError> {
        event.joined();
        let mut stream = stream.into_io();
        let Self {
            application,
            moved,
            ended: other_ended,
            outcome,
        } = self;
        let closed = async {
            tokio::select! {
                reason = closed => reason,
                _ = other_ended => ended("the other end has closed the joined connection").into(),
                // Nothing is sent on it.
                _ = stream.read_u8() => ended("the stream has ended").into(),
            }
        };
        let received = |n: usize| {
            event.received(n);
            moved.from_client.fetch_add(n as u64, Ordering::Relaxed);
        };
        let sent = |n: usize| {
            event.sent(n);
            moved.to_client.fetch_add(n as u64, Ordering::Relaxed);
        };
        let application = application.claim()?;
        let relayed =
            byte_relay::relay_tcp(client, application, received, sent, last, closed).await;
        let result = match &relayed {
            Ok(None | Some(StreamEnd::Finished)) => Ok(()),
            Ok(Some(StreamEnd::Reset(e))) => Err((e.kind(), e.to_string())),
            Err(e) => Err((io::ErrorKind::ConnectionReset, e.to_string())),
        };
        let _ = outcome.send(result); // the other end may have ended first
        let _ = stream.shutdown().await; // the tunnel may have closed
        relayed
    }
}

impl Unclaimed {
    fn claim(mut self) -> io::Result<TcpStream> {
        let socket = self.0.take().ok_or(io::ErrorKind::NotConnected)?;
        TcpStream::from_std(socket)
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            let _ = reset_on_close(socket); // already closed
        }
    }
}

fn ended(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, text)
}

fn bytes(count: &AtomicU64) -> usize {
    usize::try_from(count.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(account: &str) -> Identity {
        format!("spiffe://cluster.local/ns/default/sa/{account}")
            .parse()
            .unwrap()
    }

    fn to(address: &str) -> TunnelAddr {
        address.parse::<std::net::SocketAddr>().unwrap().into()
    }

    /// A token that another process has seen is of no use to it.
    #[test]
    fn only_the_client_on_its_tunnel_has_an_offer_and_once() {
        let joins = Arc::<Joins>::default();
        let (client, server) = (identity("client"), to("10.0.0.1:15008"));
        let offer = Offer::new(&joins, client.clone(), server);
        let token = offer.token();
        let token = token.for_request().unwrap();
        for wrong in ["", "x", "0", "-1", &token[1..], &format!("{token}0")] {
            assert!(joins.take(wrong, &client, server).is_none(), "{wrong}");
        }
        assert!(joins.take(token, &identity("other"), server).is_none());
        assert!(joins.take(token, &client, to("10.0.0.2:15008")).is_none());
        assert!(joins.take(token, &client, server).is_some());
        assert!(joins.take(token, &client, server).is_none());
    }

    #[test]
    fn an_offer_ends_with_its_connection() {
        let joins = Arc::<Joins>::default();
        let (client, server) = (identity("client"), to("10.0.0.1:15008"));
        let offer = Offer::new(&joins, client.clone(), server);
        let token = offer.token();
        drop(offer);
        assert!(joins.0.lock().is_empty());
        assert!(
            joins
                .take(token.for_request().unwrap(), &client, server)
                .is_none()
        );
    }
}
