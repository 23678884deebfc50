//! Queries over UDP.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use istio::port;
use netns::NetNs;
use netns::datagram::{RawUdpSocket, ReceivedDatagram, enable_orig_dst, receive, send_from};
use socket2::{Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::answer_cache::Upstreams;
use crate::exchange::Action;
use crate::query::{Query, QueryError, refusal};
use crate::query_event::Protocol;
use crate::{Client, exchange, forward};

/// Maximum size of a query over UDP: the largest common EDNS size.
const MAX_QUERY: usize = 4096;
/// Pause after a socket error that does not concern a single datagram.
const BACKOFF: Duration = Duration::from_millis(100);

/// A UDP listener for one address family in a pod.
pub struct UdpListener {
    socket: std::net::UdpSocket,
    raw: RawUdpSocket,
}

/// Listens on a port of all addresses of a pod, for each address family that the pod has.
pub fn listen(netns: &NetNs, port: u16, ipv6: bool) -> io::Result<Vec<UdpListener>> {
    let listen = || {
        let mut listeners = vec![bind_listener(port, false)?];
        if ipv6 {
            match bind_listener(port, true) {
                Ok(listener) => listeners.push(listener),
                Err(e) if pod_socket::is_ipv6_missing(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(listeners)
    };
    netns.run(listen).map_err(io::Error::other)?
}

impl UdpListener {
    /// Takes over a socket that another process opened in this pod with [`listen`].
    ///
    /// # Errors
    /// If the socket is not bound to this port, or the namespace cannot be entered.
    pub fn adopt(netns: &NetNs, socket: OwnedFd, port: u16) -> io::Result<Self> {
        let socket = Socket::from(socket);
        let address = socket.local_addr()?.as_socket();
        let v6 = address.is_some_and(|a| a.is_ipv6());
        if socket.r#type()? != Type::DGRAM || address != Some(pod_socket::any_address(port, v6)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let open_raw = || RawUdpSocket::open(v6, istio::mark::PROXY);
        Ok(Self {
            socket: socket.into(),
            raw: netns.run(open_raw).map_err(io::Error::other)??,
        })
    }

    /// Whether it listens on the addresses of IPv6, or else on those of IPv4.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn is_ipv6(&self) -> io::Result<bool> {
        Ok(self.socket.local_addr()?.is_ipv6())
    }
}

impl AsFd for UdpListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bind_listener(port: u16, v6: bool) -> io::Result<UdpListener> {
    let socket = pod_socket::listener(Type::DGRAM, v6)?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    enable_orig_dst(&socket, v6)?;
    socket.bind(&pod_socket::any_address(port, v6).into())?;
    Ok(UdpListener {
        socket: socket.into(),
        raw: RawUdpSocket::open(v6, istio::mark::PROXY)?,
    })
}

/// Serves queries until the pod leaves or the proxy terminates. It continues while the proxy
/// drains: a next proxy may share the port with a socket of its own, and an open socket that is
/// not read would swallow queries.
pub async fn serve(client: impl Client, listener: UdpListener) {
    let socket = match UdpSocket::from_std(listener.socket) {
        Ok(socket) => socket,
        Err(e) => return tracing::error!(pod = client.uid(), "cannot serve DNS for this pod: {e}"),
    };
    let server = Rc::new(UdpServer {
        client,
        socket,
        raw: listener.raw,
    });
    let stopped = server.client.until_terminated();
    tokio::pin!(stopped);
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let received = tokio::select! {
            received = server.socket.async_io(Interest::READABLE, || {
                receive(&server.socket, &mut buffer)
            }) => received,
            _ = &mut stopped => return,
        };
        match received {
            Ok(received) => {
                let handle = || server.clone().handle(received, &buffer[..received.length]);
                // The panic has been reported; the pod's other queries must still be answered.
                let _ = catch_unwind(AssertUnwindSafe(handle));
            }
            Err(e) => {
                tracing::error!(pod = server.client.uid(), "cannot receive DNS queries: {e}");
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
}

struct UdpServer<C> {
    client: C,
    socket: UdpSocket,
    raw: RawUdpSocket,
}

impl<C: Client> UdpServer<C> {
    /// Answers, forwards or drops one datagram.
    fn handle(self: Rc<Self>, received: ReceivedDatagram, bytes: &[u8]) {
        let captured = received.to.port() != port::DNS;
        if !captured && !received.to.ip().is_loopback() {
            return; // sent to the port from outside: captured datagrams never have this destination
        }
        let query = match Query::parse(bytes) {
            Ok(query) if !received.truncated => query,
            Ok(_) => return self.answer(&received, &refusal(bytes)),
            Err(QueryError::Refuse(refusal)) => return self.answer(&received, &refusal),
            Err(QueryError::Ignore) => return,
        };
        let upstreams = if captured {
            Upstreams::Queried(received.to)
        } else {
            Upstreams::Configured
        };
        let (client, from) = (&self.client, received.from);
        match exchange::handle(client, &query, Protocol::Udp, from, upstreams) {
            Some(Action::Answer(bytes)) => self.answer(&received, &bytes),
            Some(Action::Forward(forwarded)) => {
                let server = self.clone();
                self.client.spawn(async move {
                    let client = &server.client;
                    let look_up = || forward::look_up(client.clone(), query.clone(), upstreams);
                    let answer = exchange::forward(client, &query, *forwarded, look_up).await;
                    server.answer(&received, &answer);
                });
            }
            None => {}
        }
    }

    fn answer(&self, query: &ReceivedDatagram, bytes: &[u8]) {
        let result = if query.to.port() == port::DNS {
            send_from(&self.socket, bytes, query.to.ip(), query.from)
        } else {
            self.raw.send(bytes, query.to, query.from)
        };
        if let Err(e) = result {
            tracing::event!(
                target: "dns",
                tracing::Level::DEBUG,
                src.addr = %query.from,
                "cannot send an answer: {e}"
            );
        }
    }
}
