//! The floor: a process in the client's pod and one in the server's copy each connection, under the
//! NAT rules of a mesh. They open the same sockets as a proxy, but neither encrypt nor share
//! connections.

#![allow(clippy::disallowed_types)] // starts the processes

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::thread;

use istio::port;
use netns::NetNs;
use pod_socket::{PodNetwork, TcpOptions};
use redirect::{CaptureKind, Plan};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use crate::cni::path_of;
use crate::listener::listening_ports;
use crate::sandbox::until;

const CHUNK: usize = 64 * 1024;

/// How a process copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copying {
    /// All connections on one thread, which waits with epoll.
    Epoll,
    /// Two blocking threads for each connection.
    Threads,
}

/// Both processes. They end with this value.
#[derive(Debug)]
pub(super) struct Floor([Child; 2]);

impl Copying {
    pub(super) const ALL: [Self; 2] = [Self::Epoll, Self::Threads];

    /// The name of the contestant.
    pub(super) fn contestant(self) -> &'static str {
        match self {
            Self::Epoll => "floor-epoll",
            Self::Threads => "floor-threads",
        }
    }
}

impl FromStr for Copying {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let mut all = Self::ALL.into_iter();
        all.find(|c| c.contestant() == name).ok_or(())
    }
}

impl Floor {
    /// Redirects both pods, the client's first, and starts their processes by the command `floor`
    /// of a program.
    pub(super) fn start(
        program: &Path,
        copying: Copying,
        pods: [&NetNs; 2],
        ips: [[IpAddr; 2]; 2],
    ) -> Self {
        for (pod, ips) in pods.iter().zip(ips) {
            let plan = Plan {
                capture: CaptureKind::Nat,
                ..Plan::for_pod(ips)
            };
            pod.run(|| redirect::apply(&plan)).unwrap().unwrap();
        }
        let server = ips[1][0].to_string();
        Self(pods.map(|pod| {
            let mut command = Command::new(program);
            command.args(["floor", copying.contestant()]);
            command.args([&path_of(pod), &server]).stdin(Stdio::null());
            let started = netns::process::die_with_parent(&mut command).spawn();
            until("the floor listens", || {
                listening_ports(pod).contains(&port::HBONE).then_some(())
            });
            started.unwrap()
        }))
    }

    pub(super) fn pids(&self) -> [u32; 2] {
        self.0.each_ref().map(Child::id)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The pod of a process.
struct Pod {
    netns: NetNs,
    tcp: TcpOptions,
    /// The pod that has a process as well.
    server: IpAddr,
}

impl PodNetwork for Pod {
    fn netns(&self) -> &NetNs {
        &self.netns
    }

    fn tcp_options(&self) -> &TcpOptions {
        &self.tcp
    }
}

/// Runs one of the processes: how it copies, the path of its pod's network namespace, and the
/// server's address.
///
/// # Panics
/// On any error.
pub fn run(arguments: &[String]) {
    let [copying, netns, server] = arguments else {
        panic!("usage: floor KIND NETNS SERVER");
    };
    let copying: Copying = copying.parse().expect("a kind of the floor");
    let pod = Arc::new(Pod {
        netns: NetNs::open(netns).unwrap(),
        tcp: TcpOptions::default(),
        server: server.parse().unwrap(),
    });
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    let listen = |port| pod_socket::listen(&pod.netns, port, false, &pod.tcp).unwrap();
    let listeners = [port::OUTBOUND, port::HBONE].map(listen);
    LocalSet::new().block_on(&runtime, async {
        let [outbound, inbound] = listeners.map(|l| TcpListener::from_std(l).unwrap());
        loop {
            let accepted = tokio::select! {
                accepted = outbound.accept() => accepted.map(|(tcp, _)| (tcp, false)),
                accepted = inbound.accept() => accepted.map(|(tcp, _)| (tcp, true)),
            };
            let Ok((tcp, is_inbound)) = accepted else {
                continue;
            };
            let pod = pod.clone();
            spawn_local(async move {
                let connected = if is_inbound {
                    connect_inbound(&pod, tcp).await
                } else {
                    connect_outbound(&pod, tcp).await
                };
                // An error closes the connection.
                let (client, server) = connected?;
                copy(copying, client, server)
            });
        }
    });
}

/// Connects to the server's process, and sends the destination; or to the destination, if it is
/// not the server.
async fn connect_outbound(pod: &Pod, client: TcpStream) -> io::Result<(TcpStream, TcpStream)> {
    let to = pod_socket::orig_dst(&client, port::OUTBOUND)?.0;
    let (IpAddr::V4(ip), true) = (to.ip(), to.ip() == pod.server) else {
        let server = pod_socket::connect(pod, to).await?;
        return Ok((client, server));
    };
    let mut server = pod_socket::connect(pod, SocketAddr::new(to.ip(), port::HBONE)).await?;
    let mut destination = [0; 6];
    destination[..4].copy_from_slice(&ip.octets());
    destination[4..].copy_from_slice(&to.port().to_be_bytes());
    server.write_all(&destination).await?;
    Ok((client, server))
}

/// Connects to the destination from the client's address.
async fn connect_inbound(pod: &Pod, mut peer: TcpStream) -> io::Result<(TcpStream, TcpStream)> {
    let mut destination = [0; 6];
    peer.read_exact(&mut destination).await?;
    let [a, b, c, d, high, low] = destination;
    let ip = Ipv4Addr::new(a, b, c, d);
    let to = SocketAddr::new(ip.into(), u16::from_be_bytes([high, low]));
    let client = peer.peer_addr()?;
    let server = pod_socket::connect_as(client.into(), pod, to).await?;
    Ok((peer, server))
}

fn copy(copying: Copying, client: TcpStream, server: TcpStream) -> io::Result<()> {
    match copying {
        Copying::Epoll => {
            let (client, server) = (client.into_split(), server.into_split());
            spawn_local(copy_by_task(client.0, server.1));
            spawn_local(copy_by_task(server.0, client.1));
        }
        Copying::Threads => {
            let blocking = |tcp: TcpStream| {
                let tcp = tcp.into_std()?;
                tcp.set_nonblocking(false)?;
                io::Result::Ok((tcp.try_clone()?, tcp))
            };
            let (client, server) = (blocking(client)?, blocking(server)?);
            thread::spawn(|| copy_by_thread(client.0, server.1));
            thread::spawn(|| copy_by_thread(server.0, client.1));
        }
    }
    Ok(())
}

/// Copies until the end, which the other side gets when its half is dropped.
async fn copy_by_task(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n]).await?,
        }
    }
}

fn copy_by_thread(mut from: std::net::TcpStream, mut to: std::net::TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let copied = loop {
        match from.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) => to.write_all(&buffer[..n])?,
            Err(e) => break Err(e),
        }
    };
    to.shutdown(Shutdown::Write)?;
    copied
}
