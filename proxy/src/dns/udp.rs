//! Queries over UDP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use netns::NetNs;
use netns::datagram::{AnySource, Received, receive, send_from, tell_destination};
use netns::sockopt::set_transparent;
use socket2::{Domain, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::answer::{self, Asker, Outcome};
use super::observe::{Asked, Protocol};
use super::query::{Malformed, Query, encode, name_exists, refusal};
use super::{Settings, forward};
use crate::data::sockets::MARK;
use crate::data::{Phase, Worker, cut_short};
use crate::inpod::{PORTS, Pod};

/// Longer queries are not taken over UDP: the largest that EDNS usually asks for.
const LONGEST: usize = 4096;
/// After an error of the socket that is not about one datagram.
const BACKOFF: Duration = Duration::from_millis(100);

/// What listens for one family in a pod.
pub(crate) struct UdpListener {
    socket: std::net::UdpSocket,
    any_source: AnySource,
}

/// Listens on a port of every address in a pod, for each family that the pod has.
pub(crate) fn listen(netns: &NetNs, port: u16, ipv6: bool) -> io::Result<Vec<UdpListener>> {
    let listen = || {
        let mut listeners = vec![listen_here(port, false)?];
        if ipv6 {
            match listen_here(port, true) {
                Ok(listener) => listeners.push(listener),
                // A pod without IPv6.
                Err(e) if e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {}
                Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => {}
                Err(e) => return Err(e),
            }
        }
        Ok(listeners)
    };
    netns.run(listen).map_err(io::Error::other)?
}

fn listen_here(port: u16, v6: bool) -> io::Result<UdpListener> {
    let (domain, any): (Domain, IpAddr) = match v6 {
        true => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
        false => (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
    };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), None)?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    // So that the next proxy can take over before this one ends.
    socket.set_reuse_port(true)?;
    set_transparent(&socket, v6)?;
    socket.set_mark(MARK)?;
    tell_destination(&socket, v6)?;
    socket.bind(&SocketAddr::new(any, port).into())?;
    Ok(UdpListener { socket: socket.into(), any_source: AnySource::open(v6, MARK)? })
}

/// Answers until the pod leaves or the proxy ends. While the proxy drains it goes on: the next one shares the port, and
/// a socket that is open and not read would swallow queries.
pub(crate) async fn serve(worker: Rc<Worker>, pod: Arc<Pod>, listener: UdpListener) {
    let socket = match UdpSocket::from_std(listener.socket) {
        Ok(socket) => socket,
        Err(e) => return tracing::error!(pod = pod.uid, "DNS cannot be served: {e}"),
    };
    let server = Rc::new(Server { worker, pod, socket, any_source: listener.any_source });
    let (mut gone, mut phase) = (server.pod.gone.clone(), server.worker.node.phase.clone());
    let over = async {
        tokio::select! {
            _ = gone.wait_for(|gone| *gone) => {}
            _ = phase.wait_for(|phase| *phase == Phase::Ended) => {}
        }
    };
    tokio::pin!(over);
    let mut buffer = vec![0; LONGEST];
    loop {
        let received = tokio::select! {
            received = server.socket.async_io(Interest::READABLE, || receive(&server.socket, &mut buffer)) => received,
            () = &mut over => return,
        };
        match received {
            Ok(received) => server.clone().take(received, &buffer[..received.length]),
            Err(e) => {
                tracing::error!(pod = server.pod.uid, "cannot receive: {e}");
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
}

struct Server {
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    socket: UdpSocket,
    any_source: AnySource,
}

impl Server {
    /// Takes one datagram: answers it, drops it, or has it forwarded.
    fn take(self: Rc<Self>, received: Received, bytes: &[u8]) {
        let captured = received.to.port() != PORTS.dns;
        if !captured && !received.to.ip().is_loopback() {
            return; // somebody outside knows the port; captured datagrams never have this destination
        }
        let query = match Query::parse(bytes) {
            Ok(query) if !received.truncated => query,
            Ok(_) => return self.answer(&received, &refusal(bytes)),
            Err(Malformed::Refused(refusal)) => return self.answer(&received, &refusal),
            Err(Malformed::Ignored) => return,
        };
        let node = &self.worker.node;
        let Some(settings) = &node.dns else { return };
        let mesh = node.mesh.load();
        let workload = self.pod.workload(&mesh);
        let asked = Asked::begin(&node.metrics, &workload, &query, Protocol::Udp, received.from);
        let asker = Asker { mesh: &mesh, workload: &workload, cluster_domain: &settings.cluster_domain };
        match answer::decide(&query, &asker) {
            Outcome::Mesh { service, addresses } => {
                let message = answer::message(&query, addresses, rand::random_range(0..=usize::MAX));
                let bytes = encode(&message, query.udp_size()).unwrap_or_else(|| query.failure());
                asked.answered(&query, &service.hostname, &bytes);
                self.answer(&received, &bytes);
            }
            Outcome::Forward { known } => self.forward(received, query, asked, known),
        }
    }

    fn forward(self: Rc<Self>, received: Received, query: Query, asked: Asked, known: bool) {
        let Ok(permit) = self.pod.dns.forwarded.clone().try_acquire_owned() else {
            asked.failed(&query, "too many queries wait already");
            return self.answer(&received, &query.failure());
        };
        asked.forwarded();
        let worker = self.worker.clone();
        worker.track(async move {
            let _permit = permit;
            let upstreams = upstreams(&received, self.worker.node.dns.as_ref());
            let answered = tokio::select! {
                answered = forward::ask(&self.pod, &query, upstreams) => answered,
                why = cut_short(&self.worker, &self.pod) => return asked.failed(&query, &why.to_string()),
            };
            match answered {
                Ok((mut answer, upstream)) => {
                    if known {
                        name_exists(&mut answer);
                    }
                    asked.answered_by(&query, upstream, &answer);
                    self.answer(&received, &answer);
                }
                Err(why) => {
                    asked.failed(&query, &why);
                    self.answer(&received, &query.failure());
                }
            }
        });
    }

    /// Sends an answer from where the query went: under tproxy, from the address and port that the application asked; under
    /// NAT rules from the loopback address that they made of it, and the kernel translates back. Best effort, as UDP is.
    fn answer(&self, to: &Received, bytes: &[u8]) {
        let sent = match to.to.port() {
            port if port == PORTS.dns => send_from(&self.socket, bytes, to.to.ip(), to.from),
            _ => self.any_source.send(bytes, to.to, to.from),
        };
        if let Err(e) = sent {
            tracing::event!(target: "dns", tracing::Level::DEBUG, src.addr = %to.from, "cannot answer: {e}");
        }
    }
}

/// Whom to ask: whom the application asked, where that is known.
fn upstreams<'a>(received: &'a Received, settings: Option<&'a Settings>) -> &'a [SocketAddr] {
    match received.to.port() {
        port if port == PORTS.dns => settings.map_or(&[], |s| &s.upstreams),
        _ => slice::from_ref(&received.to),
    }
}
